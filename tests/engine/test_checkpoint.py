# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints survive a full disk, and a damaged one is named, not run."""

import errno
import os
import pickle
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssd_fast.engine.checkpoint import load_checkpoint, save_checkpoint
from ssd_fast.engine.output import locked_folder


def test_round_trip(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    state = {"step": 3, "tensors": [torch.arange(5), torch.ones(2, 2).bfloat16()], "name": "a"}
    save_checkpoint(path, state)
    loaded = load_checkpoint(path)
    assert loaded["step"] == 3
    assert loaded["name"] == "a"
    for mine, theirs in zip(state["tensors"], loaded["tensors"], strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})

    def full(number: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left on device; make room there; the file"):
            save_checkpoint(path, {"step": 2, "tensor": torch.zeros(10_000)})
    assert load_checkpoint(path)["step"] == 1


def test_a_missing_checkpoint_says_what_to_do(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="start a run without --resume"):
        load_checkpoint(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("length", [0, 10, 500])
def test_a_torn_checkpoint_is_named(tmp_path: Path, length: int):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"tensor": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged or no checkpoint"):
        load_checkpoint(path)


def test_flipped_bits_are_never_loaded(tmp_path: Path, full_count: Callable[[int, int], int]):
    path = tmp_path / "checkpoint.pt"
    tensor = torch.arange(400.0)
    save_checkpoint(path, {"step": 7, "tensor": tensor})
    whole = path.read_bytes()
    chance = random.Random(0)

    def flip(position: int) -> None:
        torn = bytearray(whole)
        torn[position] ^= 1 << chance.randrange(8)
        path.write_bytes(torn)

    flip(whole.index(tensor.numpy().tobytes()) + 100)
    with pytest.raises(ValueError, match=r"is damaged .*: the checksum of .* is wrong"):
        load_checkpoint(path)
    refused = 0
    for position in chance.sample(range(len(whole)), full_count(200, 3000)):
        flip(position)
        try:
            state = load_checkpoint(path)
        except ValueError:
            refused += 1
        else:  # the bit was in the padding, or in a header that nobody reads
            assert state["step"] == 7
            assert torch.equal(state["tensor"], tensor)
    assert refused > 50


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def test_code_in_a_file_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps(_Payload(), protocol=2))
    with pytest.raises(ValueError, match="is damaged or no checkpoint"):
        load_checkpoint("checkpoint.pt")
    torch.save(_Payload(), tmp_path / "zipped.pt")
    with pytest.raises(ValueError, match="is damaged or no checkpoint"):
        load_checkpoint("zipped.pt")
    assert not Path("ran").exists()


def test_other_formats_are_refused(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": 99}, path)
    with pytest.raises(ValueError, match="checkpoint format 99"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="is no checkpoint"):
        load_checkpoint(path)


def test_killed_while_it_writes(tmp_path: Path, full_count: Callable[[int, int], int]):
    chance = random.Random(0)
    path = tmp_path / "checkpoint.pt"
    last, torn = 0, 0
    for _ in range(full_count(12, 500)):
        child = os.fork()
        if child == 0:
            step = last
            while True:  # no tensors: their threads do not survive a fork
                step += 1
                save_checkpoint(path, {"step": step, "text": str(step % 10) * 1_000_000})
        time.sleep(chance.uniform(0.01, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        torn += len(list(tmp_path.glob(".*.part")))
        with locked_folder(tmp_path):
            assert not list(tmp_path.glob(".*.part"))
        if path.exists():
            state = load_checkpoint(path)
            assert state["text"] == str(state["step"] % 10) * 1_000_000
            assert state["step"] >= last
            last = state["step"]
    assert last > 0
    assert torn > 0  # or no kill came where it matters
    print(f"{torn} kills in the middle of a file, {last} files written")
