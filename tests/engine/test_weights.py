# SPDX-License-Identifier: BSD-3-Clause
"""A weights file needs nothing beside it, and a wrong one is named."""

from pathlib import Path

import pytest
import torch

from ssd_fast.engine.weights import load_weights, save_weights
from ssd_fast.models import ssd300_vgg16

NAMES = ("red cell", "white cell")


def make(path: Path) -> Path:
    torch.manual_seed(0)
    save_weights(path, ssd300_vgg16(3, width=0.03, norm=True, priors="coco"), NAMES)
    return path


def test_a_file_holds_the_model_whole(tmp_path: Path):
    torch.manual_seed(0)
    model = ssd300_vgg16(3, width=0.03, norm=True, priors="coco", score_threshold=0.3).eval()
    save_weights(tmp_path / "w.safetensors", model, NAMES)
    loaded, names = load_weights(tmp_path / "w.safetensors")
    assert names == NAMES
    assert loaded.config == model.config
    assert not loaded.training
    image = torch.rand(1, 3, 300, 300)
    for mine, theirs in zip(model.head_outputs(image), loaded.head_outputs(image), strict=True):
        # The loaded one is channels_last: its convolutions sum in another order.
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


def test_names_must_fit_the_model(tmp_path: Path):
    with pytest.raises(ValueError, match=r"class_names: expected 2, .* got 1"):
        save_weights(tmp_path / "w", ssd300_vgg16(3, width=0.03), ("one",))
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*w\.safetensors"):
        load_weights(tmp_path / "w.safetensors")
    with pytest.raises(FileNotFoundError, match=r"folder, .* such as .*weights\.safetensors"):
        load_weights(tmp_path)


@pytest.mark.parametrize("keep", [0, 6, 300, -4])
def test_a_torn_file_is_named(tmp_path: Path, keep: int):
    path = make(tmp_path / "w.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"w\.safetensors is damaged or no safetensors file"):
        load_weights(path)


def test_a_file_of_pytorch_is_shown_its_reader(tmp_path: Path):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth is damaged .*; .* ssd_fast\.convert reads"):
        load_weights(tmp_path / "other.pth")


def test_a_stranger_is_named(tmp_path: Path):
    from safetensors.torch import save_file

    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="has no ssd_fast config inside"):
        load_weights(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "has a config that this version cannot read"),
        ('{"format": 9}', "weights format 9, this version of ssd_fast reads format 1"),
        ('{"format": 1, "class_names": [], "model": {"architecture": "yolo"}}', "yolo"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(tmp_path: Path, config: str, message: str):
    from safetensors.torch import save_file

    path = tmp_path / "w.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata={"ssd_fast": config})
    with pytest.raises(ValueError, match=message):
        load_weights(path)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = make(tmp_path / "w.safetensors")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors.pop("backbone.conv1.0.conv.weight")
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=r"does not hold the tensors of its own config"):
        load_weights(path)
