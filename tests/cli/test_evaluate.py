# SPDX-License-Identifier: BSD-3-Clause
"""Evaluation on a VOC folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssd_fast.cli.console import Console
from ssd_fast.engine.evaluation import score_detections
from ssd_fast.engine.report import read_threshold
from ssd_fast.engine.weights import save_weights
from ssd_fast.models import ssd300_vgg16


def test_every_class_is_printed(ssd_fast: Callable, voc: Path, weights: Path, tmp_path: Path):
    numbers = tmp_path / "results" / "eval.json"
    result = ssd_fast("eval", "--weights", weights, "--data", f"voc:{voc}", "--json", numbers)
    assert result.status == 0, result.err
    assert "2 images of test" in result.out
    for name in ("circle", "rectangle", "triangle", "mean"):
        assert f"│ {name} " in result.out
    metrics = json.loads(numbers.read_text())
    assert result.out.splitlines()[-1] == f"mAP@0.5 {metrics['map_50']:.3f}"


def test_a_home_folder_is_found(
    ssd_fast: Callable,
    voc: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").symlink_to(weights)
    arguments = ("eval", "--weights=~/w.safetensors", f"--data=voc:{voc}", "--output=~/r")
    result = ssd_fast(*arguments, "--json=~/n.json")
    assert result.status == 0, result.err
    assert (tmp_path / "n.json").exists()
    assert (tmp_path / "r" / "report.html").exists()
    assert not (tmp_path / "~").exists()
    for option in ("--output", "--json", "--data"):
        result = ssd_fast(*arguments, f"{option}=~nobody-at-all/x")
        assert result.status == 2
        (line,) = result.err.splitlines()
        assert f"error: {option}: ~nobody-at-all/x: there is no home folder of this user" in line


def test_the_set_can_be_chosen(ssd_fast: Callable, voc: Path, weights: Path):
    arguments = ("eval", "--weights", weights, "--data", f"voc:{voc}", "--image-set")
    assert "4 images of train" in ssd_fast(*arguments, "train").out
    result = ssd_fast(*arguments, "minival")
    assert result.status == 2
    assert "has no set 'minival', only" in result.err


@pytest.mark.parametrize("names", [("cat",), ("cat", "dog", "cow"), ("a", "circle", "b", "c")])
def test_weights_of_other_classes_are_refused(
    ssd_fast: Callable, voc: Path, tmp_path: Path, names: tuple[str, ...]
):
    path = tmp_path / "w.safetensors"
    save_weights(path, ssd300_vgg16(len(names) + 1, width=0.03, norm=True), names)
    result = ssd_fast("eval", "--weights", path, "--data", f"voc:{voc}")
    assert result.status == 2
    (line,) = result.err.splitlines()
    assert f"knows {len(names)} classes ({', '.join(names)}), the data has 3 (circle" in line


def test_more_classes_in_another_order_are_taken_by_name(
    ssd_fast: Callable, voc: Path, tmp_path: Path
):
    names = ("triangle", "star", "circle", "rectangle")
    path = tmp_path / "w.safetensors"
    save_weights(path, ssd300_vgg16(5, width=0.03, norm=True), names)
    result = ssd_fast("eval", "--weights", path, "--data", f"voc:{voc}")
    assert result.status == 0, result.err
    rows = [line for line in result.out.splitlines() if line.startswith("│ star")]
    assert rows[0].split("│")[2].strip() == "0"


def test_names_from_strangers_are_text(capsys: pytest.CaptureFixture[str]):
    names = ("dog [/x]", "cat [seated]", ":cat:")
    truth = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": torch.tensor([1])}
    console = Console()
    console.show_average_precision(
        score_detections([{**truth, "scores": torch.ones(1)}], [truth], names)
    )
    console.say(":cat: [red]")
    out = capsys.readouterr().out
    assert all(f"│ {name} " in out for name in names)
    assert out.endswith("\n:cat: [red]\n")


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_size_is_checked(ssd_fast: Callable, weights: Path, batch_size: int):
    arguments = ("--weights", weights, "--data", "shapes", f"--batch-size={batch_size}")
    result = ssd_fast("eval", *arguments)
    assert result.status == 2
    assert f"--batch-size: expected 1 or more, got {batch_size}" in result.err


def test_a_folder_is_no_file_for_the_numbers(ssd_fast: Callable, weights: Path, tmp_path: Path):
    result = ssd_fast("eval", "--weights", weights, "--data", "shapes", "--json", tmp_path)
    assert (result.status, result.out) == (2, "")
    (line,) = result.err.splitlines()
    assert f"--json: {tmp_path} is a folder; name a file in it" in line


def test_the_rules_can_be_chosen(ssd_fast: Callable, voc: Path, weights: Path, tmp_path: Path):
    arguments = ("eval", "--weights", weights, "--data", f"voc:{voc}", "--json")
    for metric in ("voc07", "coco"):
        result = ssd_fast(*arguments, tmp_path / f"{metric}.json", "--metric", metric)
        assert result.status == 0, result.err
        assert json.loads((tmp_path / f"{metric}.json").read_text())["metric"] == metric
    assert "AP small, medium, large: " in result.out
    assert json.loads((tmp_path / "coco.json").read_text())["coco"]["ap"] is not None


def test_a_report_is_written(
    ssd_fast: Callable, voc: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def find_all_but_one(_: object, dataset: Any, *more: object, **options: object) -> Any:
        targets = [dataset[i][1] for i in range(len(dataset))]
        found = [
            {k: t[k][int(i == 0) :] for k in ("boxes", "labels")} for i, t in enumerate(targets)
        ]
        return [d | {"scores": torch.full((len(d["labels"]),), 0.8)} for d in found], targets

    monkeypatch.setattr("ssd_fast.cli.evaluate.detect_shown", find_all_but_one)
    arguments = ("eval", "--weights", weights, "--data", f"voc:{voc}", "--output", tmp_path / "r")
    result = ssd_fast(*arguments)
    assert result.status == 0, result.err
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["image_set"] == "test"
    assert report["weights"] == str(weights)
    assert f"best F1: {report['score_threshold']:.3f}" in result.out
    assert Path(report["worst_images"][0]["file"]).parent == voc / "JPEGImages"
    assert read_threshold(weights) is None
    shutil.copy(weights, tmp_path / "weights.safetensors")
    assert read_threshold(tmp_path / "weights.safetensors")[0] == report["score_threshold"]


def test_an_image_that_does_not_decode_is_left_out_by_name(
    ssd_fast: Callable, voc: Path, weights: Path, tmp_path: Path
):
    root = tmp_path / "voc"
    shutil.copytree(voc, root)
    first, second = (root / f"JPEGImages/scene{i}.png" for i in (6, 7))

    def tear(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[200:260] = bytes(60)  # its header and its end stay: only decoding finds it
        path.write_bytes(content)

    tear(first)
    arguments = ("eval", "--weights", weights, "--data", root, "--batch-size", 1)
    result = ssd_fast(*arguments, "--output", tmp_path / "r", "--json", tmp_path / "n.json")
    assert result.status == 0, result.err
    assert "Left out of test, because broken: 1 image\n" in result.out
    assert f"  {first}: the image does not decode" in result.out
    assert json.loads((tmp_path / "n.json").read_text())["images"] == 1
    (worst,) = json.loads((tmp_path / "r" / "report.json").read_text())["worst_images"]
    assert worst["file"] == str(second)
    tear(second)
    result = ssd_fast(*arguments)
    assert result.status == 2
    (line,) = result.err.splitlines()
    assert f"none of the 2 images decodes; {first}: the image does not decode" in line
