# SPDX-License-Identifier: BSD-3-Clause
"""A backbone starts with the weights that were asked for, or the reason why not is one line."""

from pathlib import Path
from types import ModuleType
from urllib.error import URLError

import pytest
import torch
from torch import Tensor

from ssd_fast.convert.layouts import LAYOUTS, shapes
from ssd_fast.engine.backbone_weights import read_backbone
from ssd_fast.engine.weights import save_weights
from ssd_fast.models import SSD, ssd300_vgg16

STAGES = [f"conv{stage}.{i}.conv" for stage, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(n)]
NUMBERS = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
IMAGENET = "VGG16_Weights.IMAGENET1K_FEATURES"


def slim(seed: int, num_classes: int = 4) -> SSD:
    torch.manual_seed(seed)
    return ssd300_vgg16(num_classes, width=0.03)


def numbered(model: SSD, names: dict[str, str]) -> dict[str, Tensor]:
    own = model.backbone.state_dict()
    return {
        f"{theirs}.{part}": own[f"{ours}.{part}"]
        for ours, theirs in names.items()
        for part in ("weight", "bias")
    }


def torchvision_names() -> dict[str, str]:
    return dict(zip(STAGES, [f"features.{number}" for number in NUMBERS], strict=True))


def same(first: SSD, second: SSD) -> set[str]:
    """The backbone's layers whose weights are equal."""
    theirs = second.backbone.state_dict()
    return {
        name.removesuffix(".weight")
        for name, tensor in first.backbone.state_dict().items()
        if name.endswith("conv.weight") and torch.equal(tensor, theirs[name])
    }


@pytest.mark.parametrize(
    ("names", "filled"),
    [
        (torchvision_names(), set(STAGES)),
        (
            {name: value.removeprefix("features.") for name, value in torchvision_names().items()}
            | {"conv6.conv": "31", "conv7.conv": "33"},
            {*STAGES, "conv6.conv", "conv7.conv"},
        ),
    ],
    ids=["vgg16", "reducedfc"],
)
def test_a_state_dict_of_vgg16(tmp_path: Path, names: dict[str, str], filled: set[str]):
    source, model = slim(1), slim(2)
    classifier = {"classifier.0.weight": torch.full((1, 1), torch.nan)}
    torch.save(numbered(source, names) | classifier, tmp_path / "vgg16.pth")
    weights = read_backbone(tmp_path / "vgg16.pth")
    assert weights.pixels == {}
    weights.load_into(model)
    assert same(model, source) == filled


def test_a_detector_gives_its_backbone_and_no_head(tmp_path: Path):
    source, model = slim(1), slim(2, num_classes=9)
    save_weights(tmp_path / "weights.safetensors", source, ("a", "b", "c"))
    read_backbone(tmp_path / "weights.safetensors").load_into(model)
    own = model.backbone.state_dict()
    assert all(torch.equal(own[name], t) for name, t in source.backbone.state_dict().items())


def test_a_detector_says_what_pixels_it_was_trained_on(tmp_path: Path):
    pixels = {"image_mean": (0.5, 0.25, 0.125), "image_std": (0.5, 1.0, 2.0)}
    source = ssd300_vgg16(4, width=0.03, **pixels)
    save_weights(tmp_path / "weights.safetensors", source, ("a", "b", "c"))
    assert read_backbone(tmp_path / "weights.safetensors").pixels == pixels
    # A state dict alone does not say them, unless its layout does.
    torch.save(source.state_dict(), tmp_path / "own.pth")
    assert read_backbone(tmp_path / "own.pth").pixels == {}
    layout = LAYOUTS["torchvision"]
    theirs = {
        layout.names[name]: torch.zeros(()).expand(shape) for name, shape in shapes(4).items()
    }
    torch.save(theirs, tmp_path / "torchvision.pth")
    found = read_backbone(tmp_path / "torchvision.pth").pixels
    assert found == {"image_mean": layout.image_mean, "image_std": layout.image_std}


def test_another_width_is_named(tmp_path: Path):
    torch.save(numbered(slim(1), torchvision_names()), tmp_path / "vgg16.pth")
    wide = ssd300_vgg16(4, width=0.125)
    message = r"vgg16.pth does not fit the model: conv2.0.conv.weight \(8, 8, 3, 3\), .*19 more"
    with pytest.raises(ValueError, match=message):
        read_backbone(tmp_path / "vgg16.pth").load_into(wide)
    normed = ssd300_vgg16(4, width=0.03, norm=True)
    with pytest.raises(ValueError, match=r"conv1.0.conv.bias \(8,\), not there.*no batch norm"):
        read_backbone(tmp_path / "vgg16.pth").load_into(normed)


def test_other_files_are_refused(tmp_path: Path):
    torch.save({"layer1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"resnet.pth holds no weights of VGG16.*'layer1.weight'"):
        read_backbone(tmp_path / "resnet.pth")
    with pytest.raises(FileNotFoundError, match="no weights at"):
        read_backbone(tmp_path / "nothing.pth")


def test_torchvisions_enum(torchvision: ModuleType, monkeypatch: pytest.MonkeyPatch):
    from torchvision.models import _api

    source = numbered(slim(1), torchvision_names())
    monkeypatch.setattr(_api, "load_state_dict_from_url", lambda *_, **__: source)
    weights = read_backbone(IMAGENET)
    model = slim(2)
    weights.load_into(model)
    assert same(model, slim(1)) == set(STAGES)
    # These were trained on the pixels that this package's SSD has by default, the others not.
    assert weights.pixels["image_mean"] == tuple(model.transform.image_mean)
    assert weights.pixels["image_std"] == pytest.approx(model.transform.image_std, rel=1e-5)
    other = read_backbone("VGG16_Weights.IMAGENET1K_V1")
    assert other.pixels["image_mean"] == (0.485, 0.456, 0.406)


def test_no_network_is_one_clear_error(torchvision: ModuleType, monkeypatch: pytest.MonkeyPatch):
    from torchvision.models import _api

    def offline(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(_api, "load_state_dict_from_url", offline)
    message = f"cannot download {IMAGENET} from https.*not known.*name the file, or name none"
    with pytest.raises(ConnectionError, match=message):
        read_backbone(IMAGENET)


def test_an_unknown_enum_is_refused(torchvision: ModuleType):
    with pytest.raises(ValueError, match=r"expected a file, VGG16_Weights.IMAGENET1K_V1, .*V9"):
        read_backbone("VGG16_Weights.IMAGENET1K_V9")
