# SPDX-License-Identifier: BSD-3-Clause
"""A detector small enough to train in milliseconds."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ssd_fast.engine.initialisation import quiet_heads
from ssd_fast.models.ssd import SSD
from ssd_fast.priors import PriorBoxes


class Maps(nn.Module):
    """A backbone of two maps."""

    out_channels = (8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=8, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.coarse = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.fine(x)
        return [fine, self.coarse(fine)]


@pytest.fixture(scope="session")
def small_detector() -> Callable[[], SSD]:
    """Makes the same new detector of 3 classes for 64 x 64 images at every call."""

    def make() -> SSD:
        torch.manual_seed(0)
        grid = PriorBoxes(64, (8, 4), (12, 24), (20, 40), ((2,), (2,)))
        boxes_per_cell = grid.boxes_per_cell
        model = SSD(Maps(), 4, priors=grid(), boxes_per_cell=boxes_per_cell, image_size=64)
        quiet_heads(model)
        return model

    return make
