# SPDX-License-Identifier: BSD-3-Clause
"""Random colours of a training sample: Caffe's numbers as one linear map, and torchvision's steps.

Pixels go through them after the resize, so that there are few of them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Steps", "distort_affine", "distort_in_steps", "draw_steps", "thumbnail"]

_GREY = (0.2989, 0.587, 0.114)  # what torchvision weighs red, green and blue with
_THUMBNAIL = 64


class Steps(NamedTuple):
    """How much of each of torchvision's steps, in their order; contrast may come late instead.

    Attributes:
        brightness: factor of all channels.
        contrast: factor of the distance to the mean grey of the image.
        saturation: factor of the distance to the grey of each pixel.
        hue: shift, as a share of the circle.
        contrast_first: whether contrast comes before saturation, or after hue.
        order: channel i of the result is `order[i]` of what the steps before made.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    contrast_first: bool = True
    order: tuple[int, int, int] = (0, 1, 2)


def distort_affine(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness up to 32 of 255, contrast and saturation 0.5 to 1.5, hue up to 18 degrees.

    Each in half of the images, with the numbers of Caffe's `ssd_pascal.py`. All four are linear
    maps of RGB here, so they are one: hue turns and saturation scales colours about the grey axis.

    Args:
        pixels: (3, H, W) uint8.
        generator: where the draws come from.

    Returns:
        (3, H, W) uint8.
    """
    brightness, contrast, saturation, hue = _draw(generator)
    factor = 1 + 0.5 * contrast
    saturation = 1 + 0.5 * saturation
    grey = torch.full((3, 3), 1 / 3, dtype=torch.float32)
    matrix = factor * ((1 - saturation) * grey + saturation * _turn(math.radians(18) * hue))
    offset = torch.full((3, 1), factor * 32 * brightness, dtype=torch.float32)
    colours = torch.addmm(offset, matrix, pixels.reshape(3, -1).float())
    return _to_bytes(colours.round_().clamp_(0, 255)).view_as(pixels)


def draw_steps(generator: torch.Generator) -> Steps:
    """What `torchvision.transforms.v2.RandomPhotometricDistort` draws by default.

    Args:
        generator: where the draws come from.

    Returns:
        Brightness 0.875 to 1.125, contrast and saturation 0.5 to 1.5, hue up to 0.05 of the circle,
        and another order of the channels: each in half of the cases.
    """
    brightness, contrast, saturation, hue = _draw(generator)
    first, permuted = (torch.rand(2, generator=generator, dtype=torch.float32) < 0.5).tolist()
    red, green, blue = torch.randperm(3, generator=generator).tolist()
    return Steps(
        1 + 0.125 * brightness,
        1 + 0.5 * contrast,
        1 + 0.5 * saturation,
        0.05 * hue,
        first,
        (red, green, blue) if permuted else (0, 1, 2),
    )


def distort_in_steps(pixels: Tensor, whole: Tensor, steps: Steps) -> Tensor:
    """What `torchvision.transforms.v2.RandomPhotometricDistort` does to bytes.

    Each step ends in whole numbers, rounded down.

    Args:
        pixels: (3, H, W) uint8.
        whole: (3, h, w) uint8, from the image that `pixels` are a part of (see `thumbnail`):
            contrast is about its mean grey at that step, so it goes the same way.
        steps: how much of each.

    Returns:
        (3, H, W) uint8.
    """
    rest = whole[0].numel()
    columns = torch.cat([pixels.reshape(3, -1), whole.reshape(3, -1)], dim=1).float()
    if steps.brightness != 1:
        columns = columns.mul_(steps.brightness).clamp_(max=255).floor_()
    if steps.contrast != 1 and steps.contrast_first:
        columns = _contrast(columns, rest, steps.contrast)
    if steps.saturation != 1:
        grey = _grey(columns)
        columns = columns.mul_(steps.saturation).add_(grey, alpha=1 - steps.saturation)
        columns = columns.clamp_(0, 255).floor_()
    if steps.hue:
        columns = _shift_hue(columns, steps.hue)
    if steps.contrast != 1 and not steps.contrast_first:
        columns = _contrast(columns, rest, steps.contrast)
    if steps.order != (0, 1, 2):
        columns = columns[list(steps.order)]
    return _to_bytes(columns[:, :-rest]).view_as(pixels)


def thumbnail(image: Tensor) -> Tensor:
    """Some pixels of an image, evenly spread, for its mean.

    Args:
        image: (3, H, W).

    Returns:
        (3, h, w), h and w from 1 to 127.
    """
    down, across = (max(side // _THUMBNAIL, 1) for side in image.shape[1:])
    return image[:, ::down, ::across]


def _draw(generator: torch.Generator) -> list[float]:
    """Four strengths in [-1, 1], each 0 in half of the cases."""
    coins, draws = torch.rand(2, 4, generator=generator, dtype=torch.float32).tolist()
    return [2 * draw - 1 if coin < 0.5 else 0.0 for coin, draw in zip(coins, draws, strict=True)]


def _grey(columns: Tensor) -> Tensor:
    """(1, n) whole numbers."""
    return (columns.new_tensor([_GREY]) @ columns).floor_()


def _contrast(columns: Tensor, rest: int, factor: float) -> Tensor:
    """Scaled about the mean grey of the last `rest` columns."""
    mean = float(_grey(columns[:, -rest:]).mean())
    return columns.mul_(factor).add_((1 - factor) * mean).clamp_(0, 255).floor_()


def _shift_hue(columns: Tensor, shift: float) -> Tensor:
    """Turns the hue by `shift` of the circle, value and saturation of HSV as they were.

    The channels from hue without the six cases: value - chroma * clamp(min(k, 4 - k), 0, 1) with
    k = (n + 6 hue) mod 6, n = 5, 3, 1 for red, green, blue. As 6 hue is between -1 and 5 and the
    shift less than one sixth, min(k, 4 - k) is 2 - ||n + 6 hue - 5| - 3| wherever it is above 0.
    In place, because new memory costs more here than arithmetic.
    """
    red, green, blue = columns
    value, low = columns.amax(0), columns.amin(0)
    chroma = value - low
    scale = low.copy_(chroma).clamp_(min=1).reciprocal_()  # grey has no hue, and any will do
    sixths = (red - green).mul_(scale).add_(4)
    other = (blue - red).mul_(scale).add_(2)
    torch.where(value == green, other, sixths, out=sixths)
    torch.sub(green, blue, out=other).mul_(scale)
    torch.where(value == red, other, sixths, out=sixths)
    fall = torch.add(
        sixths, columns.new_tensor([[0.0], [-2.0], [-4.0]]).add_(6 * shift), out=columns
    )
    fall.abs_().sub_(3).abs_().neg_().add_(2).clamp_(0, 1)
    # Whole numbers as torchvision makes them of [0, 1]: 255.999 times, rounded down.
    return fall.mul_(chroma).neg_().add_(value).mul_(255.999 / 255).floor_()


def _to_bytes(colours: Tensor) -> Tensor:
    """Whole numbers as uint8, by way of int16: the direct conversion is not vectorised."""
    return colours.to(torch.int16).to(torch.uint8)


def _turn(angle: float) -> Tensor:
    """The rotation of RGB about its grey axis, (3, 3), by Rodrigues' formula."""
    cos, sin = math.cos(angle), math.sin(angle) / math.sqrt(3)
    diagonal, after, before = cos + (1 - cos) / 3, (1 - cos) / 3 - sin, (1 - cos) / 3 + sin
    rows = [diagonal, after, before], [before, diagonal, after], [after, before, diagonal]
    return torch.tensor(rows, dtype=torch.float32)
