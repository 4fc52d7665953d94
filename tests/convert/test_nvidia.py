# SPDX-License-Identifier: BSD-3-Clause
"""convert: NVIDIA's SSD300 in an SSD around the same backbone gives its outputs."""

import re

import pytest
import torch
from torch import Tensor, nn

import ssd_fast
from ssd_fast import convert
from ssd_fast.models.ssd import SSD

CLASSES, WIDTH = 5, 6
BOXES, CELLS = (4, 6, 6, 6, 4, 4), (38, 19, 10, 5, 3, 1)


class Backbone(nn.Module):
    """The modules of NVIDIA's SSD300 below the heads, by their names; thin, and no ResNet."""

    out_channels = (WIDTH,) * 6

    def __init__(self) -> None:
        super().__init__()
        self.feature_extractor = nn.Module()
        self.feature_extractor.feature_provider = nn.Sequential(
            nn.Conv2d(3, WIDTH, 7, stride=8, padding=3, bias=False), nn.BatchNorm2d(WIDTH)
        )
        strides = ((2, 1), (2, 1), (2, 1), (1, 0), (1, 0))
        self.additional_blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, stride, padding, bias=False), nn.ReLU())
            for stride, padding in strides
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.feature_extractor.feature_provider(x)]
        for block in self.additional_blocks:
            maps.append(block(maps[-1]))
        return maps


class NvidiaSSD300(Backbone):
    """With the heads and the outputs of NVIDIA's ssd/model.py: (B, 4, P) and (B, C, P)."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.ModuleList(nn.Conv2d(WIDTH, a * 4, 3, padding=1) for a in BOXES)
        self.conf = nn.ModuleList(nn.Conv2d(WIDTH, a * CLASSES, 3, padding=1) for a in BOXES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = super().forward(x)
        locs, confs = (
            torch.cat([m(x).view(len(x), k, -1) for x, m in zip(maps, heads, strict=True)], 2)
            for heads, k in ((self.loc, 4), (self.conf, CLASSES))
        )
        return locs, confs


def as_rows(outputs: Tensor) -> Tensor:
    """(B, K, P) with a level's boxes first, as (B, P, K) with a cell's boxes together."""
    levels = outputs.split([a * n * n for a, n in zip(BOXES, CELLS, strict=True)], dim=2)
    rows = [
        level.unflatten(2, (a, n * n)).permute(0, 3, 2, 1).flatten(1, 2)
        for level, a, n in zip(levels, BOXES, CELLS, strict=True)
    ]
    return torch.cat(rows, dim=1)


@pytest.fixture
def theirs() -> NvidiaSSD300:
    torch.manual_seed(0)
    return NvidiaSSD300().eval()


def test_gives_its_outputs(theirs, tmp_path):
    """Through a file as their training script writes it."""
    torch.save({"epoch": 3, "model": theirs.state_dict()}, tmp_path / "nvidia.pt")
    weights = convert.read_weights(tmp_path / "nvidia.pt")
    model = SSD(
        Backbone(),
        CLASSES,
        priors=ssd_fast.priors.ssd300("nvidia"),
        boxes_per_cell=BOXES,
        image_size=300,
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
    ).eval()
    model.load_state_dict(convert.import_nvidia_state_dict(weights))
    images = torch.rand(2, 3, 300, 300)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    with torch.no_grad():
        expected = theirs((images - mean) / std)
        for ours, other in zip(model.head_outputs(images), expected, strict=True):
            torch.testing.assert_close(ours, as_rows(other), rtol=1e-4, atol=1e-5)


def test_everything_that_is_wrong_is_listed_at_once(theirs):
    weights = theirs.state_dict()
    del weights["loc.4.bias"], weights["conf.5.weight"]
    weights["conf.1.bias"] = torch.zeros(31)
    weights["loc.2.weight"] = torch.zeros(24, WIDTH + 1, 3, 3)
    weights["conf.6.bias"] = torch.zeros(1)
    with pytest.raises(ValueError, match="not an SSD300 as NVIDIA names it") as error:
        convert.import_nvidia_state_dict(weights)
    for part in (
        "missing 'loc.4.bias'",
        "missing 'conf.5.weight'",
        "'conf.1.bias' is (31,), expected (30,)",
        "'loc.2.weight' is (24, 7, 3, 3), expected (24, 6, 3, 3)",
        "left over 'conf.6.bias'",
    ):
        assert part in str(error.value)


def test_as_a_vgg_it_is_refused_with_the_way_out(theirs):
    message = re.escape("NVIDIA's SSD300, a ResNet") + ".*import_nvidia_state_dict"
    with pytest.raises(ValueError, match=message):
        convert.load_ssd300(theirs.state_dict())
