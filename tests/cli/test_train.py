# SPDX-License-Identifier: BSD-3-Clause
"""`ssd-fast train`: what it refuses, and which run it goes on with."""

import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from ssd_fast.engine.checkpoint import save_checkpoint
from ssd_fast.engine.distributed import World

from .conftest import TINY, stop_after

pytestmark = pytest.mark.usefixtures("no_figures")


def test_a_run_is_not_written_over(ssd_fast: Callable, tmp_path: Path):
    (tmp_path / "checkpoint.pt").write_bytes(b"precious")
    result = ssd_fast("train", "--data", "shapes", "--output", tmp_path)
    assert result.status == 2
    assert "holds a run already: add --resume" in result.err
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"precious"


def test_resuming_with_other_options_is_refused(
    ssd_fast: Callable, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stop_after(monkeypatch, 1, signal.SIGINT)
    ssd_fast("train", "--data", f"voc:{voc}", *TINY, "--output", tmp_path)
    again = ("train", "--resume", "--output", tmp_path)
    result = ssd_fast(*again, "--learning-rate", 0.1)
    assert result.status == 2
    assert "--learning-rate: the run in" in result.err
    assert "was started with 0.003, not 0.1" in result.err
    # Typed with the value that is the default, and not the run's.
    result = ssd_fast(*again, "--batch-size", 8)
    assert result.status == 2
    assert "--batch-size: the run in" in result.err
    result = ssd_fast(*again, "--data", "shapes")
    assert result.status == 2
    assert "was started on 4 images of" in result.err


def test_a_checkpoint_of_something_else_is_refused(ssd_fast: Callable, tmp_path: Path):
    save_checkpoint(tmp_path / "checkpoint.pt", {"trainer": {}})
    result = ssd_fast("train", "--resume", "--output", tmp_path)
    assert result.status == 2
    assert "no checkpoint of `ssd-fast train`: class_names, images, model, opt" in result.err
    state = {"trainer": {}, "class_names": [], "images": 1, "seconds": 0.0, "model": {}}
    save_checkpoint(tmp_path / "checkpoint.pt", {**state, "options": {"colour": "red"}})
    result = ssd_fast("train", "--resume", "--output", tmp_path)
    assert result.status == 2
    assert "another version of ssd_fast, with options that this one lacks: colour" in result.err


def test_a_torchrun_goes_on_with_its_own_run_alone(
    ssd_fast: Callable, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def launched_by(name: str) -> None:
        world = World(torch.device("cpu"), launch=name)
        monkeypatch.setattr("ssd_fast.engine.distributed.process_group", lambda: nullcontext(world))

    command = ("train", "--data", f"voc:{voc}", *TINY, "--output", tmp_path)
    launched_by("first")
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2, signal.SIGTERM)
        assert ssd_fast(*command).status == 128 + signal.SIGTERM
    for other in ("second", ""):
        launched_by(other)
        result = ssd_fast(*command)
        assert result.status == 2
        assert "holds a run already: add --resume" in result.err
    launched_by("first")
    result = ssd_fast(*command)
    assert result.status == 0, result.err
    assert "Going on after step 2 of 4" in result.out
    (tmp_path / "checkpoint.pt").write_bytes(b"precious")
    assert "holds a run already: add --resume" in ssd_fast(*command).err
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"precious"


def test_a_home_folder_that_the_shell_left(
    ssd_fast: Callable, voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = ssd_fast("train", "--data", f"voc:{voc}", *TINY, "--output", "~/run")
    assert result.status == 0, result.err
    assert (tmp_path / "run/weights.safetensors").exists()
    assert ssd_fast("train", "--resume", "--output", "~/run").status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    for arguments in (("--data", "shapes"), ("--resume",)):
        result = ssd_fast("train", *arguments, "--output", "~nosuch/run")
        assert result.status == 2
        assert "--output: ~nosuch/run: there is no home folder of this user" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data is missing"),
        (["--data", "coco:x"], "--data: x: there is no such folder"),
        (["--data", "voc:"], "--data: expected a folder after voc:"),
        (["--data", "voc:/no/such/folder"], "/no/such/folder: there is no such folder"),
        (["--data", "shapes", "--steps", "0"], "steps: expected 1 or more, got 0"),
        (["--data", "shapes", "--epochs", "0"], "--epochs: expected more than 0"),
        (["--data", "shapes", "--epochs", "1e308"], "at most 1000000, got 1e+308"),
        (["--data", "shapes", "--validate-every", "inf"], "--validate-every: expected a number"),
        (["--data", "shapes", "--validate-every", "nan"], "at the end alone, got nan"),
        (["--data", "shapes", "--save-every", "nan"], "--save-every: expected 0 seconds or more"),
        (["--data", "shapes", "--seed", str(2**64)], "--seed: expected a number of 64 bits"),
        (["--data", "shapes", "--min-negatives", "-1"], "--min-negatives: expected 0 or more"),
        (
            ["--data", "shapes", "--classification", "focal", "--min-negatives", "3"],
            "--min-negatives: the focal loss trains all background boxes, not 3",
        ),
        (["--data", "shapes", "--batch-size", "0"], "--batch-size: expected 1 or more, got 0"),
        (["--data", "shapes", "--batch-size", "1"], "batch norm cannot learn from one image"),
        (["--data", "shapes", "--width", "-1"], "width: expected a positive number"),
        (["--data", "shapes", "--priors", "yolo"], "priors: ssd300_vgg16 has the presets"),
        (["--resume"], "start a run without --resume"),
    ],
)
def test_mistakes_are_one_line(
    ssd_fast: Callable, tmp_path: Path, arguments: list[str], message: str
):
    result = ssd_fast("train", *arguments, "--output", tmp_path / "run")
    assert result.status == 2
    (line,) = result.err.splitlines()
    assert message in line
