# SPDX-License-Identifier: BSD-3-Clause
"""Training on a VOC folder: interrupted, killed, out of room, and what it says and leaves."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssd_fast.cli.training_run import TrainingRun
from ssd_fast.engine.checkpoint import load_checkpoint
from ssd_fast.engine.report import weights_digest

from .conftest import TINY, stop_after, write_voc

pytestmark = pytest.mark.usefixtures("no_figures")


def tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize(("number", "step"), [(signal.SIGINT, 2), (signal.SIGTERM, 4)])
def test_an_interrupted_run_ends_as_the_uninterrupted_one(
    ssd_fast: Callable, voc: Path, tmp_path: Path, number: int, step: int
):
    data = ("--data", f"voc:{voc}")
    whole = ssd_fast("train", *data, *TINY, "--output", tmp_path / "whole")
    assert whole.status == 0, whole.err
    parts = tmp_path / "parts"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, step, number)
        stopped = ssd_fast("train", *data, *TINY, "--output", parts)
    assert stopped.status == 128 + number
    assert f"ssd-fast train --resume --output {parts}" in stopped.out
    assert not (parts / "weights.safetensors").exists()
    assert load_checkpoint(parts / "checkpoint.pt")["trainer"]["step"] == step

    resumed = ssd_fast("train", "--resume", "--output", parts)
    assert resumed.status == 0, resumed.err
    assert f"Going on after step {step} of 4" in resumed.out
    assert resumed.out.splitlines()[-1] == whole.out.splitlines()[-1]
    expected = tensors(tmp_path / "whole" / "weights.safetensors")
    for name, tensor in tensors(parts / "weights.safetensors").items():
        assert torch.equal(tensor, expected[name]), name
    logs = [(folder / "log.jsonl").read_text() for folder in (tmp_path / "whole", parts)]
    assert logs[0] == logs[1]


def test_a_run_killed_while_it_validates_does_that_first(
    ssd_fast: Callable, voc: Path, tmp_path: Path
):
    """4 images, 2 a step: an epoch ends after step 2."""
    command = ("train", "--data", f"voc:{voc}", *TINY, "--validate-every", 1, "--output")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert ssd_fast(*command, whole).status == 0

    class Killed(BaseException):
        pass

    def kill(self: TrainingRun) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingRun, "_detect", kill)
        with pytest.raises(Killed):
            ssd_fast(*command, parts)
    resumed = ssd_fast("train", "--resume", "--output", parts)
    assert resumed.status == 0, resumed.err
    for name in ("log.jsonl", "log.csv"):
        assert (whole / name).read_text() == (parts / name).read_text()
    assert '{"step": 2, "map_50"' in (parts / "log.jsonl").read_text()


def test_what_a_run_says_and_leaves(ssd_fast: Callable, voc: Path, tmp_path: Path):
    output = tmp_path / "run"
    arguments = ("--data", f"voc:{voc}", *TINY, "--output", output, "--validate-every", 1)
    result = ssd_fast("train", *arguments)
    assert result.status == 0, result.err
    assert "Left out of train, because broken: 1 object\n" in result.out
    assert "scene0.xml, object" in result.out
    assert "4 images to train on, 2 to validate on; 3 classes: circle, rectangle, tri" in result.out
    assert "float32 (asked for)" in result.out
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "box_loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "map_50" in row] == [2, 4]
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["steps"] == 4
    assert metrics["image_set"] == "val"
    assert metrics["images_trained_on"] == 0
    assert "training images" not in result.out
    assert (output / "training.png").stat().st_size > 1000
    pictures = sorted((output / "examples").iterdir())
    assert [path.name for path in pictures] == ["step-000002.png", "step-000004.png"]
    assert all(path.stat().st_size > 1000 for path in pictures)
    report = json.loads((output / "report" / "report.json").read_text())
    assert report["metrics"]["map_50"] == metrics["map_50"]
    assert report["image_set"] == "val"
    assert len(report["classes"]) == 3
    page = output / "report" / "report.html"
    assert f"see {page}" in result.out.replace("\n", "")
    assert "scene" in page.read_text()
    # Four steps teach nothing, of which there is no best threshold.
    assert report["weights_sha256"] == weights_digest(output / "weights.safetensors")
    assert report["score_threshold_f1"] == 0.0
    assert "No score threshold finds an object" in result.out
    table = (output / "log.csv").read_text().splitlines()
    assert table[0] == "step,box_loss,class_loss,learning_rate,map_50"
    assert len(table) == 1 + len(rows)

    # A finished run is not written over, and resuming it changes nothing.
    assert ssd_fast("train", *arguments).status == 2
    before = tensors(output / "weights.safetensors")
    assert ssd_fast("train", "--resume", "--output", output).status == 0
    for name, tensor in tensors(output / "weights.safetensors").items():
        assert torch.equal(tensor, before[name])
    assert (output / "log.csv").read_text().splitlines() == table


def test_a_measure_of_training_images_is_said(ssd_fast: Callable, voc: Path, tmp_path: Path):
    arguments = ("--data", f"voc:{voc}", *TINY, "--output", tmp_path, "--validation-set", "train")
    result = ssd_fast("train", *arguments)
    assert result.status == 0, result.err
    line = "4 of 4 validation images are training images: the mAP is no measure of new images"
    assert line in " ".join(result.out.split())
    assert json.loads((tmp_path / "metrics.json").read_text())["images_trained_on"] == 4


@pytest.mark.parametrize(
    ("options", "line", "loss"),
    [
        (
            (),
            "1 of the images to train on hold no object: train nothing; --min-negatives 3",
            {"classification": "softmax", "min_negatives": 0},
        ),
        (
            ("--min-negatives", 3),
            "hold no object: train 3 background boxes each",
            {"min_negatives": 3},
        ),
        (
            ("--classification", "focal"),
            "hold no object: train their background",
            {"classification": "focal", "gamma": 2.0},
        ),
    ],
)
def test_images_without_objects(
    ssd_fast: Callable,
    tmp_path: Path,
    options: tuple[object, ...],
    line: str,
    loss: dict[str, object],
):
    root = write_voc(tmp_path / "cells", {"train": 3, "val": 1})
    empty = "<annotation><filename>scene1.png</filename></annotation>"
    (root / "Annotations/scene1.xml").write_text(empty)
    output = tmp_path / "run"
    result = ssd_fast("train", "--data", f"voc:{root}", *TINY, *options, "--output", output)
    assert result.status == 0, result.err
    assert line in " ".join(result.out.split())
    config = load_checkpoint(output / "checkpoint.pt")["model"]
    assert loss.items() <= config["loss"].items()
    for number in (0, 2):
        (root / f"Annotations/scene{number}.xml").write_text(empty.replace("1", str(number)))
    result = ssd_fast("train", "--data", f"voc:{root}", *TINY, "--output", tmp_path / "none")
    assert result.status == 2
    assert "--data: none of the 3 images of train has an object to learn from" in result.err


def test_a_full_disk_keeps_the_last_checkpoint(
    ssd_fast: Callable, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    written = 0
    real = os.write

    def write(number: int, data: memoryview) -> int:
        nonlocal written
        written += len(data)
        if written > 1_200_000:  # room for one checkpoint, not for two
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(number, data)

    monkeypatch.setattr(os, "write", write)
    arguments = ("--data", f"voc:{voc}", *TINY, "--output", tmp_path, "--save-every", 0)
    result = ssd_fast("train", *arguments)
    assert result.status == 2
    (line,) = result.err.splitlines()
    assert "checkpoint.pt: No space left on device; make room there; the file that was" in line
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "log.jsonl", "log.csv"}
    monkeypatch.undo()
    kept = load_checkpoint(tmp_path / "checkpoint.pt")["trainer"]["step"]
    assert 1 <= kept < 4
    result = ssd_fast("train", "--resume", "--output", tmp_path)
    assert result.status == 0, result.err
    assert f"Going on after step {kept} of 4" in result.out


def test_a_loss_that_stays_nan_ends_the_run(
    ssd_fast: Callable, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from ssd_fast.models.ssd import SSD

    forward = SSD.forward
    monkeypatch.setattr(SSD, "forward", lambda self, x, t=None: forward(self, x * torch.nan, t))
    arguments = ("--data", f"voc:{voc}", *TINY[:4], "--steps", 20, "--output", tmp_path)
    result = ssd_fast("train", *arguments)
    assert result.status == 2
    assert "the loss was not finite in 10 steps in a row" in result.err


def test_ctrl_c_from_outside(voc: Path, tmp_path: Path):
    command = [sys.executable, "-m", "ssd_fast.cli", "train", "--data", f"voc:{voc}"]
    command += [*map(str, TINY[:4]), "--steps", "5000", "--save-every", "0"]
    with subprocess.Popen(
        [*command, "--output", str(tmp_path)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        deadline = time.monotonic() + 120
        while not (tmp_path / "checkpoint.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err == ""
    step = load_checkpoint(tmp_path / "checkpoint.pt")["trainer"]["step"]
    assert f"Stopped and saved after step {step} of 5000" in " ".join(out.split())


def test_images_that_do_not_decode_are_left_out_and_named(
    ssd_fast: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from ssd_fast.data import BrokenSample, ShapesDataset

    class Torn(ShapesDataset):
        def __getitem__(self, index):
            if index == 1:
                raise BrokenSample(f"scenes/{len(self)}/1.jpg", "truncated")
            return super().__getitem__(index)

    def open_torn(data, image_set, class_names=None, **options):
        return Torn(4 if image_set == "train" else 3, size=64), ()

    monkeypatch.setattr("ssd_fast.cli.datasets.open_dataset", open_torn)
    result = ssd_fast("train", "--data", "shapes", *TINY, "--output", tmp_path)
    assert result.status == 0, result.err
    out = " ".join(result.out.split())
    assert "Left out, because it does not decode: scenes/4/1.jpg: truncated" in out
    assert "Broken images, whose places others took: 1" in out
    assert "Left out of validation, because it does not decode: scenes/3/1.jpg: truncated" in out
    assert json.loads((tmp_path / "metrics.json").read_text())["images"] == 2
