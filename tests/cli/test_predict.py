# SPDX-License-Identifier: BSD-3-Clause
"""Prediction on image files."""

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ssd_fast.cli.image_paths import find_images
from ssd_fast.engine.report import weights_digest


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


@pytest.fixture
def frames(photograph: Path, tmp_path: Path) -> Path:
    """A folder of twelve frames, and a file that is none."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(1, 13):
        shutil.copy(photograph, folder / f"frame{i}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_the_same_run_twice_is_the_same(
    ssd_fast: Callable, weights: Path, frames: Path, tmp_path: Path
):
    runs = []
    for name in ("a", "b"):
        output = tmp_path / name
        options = ("--formats", "json,jsonl,coco,voc,pictures", "--threshold", 0.2)
        arguments = ("--weights", weights, "--output", output, "--batch-size", 2)
        result = ssd_fast("predict", *arguments, *options, frames / "frame[1-3].png")
        assert result.status == 0, result.err
        files = [path for path in sorted(output.rglob("*")) if path.is_file()]
        runs.append({path.relative_to(output): path.read_bytes() for path in files})
    assert runs[0] == runs[1]
    assert len(runs[0]) == 2 + 2 + 3 + 3


def test_another_run_in_a_folder_keeps_the_pictures_and_says_so(
    ssd_fast: Callable, weights: Path, frames: Path, tmp_path: Path
):
    output = tmp_path / "out"
    arguments = ("--weights", weights, "--output", output, "--formats", "json,voc,pictures")
    first = ssd_fast("predict", *arguments, frames / "frame1.png", frames / "frame2.png")
    assert "earlier" not in first.out
    second = ssd_fast("predict", *arguments, frames / "frame2.png")
    assert "of earlier runs it keeps 2 more files" in second.out
    assert {path.name for path in output.rglob("*.*")} == {
        "detections.json", "frame1.xml", "frame2.xml",
        "frame1.detections.png", "frame2.detections.png",
    }  # fmt: skip
    (entry,) = json.loads((output / "detections.json").read_text())["images"]
    assert Path(entry["file"]).name == "frame2.png"


def test_frames_of_a_folder_come_in_natural_order(
    ssd_fast: Callable, weights: Path, frames: Path, tmp_path: Path
):
    arguments = ("--weights", weights, "--output", tmp_path, "--formats", "jsonl")
    result = ssd_fast("predict", *arguments, frames)
    assert result.status == 0, result.err
    lines = (tmp_path / "detections.jsonl").read_text().splitlines()
    files = [Path(json.loads(line)["file"]).name for line in lines]
    assert files == [f"frame{i}.png" for i in range(1, 13)]


def test_files_folders_patterns_and_lists_are_found(frames: Path, photograph: Path):
    first, second = frames / "frame1.png", frames / "frame2.png"
    # The name of a file that looks like a pattern is a name.
    assert find_images([str(photograph)]) == ([photograph], [])
    assert find_images([str(frames / "frame?.png")])[0][-1] == frames / "frame9.png"
    assert len(find_images([str(frames.parent / "**" / "frame*.png")])[0]) == 12
    photograph.unlink()
    pattern = find_images([str(frames.parent)])[1][0].split("'")[1]
    assert len(find_images([pattern])[0]) == 12
    assert find_images(["-", str(first)], [f"{second}\n", "\n", str(first)])[0] == [second, first]
    (frames / "frame1.detections.png").write_bytes(first.read_bytes())
    assert len(find_images([str(frames), str(first)])[0]) == 12
    empty = frames / "empty"
    empty.mkdir()
    found, problems = find_images([str(empty), str(frames / "*.jpg"), "gone.jpg"])
    assert found == [Path("gone.jpg")]
    assert "empty: no image in this folder" in problems[0]
    assert "*.jpg: no image matches" in problems[1]


def test_a_list_on_standard_input(
    ssd_fast: Callable,
    weights: Path,
    photograph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{photograph}\n"))
    output = tmp_path / "out"
    result = ssd_fast("predict", "--weights", weights, "--output", output, "-", "no/such/*.png")
    assert result.status == 2
    assert "no/such/*.png: no image matches" in result.err
    (image,) = json.loads((output / "detections.json").read_text())["images"]
    assert image["file"] == str(photograph)


def test_a_list_of_names_that_are_no_utf_8(
    ssd_fast: Callable,
    weights: Path,
    photograph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    names = [os.fsencode(tmp_path) + b"/\xe9t\xe9.png", b"none\xff.png"]
    try:
        shutil.copy(photograph, os.fsdecode(names[0]))
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(names)), "utf-8"))
    output = tmp_path / "out"
    result = ssd_fast("predict", "--weights", weights, "--output", output, "-")
    assert result.status == 2
    assert r"none\udcff.png: the image is missing" in result.err
    (image,) = json.loads((output / "detections.json").read_text())["images"]
    assert os.fsencode(image["file"]) == names[0]


def test_names_that_no_file_has_are_listed_and_the_rest_go_on(
    ssd_fast: Callable,
    weights: Path,
    photograph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    lines = ("x" * 300, "~nobody-at-all/a.png", "a\0b.png", str(photograph))
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    output = tmp_path / "out"
    result = ssd_fast("predict", "--weights", weights, "--output", output, "-")
    assert result.status == 2
    assert len(result.err.splitlines()) == 3
    assert f"{'x' * 300}: " in result.err
    assert "~nobody-at-all/a.png: there is no home folder of this user; write ./~" in result.err
    (image,) = json.loads((output / "detections.json").read_text())["images"]
    assert image["file"] == str(photograph)


def test_a_name_that_is_no_utf_8_is_escaped(
    ssd_fast: Callable, weights: Path, photograph: Path, tmp_path: Path
):
    path = photograph.rename(tmp_path / os.fsdecode(b"b\xff.png"))
    output = tmp_path / "out"
    options = ("--formats", "json,jsonl,coco,voc,pictures", "--output", output)
    result = ssd_fast("predict", "--weights", weights, *options, path)
    assert result.status == 0, result.err
    assert "b\\udcff.png: " in result.out
    (image,) = json.loads((output / "detections.json").read_text())["images"]
    assert image["file"] == str(path)
    assert (output / image["picture"]).exists()


def test_boxes_are_in_the_upright_image(
    ssd_fast: Callable, weights: Path, photograph: Path, tmp_path: Path
):
    from PIL import Image

    with Image.open(photograph) as image:
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees to look at it
        image.save(tmp_path / "turned.png", exif=exif)
        image.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    arguments = ("--weights", weights, "--output", tmp_path / "out", "--threshold", 0.1)
    result = ssd_fast("predict", *arguments, tmp_path / "turned.png", tmp_path / "upright.png")
    assert result.status == 0, result.err
    turned, upright = json.loads((tmp_path / "out" / "detections.json").read_text())["images"]
    assert (turned["width"], turned["height"]) == (160, 320)
    assert turned["detections"] == upright["detections"]
    assert turned["detections"]


def test_the_longest_name_of_an_image_is_cut(
    ssd_fast: Callable, weights: Path, photograph: Path, tmp_path: Path
):
    folder, output = tmp_path / "long", tmp_path / "out"
    folder.mkdir()
    for last in "12":
        shutil.copy(photograph, folder / ("\u00e9" * 125 + f"{last}.png"))
    arguments = ("--weights", weights, "--output", output, "--threshold", 1.0)
    assert ssd_fast("predict", *arguments, "--formats", "pictures,voc", folder).status == 0
    names = sorted(path.stem for path in (output / "voc").iterdir())
    assert names == ["\u00e9" * 100, "\u00e9" * 100 + "-2"]
    assert len(list(output.glob("*.detections.png"))) == 2


def test_coco_ids_come_from_the_annotations(
    ssd_fast: Callable, weights: Path, frames: Path, tmp_path: Path
):
    names = ("triangle", "circle", "rectangle")
    content = {
        "images": [
            {"id": 70, "file_name": "frame1.png"},
            {"id": 71, "file_name": r"frames\frame2.png"},
        ],
        "categories": [{"id": 10 * i, "name": f"{name} "} for i, name in enumerate(names, 1)],
    }
    annotations = tmp_path / "instances.json"
    annotations.write_text(json.dumps(content))
    output = tmp_path / "out"
    arguments = ("--weights", weights, "--output", output, "--threshold", 0.1, "--formats", "coco")
    arguments = (*arguments, "--coco-annotations", annotations)
    images = [frames / f"frame{i}.png" for i in (1, 2, 3)]
    images.append(Path(shutil.copy(images[0], tmp_path)))
    result = ssd_fast("predict", *arguments, *images)
    assert result.status == 2
    assert f"{images[3]}: {images[0]} has the same id, 70; it is not in" in result.err
    assert "frame3.png: the COCO annotations have no image of this name" in result.err
    rows = json.loads((output / "coco_results.json").read_text())
    assert {row["image_id"] for row in rows} == {70, 71}
    assert {row["category_id"] for row in rows} <= {10, 20, 30}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"images": [], "categories": []}', "{} has no category circle, rectangle, triangle"),
        (b"{", "{} is no COCO annotation file with images and categories: Expecting property"),
        (b"\xff" * 9999, "{} is no COCO annotation file with images and categories: 'utf-8' codec"),
        (
            b"[" * 10**6,
            "{} is no COCO annotation file with images and categories: maximum recursion",
        ),
        (None, "{} cannot be read: No such file or directory"),
    ],
    ids=["classes", "json", "utf-8", "nested", "missing"],
)
def test_coco_annotations_without_ids_are_one_line(
    ssd_fast: Callable, weights: Path, frames: Path, tmp_path: Path, content: bytes, reason: str
):
    annotations = tmp_path / "instances.json"
    if content is not None:
        annotations.write_bytes(content)
    arguments = ("--output", tmp_path / "out", "--formats", "coco")
    arguments = (*arguments, "--coco-annotations", annotations)
    result = ssd_fast("predict", "--weights", weights, *arguments, frames)
    assert result.status == 2
    assert f"error: --coco-annotations: {reason.format(annotations)}" in result.err
    assert result.err.count("\n") == 1
    assert len(result.err) < 1000


def test_the_threshold_is_the_one_that_an_evaluation_chose(
    ssd_fast: Callable, weights: Path, photograph: Path, tmp_path: Path
):
    own = tmp_path / "weights.safetensors"
    shutil.copy(weights, own)
    report = {"score_threshold": 0.125, "weights_sha256": weights_digest(own)}
    (tmp_path / "report.json").write_text(json.dumps(report))
    output = tmp_path / "out"
    arguments = ("predict", "--weights", own, "--output", output, photograph, "--formats", "json")
    assert "scores of 0.125 and more (best F1 in" in ssd_fast(*arguments).out
    assert "scores of 0.3 and more (as asked)" in ssd_fast(*arguments, "--threshold", 0.3).out
    (tmp_path / "report.json").unlink()
    assert "scores of 0.5 and more (the default" in ssd_fast(*arguments).out


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
    assert "--score-threshold: expected 0 to 1" in result.err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--formats=png", "--formats: expected some of json,jsonl,coco,voc,pictures, got 'png'"),
        ("--batch-size=0", "--batch-size: expected 1 or more, got 0"),
        ("--coco-annotations=a.json", "has no use without coco among the --formats"),
    ],
)
def test_options_are_checked(
    ssd_fast: Callable, weights: Path, photograph: Path, tmp_path: Path, option: str, message: str
):
    arguments = ("--weights", weights, "--output", tmp_path / "out", option)
    result = ssd_fast("predict", *arguments, photograph)
    assert result.status == 2
    assert message in result.err
