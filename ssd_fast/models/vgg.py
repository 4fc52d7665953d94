# SPDX-License-Identifier: BSD-3-Clause
"""VGG16 as SSD uses it: fully convolutional, with atrous conv6 and extra maps behind conv7."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssd_fast.models.heads import xavier_uniform

__all__ = ["EXTRAS_300", "EXTRAS_512", "VGG16", "Extra", "L2Norm"]


class Extra(NamedTuple):
    """One extra feature map: a 1x1 convolution, then one that shrinks the map."""

    reduced: int
    """Channels after the 1x1 convolution."""
    channels: int
    """Channels of the map."""
    kernel_size: int
    stride: int
    padding: int


EXTRAS_300 = (
    Extra(256, 512, 3, 2, 1),  # conv8: 19 to 10
    Extra(128, 256, 3, 2, 1),  # conv9: 10 to 5
    Extra(128, 256, 3, 1, 0),  # conv10: 5 to 3
    Extra(128, 256, 3, 1, 0),  # conv11: 3 to 1
)
"""SSD300's extra maps (SSD paper, figure 2)."""

EXTRAS_512 = (
    Extra(256, 512, 3, 2, 1),  # conv8: 32 to 16
    Extra(128, 256, 3, 2, 1),  # conv9: 16 to 8
    Extra(128, 256, 3, 2, 1),  # conv10: 8 to 4
    Extra(128, 256, 3, 2, 1),  # conv11: 4 to 2
    Extra(128, 256, 4, 1, 1),  # conv12: 2 to 1
)
"""SSD512's extra maps (weiliu89/caffe, `ssd_pascal.py` at 512)."""


class L2Norm(nn.Module):
    """Scales each cell's feature vector to a learned length (ParseNet; SSD paper, section 3.1).

    The squares are summed in float32 in every dtype: float16 overflows at a length of 256.

    Args:
        channels: C.
        scale: the length at the start, for every channel.
    """

    def __init__(self, channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """The normalised map.

        Args:
            x: (B, C, H, W) of any floating dtype.

        Returns:
            (B, C, H, W) in the dtype of `x`.
        """
        unit = F.normalize(x.float(), dim=1)
        return (unit * self.weight.float()[:, None, None]).to(x.dtype)


class ConvBlock(nn.Sequential):
    """Convolution, batch norm if asked for, ReLU."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, channels, kernel_size, stride, padding, dilation, bias=not norm
        )
        if norm:
            self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)


class VGG16(nn.Module):
    """The feature maps of SSD: conv4_3 (normalised), conv7, and one map for each extra.

    A 300 x 300 input gives maps of side 38, 19, 10, 5, 3, 1, which takes pool3 with ceiling (75 to
    38), pool5 3 x 3 with stride 1, and conv6 with dilation 6 (SSD paper, sections 2.1 and 3).
    Convolutions start as torchvision's: VGG's own Kaiming-normal, the others Xavier-uniform.

    Args:
        extras: the maps behind conv7.
        width: factor on the number of channels of every layer, rounded to a multiple of 8, at
            least 8.
        norm: batch norm after each convolution, which then has no bias.

    Raises:
        ValueError: a width that is not positive.
    """

    def __init__(
        self, extras: Sequence[Extra] = EXTRAS_300, *, width: float = 1.0, norm: bool = False
    ) -> None:
        super().__init__()
        if not 0 < width < math.inf:
            raise ValueError(f"width: expected a positive number, got {width}")

        def scaled(channels: int) -> int:
            return max(8, 8 * round(channels * width / 8))

        def stage(*channels: int) -> nn.Sequential:
            blocks = [ConvBlock(i, o, padding=1, norm=norm) for i, o in pairwise(channels)]
            return nn.Sequential(*blocks)

        c1, c2, c3, c4, c7 = (scaled(c) for c in (64, 128, 256, 512, 1024))
        self.conv1 = stage(3, c1, c1)
        self.pool1 = nn.MaxPool2d(2, stride=2)
        self.conv2 = stage(c1, c2, c2)
        self.pool2 = nn.MaxPool2d(2, stride=2)
        self.conv3 = stage(c2, c3, c3, c3)
        self.pool3 = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.conv4 = stage(c3, c4, c4, c4)
        self.l2norm = L2Norm(c4)
        self.pool4 = nn.MaxPool2d(2, stride=2)
        self.conv5 = stage(c4, c4, c4, c4)
        self.pool5 = nn.MaxPool2d(3, stride=1, padding=1)
        self.conv6 = ConvBlock(c4, c7, padding=6, dilation=6, norm=norm)
        self.conv7 = ConvBlock(c7, c7, 1, norm=norm)
        self.extras = nn.ModuleList()
        self.out_channels = [c4, c7]
        for extra in extras:
            reduced, channels = scaled(extra.reduced), scaled(extra.channels)
            shrink = ConvBlock(
                reduced,
                channels,
                extra.kernel_size,
                stride=extra.stride,
                padding=extra.padding,
                norm=norm,
            )
            reduce = ConvBlock(self.out_channels[-1], reduced, 1, norm=norm)
            self.extras.append(nn.Sequential(reduce, shrink))
            self.out_channels.append(channels)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for part in (self.conv6, self.conv7, self.extras):
            xavier_uniform(part)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The feature maps.

        Args:
            x: (B, 3, S, S) normalised images.

        Returns:
            A list of (B, C, H, W), from fine to coarse; `out_channels` are their C.
        """
        x = self.pool1(self.conv1(x))
        x = self.pool2(self.conv2(x))
        x = self.pool3(self.conv3(x))
        x = self.conv4(x)
        maps = [self.l2norm(x)]
        x = self.pool5(self.conv5(self.pool4(x)))
        x = self.conv7(self.conv6(x))
        maps.append(x)
        for extra in self.extras:
            x = extra(x)
            maps.append(x)
        return maps
