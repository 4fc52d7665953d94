# SPDX-License-Identifier: BSD-3-Clause
"""Several processes: shares, and two of them under torchrun against one alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ssd_fast.data import ShapesDataset
from ssd_fast.engine.distributed import World, process_group
from ssd_fast.engine.distributed_evaluation import detect_together
from ssd_fast.engine.precision import choose_precision
from ssd_fast.engine.trainer import Trainer, TrainingOptions

CPU = torch.device("cpu")
SCENES = ShapesDataset(4, size=64)


def torchrun(*arguments: object) -> list[str]:
    """A command line of two processes on this machine."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return [*launch, "--max-restarts=1", *map(str, arguments)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of two processes found, after one of them had died at its first start."""
    folder = tmp_path_factory.mktemp("two")
    script = Path(__file__).with_name("two_processes.py")
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # of which there may be one for the two
    command = torchrun(script, folder)
    with subprocess.Popen(command, env=hidden, text=True, stderr=subprocess.PIPE) as process:
        try:
            _, error = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.terminate()  # it ends its processes; killed, it would leave them behind
            raise
    assert process.returncode == 0, error
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_processes_that_are_started_again_find_each_other(two: list[dict]):
    first, second = two[0]["launches"]
    assert first == second != ""
    assert two[1]["launches"] == [first, second]


@pytest.mark.parametrize("batch_size", [8, 5])
def test_two_processes_train_as_one(two: list[dict], batch_size: int):
    assert [found["size"] for found in two] == [2, 2]
    found = two[0][f"against one, {batch_size}"]
    assert found["moved"] > 1e-4
    assert found["parameters"] <= 1e-6
    assert found["losses"] <= 1e-5


def test_what_is_saved_does_not_know_of_processes(two: list[dict]):
    assert two[0]["saved normalizer"] == "positives"


def test_a_shared_evaluation_is_that_of_one_process(two: list[dict]):
    merged, whole = two[0]["evaluations"]
    assert merged == whole
    assert merged["images"] == 21
    assert "evaluations" not in two[1]


def test_both_skip_what_is_not_finite_in_one(two: list[dict]):
    for found in two:
        assert found["skipped"] == [False, True, False]
        assert found["finite"]
    assert two[0]["offender"][1].startswith("image ")
    assert two[0]["offender"][0] == ""


def test_broken_boxes_are_those_of_all_and_counted_once(two: list[dict]):
    assert [found["dropped"] for found in two] == [[5, 10], [5, 10]]


@pytest.mark.parametrize(("count", "size"), [(8, 2), (7, 3), (3, 3), (100, 7), (2, 3)])
def test_shares_are_everything_once(count: int, size: int):
    shares = [World(CPU, rank, size).share(count) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("count", "size"), [(0, 2), (5, 2), (16, 2), (45, 2), (100, 3)])
def test_batches_are_those_of_one_process(count: int, size: int):
    alone = World(CPU).batches(count, 16)
    assert alone == list(range(count))
    batches = [alone[i : i + 16] for i in range(0, count, 16)]
    for rank in range(size):
        share = World(CPU, rank, size).batches(count, 16)
        assert share == [i for batch in batches[rank::size] for i in batch]


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_no_image_is_refused(small_detector, batch_size: int):
    world, precision = World(CPU), choose_precision(CPU, "float32")
    with pytest.raises(ValueError, match=f"^batch_size: expected 1 or more, got {batch_size}$"):
        detect_together(small_detector(), SCENES, world, precision=precision, batch_size=batch_size)


def test_a_process_alone():
    with process_group() as world:
        assert (world.rank, world.size, world.is_main) == (0, 1, True)
        layer = nn.Linear(1, 1)
        assert world.parallel(layer) is layer
        assert world.any(True)
        assert not world.launch
        assert world.gather([1, 2]) == [[1, 2]]


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    message = "nproc-per-node: process 1 on this machine has no GPU of its own, for there are 1;"
    with pytest.raises(ValueError, match=message), process_group():
        pass


@pytest.mark.parametrize(
    ("batch_size", "size", "message"),
    [
        (2, 3, "batch_size: 2 images a step do not go round 3 processes; take 3 or more"),
        (3, 2, "batch norm cannot learn from one image; take 4 or more, or norm=False"),
    ],
)
def test_too_few_images_are_refused(small_detector, batch_size: int, size: int, message: str):
    options = TrainingOptions(steps=1, batch_size=batch_size)
    precision = choose_precision(CPU, "float32")
    with pytest.raises(ValueError, match=message):
        Trainer(small_detector(), SCENES, options, precision=precision, world=World(CPU, 0, size))


def test_a_loss_that_counts_by_process_is_refused(small_detector):
    model = small_detector()
    model.loss.options["normalizer"] = "none"
    precision = choose_precision(CPU, "float32")
    options = TrainingOptions(steps=1, batch_size=4)
    with pytest.raises(ValueError, match="normalizer: 'none' depends on how many processes train"):
        Trainer(model, SCENES, options, precision=precision, world=World(CPU, 0, 2))
