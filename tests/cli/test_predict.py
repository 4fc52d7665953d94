# SPDX-License-Identifier: BSD-3-Clause
"""Prediction on image files."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A file that is not square."""
    from PIL import Image

    path = tmp_path / "photo [1].png"
    Image.radial_gradient("L").resize((320, 160)).convert("RGB").save(path)
    return path


def test_pictures_and_json(ssd_fast: Callable, weights: Path, photograph: Path, tmp_path: Path):
    from PIL import Image

    output = tmp_path / "out"
    arguments = ("--weights", weights, "--output", output, "--threshold", 0.1)
    result = ssd_fast("predict", *arguments, photograph)
    assert result.status == 0, result.err
    (entry,) = json.loads((output / "detections.json").read_text())["images"]
    assert (entry["file"], entry["width"], entry["height"]) == (str(photograph), 320, 160)
    assert entry["detections"]
    for row in entry["detections"]:
        x1, y1, x2, y2 = row["box"]
        assert 0 <= x1 <= x2 <= 320
        assert 0 <= y1 <= y2 <= 160
        assert 0.1 <= row["score"] <= 1
        assert row["class"] == ("circle", "rectangle", "triangle")[row["label"] - 1]
    with Image.open(output / entry["picture"]) as picture:
        assert picture.size == (320, 160)
    assert photograph.name in result.out


def test_nms_by_name(ssd_fast: Callable, weights: Path, photograph: Path, tmp_path: Path):
    """A word that detect knows; boxes that hard suppresses may stay, with lower scores."""
    found = {}
    for nms in ("hard", "soft-gaussian"):
        arguments = ("--weights", weights, "--output", tmp_path / nms, "--threshold", 0.05)
        assert ssd_fast("predict", *arguments, "--nms", nms, photograph).status == 0
        (image,) = json.loads((tmp_path / nms / "detections.json").read_text())["images"]
        found[nms] = image["detections"]
    assert found["soft-gaussian"] != found["hard"]
    with pytest.raises(SystemExit):
        ssd_fast("predict", "--weights", weights, "--nms", "soft", photograph)


def test_the_same_run_twice_is_the_same(
    ssd_fast: Callable, weights: Path, photograph: Path, tmp_path: Path
):
    texts = []
    for name in ("a", "b"):
        ssd_fast("predict", "--weights", weights, "--output", tmp_path / name, photograph)
        texts.append((tmp_path / name / "detections.json").read_bytes())
    assert texts[0] == texts[1]


def test_images_of_one_name_do_not_meet(
    ssd_fast: Callable, weights: Path, photograph: Path, tmp_path: Path
):
    other = tmp_path / "other" / photograph.name
    other.parent.mkdir()
    other.write_bytes(photograph.read_bytes())
    output = tmp_path / "out"
    result = ssd_fast("predict", "--weights", weights, "--output", output, photograph, other)
    assert result.status == 0
    assert len(list(output.glob("*.png"))) == 2


def test_the_image_is_never_written_over(
    ssd_fast: Callable, weights: Path, photograph: Path, tmp_path: Path
):
    before = photograph.read_bytes()
    ssd_fast("predict", "--weights", weights, "--output", photograph.parent, photograph)
    assert photograph.read_bytes() == before


def test_a_broken_image_is_named_and_the_rest_go_on(
    ssd_fast: Callable, weights: Path, photograph: Path, tmp_path: Path
):
    torn = tmp_path / "torn.png"
    torn.write_bytes(photograph.read_bytes()[:200])
    output = tmp_path / "out"
    arguments = ("--weights", weights, "--output", output, torn, "gone.jpg", photograph)
    result = ssd_fast("predict", *arguments)
    assert result.status == 2
    first, second = result.err.splitlines()
    assert "torn.png: the image does not decode" in first
    assert "gone.jpg: the image is missing" in second
    images = json.loads((output / "detections.json").read_text())["images"]
    assert [image["file"] for image in images] == [str(photograph)]


@pytest.mark.parametrize("threshold", [-0.1, 1.5, "nan"])
def test_a_threshold_is_checked(
    ssd_fast: Callable, weights: Path, photograph: Path, threshold: object, tmp_path: Path
):
    arguments = (f"--threshold={threshold}", "--weights", weights, "--output", tmp_path / "out")
    result = ssd_fast("predict", *arguments, photograph)
    assert result.status == 2
    assert "--threshold: expected 0 to 1" in result.err
