# SPDX-License-Identifier: BSD-3-Clause
"""Runs that are killed: no torn checkpoint, and an end that is bit for bit the undisturbed one."""

import io
import json
import multiprocessing
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssd_fast.cli import main
from ssd_fast.cli.console import Console
from ssd_fast.engine.checkpoint import load_checkpoint
from ssd_fast.engine.output import locked_folder

# SGD, for the size of its state; a checkpoint after every step, so that most kills hit one.
TINY = ["--width", "0.03", "--batch-size", "2", "--precision", "float32", "--optimizer", "sgd"]
TINY += ["--warmup", "1", "--save-every", "0"]


@pytest.fixture(scope="module")
def started() -> Callable[..., multiprocessing.Process]:
    """Starts a command in a process that has everything imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "ssd_fast.cli.evaluate",
            "ssd_fast.cli.training_run",
            "ssd_fast.engine.backbone_weights",
            "ssd_fast.engine.evaluation",
            "ssd_fast.engine.plots",
            "ssd_fast.engine.trainer",
            "matplotlib.backends.backend_agg",
            "matplotlib.figure",
            "rich.progress",
            "rich.table",
            "safetensors.torch",
            "tyro",
        ]
    )

    def start(*arguments: object) -> multiprocessing.Process:
        process = context.Process(target=main, args=([str(a) for a in arguments],))
        process.start()
        return process

    return start


def finish(process: multiprocessing.Process) -> None:
    process.join(600)
    assert process.exitcode == 0


def test_killed_at_any_moment(
    started: Callable, voc: Path, tmp_path: Path, full_count: Callable[[int, int], int]
):
    kills = full_count(2, 50)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command = ["train", "--data", f"voc:{voc}", *TINY, "--steps", full_count(8, 100)]
    finish(started(*command, "--output", whole))
    chance = random.Random(0)
    checkpoint = parts / "checkpoint.pt"
    steps, unfinished = [], 0
    for kill in range(kills):
        seen = written(checkpoint)
        going_on = ["train", "--resume"] if seen else command
        process = started(*going_on, "--output", parts)
        # Every fifth dies while it starts; the others in a step or a save, most of which begin
        # within the time that they are given.
        if kill % 5 != 4:
            wait_for(lambda seen=seen: written(checkpoint) != seen, process)
        process.join(chance.uniform(0, 0.4))
        process.kill()
        process.join()
        steps.append(load_checkpoint(checkpoint)["trainer"]["step"])  # whole, or this raises
        unfinished += len(list(parts.glob(".*.part")))
    assert steps == sorted(steps)
    print(f"{kills} kills, after steps {steps}, {unfinished} of them while a file was written")
    finish(started("train", "--resume", "--output", parts))
    ends = [load_checkpoint(folder / "checkpoint.pt")["trainer"] for folder in (whole, parts)]
    assert ends[0]["step"] == ends[1]["step"]
    for part in ("model", "average"):
        for name, tensor in ends[0][part].items():
            assert torch.equal(tensor, ends[1][part][name]), name
    for name in ("log.jsonl", "log.csv"):
        assert (whole / name).read_text() == (parts / name).read_text()
    assert {path.name for path in parts.iterdir()} == {path.name for path in whole.iterdir()}


def written(path: Path) -> int:
    """When a file was written, as the system counts; 0 for never."""
    return path.stat().st_mtime_ns if path.exists() else 0


def wait_for(condition: Callable[[], bool], process: multiprocessing.Process) -> None:
    """Waits until something holds, as long as the process lives."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def a_pipe() -> tuple[int, int]:
    return os.pipe()


def a_pair_of_sockets() -> tuple[int, int]:
    """What some shells make of `|`."""
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


@pytest.mark.parametrize(
    ("argument", "connect"),
    [("--version", a_pipe), ("--help", a_pipe), ("--version", a_pair_of_sockets)],
)
def test_output_that_nobody_reads_is_no_error(argument: str, connect: Callable):
    """As of `ssd-fast info | head -1`, whose reader goes early."""
    ours, theirs = connect()
    os.close(ours)
    try:
        command = [sys.executable, "-m", "ssd_fast.cli", argument]
        result = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(theirs)
    assert (result.returncode, result.stderr) == (141, "")


def test_a_console_that_nobody_reads_leaves_the_status_to_the_command():
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    console = Console()
    console.rich.file = Gone()
    with pytest.raises(BrokenPipeError):
        console.say("on its way")


def test_output_that_is_closed_is_no_error():
    command = f"{shlex.quote(sys.executable)} -m ssd_fast.cli --help >&-"
    result = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_second_run_in_the_folder_is_refused(ssd_fast: Callable, tmp_path: Path):
    # From another process: a lock is nothing to the process that holds it.
    ours, theirs = os.pipe()
    other = os.fork()
    if other == 0:
        with locked_folder(tmp_path):
            os.write(theirs, b"locked")
            time.sleep(120)
        os._exit(1)
    try:
        assert os.read(ours, 6) == b"locked"
        (tmp_path / ".checkpoint.pt.abcd_234.part").touch()
        (tmp_path / ".film.part").touch()  # of another program
        result = ssd_fast("train", "--data", "shapes", *TINY, "--output", tmp_path)
        assert result.status == 2
        assert f"{tmp_path} is in use by another run (process {other} on " in result.err
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    # Killed, it left its file and no lock; what it had not finished writing is swept up.
    assert (tmp_path / ".lock").exists()
    with locked_folder(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == {".lock", ".film.part"}
    assert [path.name for path in tmp_path.iterdir()] == [".film.part"]


def workers_of(agent: int) -> dict[str, int]:
    """The processes that torchrun started, by rank."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    found = {}
    for child in map(int, children):
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [value[5:].decode() for value in variables if value.startswith(b"RANK=")]
        found |= dict.fromkeys(ranks, child)
    return found


def test_torchrun_starts_again_from_the_last_checkpoint(
    voc: Path, tmp_path: Path, full_count: Callable[[int, int], int]
):
    if full_count(0, 1) == 0:
        pytest.skip(
            "starts five processes: with --full (tests/engine/test_distributed.py restarts)"
        )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, "--max-restarts=1", "-m", "ssd_fast.cli", "train", "--data", f"voc:{voc}"]
    command += [*TINY, "--no-norm", "--batch-size", "4", "--steps", "12", "--output", str(tmp_path)]
    checkpoint = tmp_path / "checkpoint.pt"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}  # of which there may be one for the two
    with subprocess.Popen(command, env=hidden, **pipes) as agent:
        try:
            deadline = time.monotonic() + 120
            while not (checkpoint.exists() and load_checkpoint(checkpoint)["trainer"]["step"] > 2):
                assert agent.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            os.kill(workers_of(agent.pid)["1"], signal.SIGKILL)  # in the middle of the run
            out, err = agent.communicate(timeout=120)
        except BaseException:
            agent.terminate()  # it ends its workers; killed, it would leave them behind
            raise
    assert agent.returncode == 0, err
    assert "2 processes share the 4 images of a step" in out
    assert "Going on after step " in out
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert load_checkpoint(checkpoint)["trainer"]["step"] == 12
    assert out.count("mAP@0.5 ") == 1  # one process speaks
