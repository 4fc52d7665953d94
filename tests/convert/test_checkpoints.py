# SPDX-License-Identifier: BSD-3-Clause
"""convert.read_weights: weights in files of any kind, and files that hold none."""

import random
import struct

import pytest
import torch

from ssd_fast import convert


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_weights_are_found_in_a_checkpoint(key, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"epoch": 3, key: {"a": torch.ones(2)}, "optimizer": {"lr": 0.1}}, path)
    assert convert.read_weights(path)["a"].equal(torch.ones(2))


@pytest.mark.parametrize(
    "around",
    [
        {"best_ap": torch.tensor(0.5)},
        {"state_dict": None},
        {"state_dict": {}, "epoch": 3},
        {"state_dict": {"lr": 0.1}, "best_ap": torch.tensor(0.5)},
        {"weights": torch.ones(80)},
    ],
    ids=lambda around: ",".join(around),
)
def test_a_state_dict_goes_before_what_is_beside_it(around, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(around | {"model": {"a": torch.ones(2)}}, path)
    assert list(convert.read_weights(path)) == ["a"]


def test_safetensors(tmp_path):
    save_file = pytest.importorskip("safetensors.torch", reason="needs safetensors").save_file
    save_file({"a": torch.ones(2)}, tmp_path / "weights.safetensors")
    assert convert.read_weights(tmp_path / "weights.safetensors")["a"].equal(torch.ones(2))
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"broken.safetensors is damaged"):
        convert.read_weights(tmp_path / "broken.safetensors")


class _Evil:
    """Runs code when it is unpickled the unsafe way."""

    ran = False

    def __reduce__(self):
        return setattr, (_Evil, "ran", True)


def test_a_pickle_that_runs_code_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "whole_model.pth"
    torch.save({"model": _Evil()}, path)
    with pytest.raises(ValueError, match=r"run code out of the file.*torch.save\(model.state_dict"):
        convert.read_weights(path)
    assert not _Evil.ran


def test_files_that_hold_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*nothing\.pth"):
        convert.read_weights(tmp_path / "nothing.pth")
    (tmp_path / "noise.pth").write_bytes(b"\x00" * 100)
    with pytest.raises(ValueError, match="damaged"):
        convert.read_weights(tmp_path / "noise.pth")
    torch.save({"epoch": 3}, tmp_path / "counter.pth")
    with pytest.raises(ValueError, match=r"holds no state dict.*a dictionary of 'epoch'"):
        convert.read_weights(tmp_path / "counter.pth")


def test_a_checkpoint_that_contains_itself(tmp_path):
    endless: dict[str, object] = {"epoch": 3}
    endless |= dict.fromkeys(("state_dict", "model", "net"), endless)
    torch.save(endless, tmp_path / "endless.pth")
    with pytest.raises(ValueError, match=r"endless.pth holds no state dict.*'state_dict', 'model'"):
        convert.read_weights(tmp_path / "endless.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_raise_one_error(zipped, tmp_path):
    """Bytes changed, files cut short: the tensors, or the one error that names the file."""
    path, rng = tmp_path / "damaged.pth", random.Random(0)
    torch.save(
        {"a": torch.ones(8), "b": torch.ones(2, 2)}, path, _use_new_zipfile_serialization=zipped
    )
    whole = path.read_bytes()
    refused = []
    for _ in range(200):
        damaged = bytearray(whole[: rng.choice([len(whole), rng.randrange(len(whole))])])
        for _ in range(rng.randrange(4) if damaged else 0):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            convert.read_weights(path)
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 50
    assert all("damaged.pth" in message for message in refused)


@pytest.mark.parametrize("error", [AssertionError, struct.error, IndexError, RecursionError])
def test_whatever_torch_load_raises_is_one_error(error, tmp_path, monkeypatch):
    """What damaged files led to, among others."""
    (tmp_path / "a.pth").write_bytes(b"a")

    def load(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(ValueError, match=r"a\.pth is damaged or was not written by torch\.save"):
        convert.read_weights(tmp_path / "a.pth")
