# SPDX-License-Identifier: BSD-3-Clause
"""Which part of an image a training sample shows: zoom-out and crops, decided on boxes alone.

A window is (x1, y1, x2, y2) in pixels of the image and may reach beyond it.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ssd_fast.boxes import box_iou

__all__ = ["Recipe", "Window", "draw_canvas", "draw_crop", "draw_windows"]

Recipe = Literal["caffe", "torchvision"]
Window = tuple[float, float, float, float]

_MIN_OVERLAPS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.0)  # 0.0: a random patch without a least overlap
_TRIALS = {"caffe": 50, "torchvision": 40}
_MIN_SCALE = 0.3  # the paper says 0.1, its code 0.3, and so do amdegroot and torchvision
_MAX_ASPECT = 2.0


def draw_canvas(
    width: int, height: int, max_zoom: float, recipe: Recipe, generator: torch.Generator
) -> Window:
    """A canvas that the image lies on somewhere, up to `max_zoom` times as wide and high.

    Args:
        width: of the image.
        height: of the image.
        max_zoom: at least 1.
        recipe: whose rounding.
        generator: where the draws come from.

    Returns:
        The canvas as a window on the image.
    """
    zoom, left, top = torch.rand(3, generator=generator, dtype=torch.float32).tolist()
    zoom = 1 + (max_zoom - 1) * zoom
    across, down = zoom * width, zoom * height
    if recipe == "torchvision":
        across, down = math.floor(across), math.floor(down)
    x, y = left * (across - width), top * (down - height)
    if recipe == "torchvision":
        x, y = math.floor(x), math.floor(y)
    return -x, -y, across - x, down - y


def draw_crop(
    canvas: Window, boxes: Tensor, recipe: Recipe, generator: torch.Generator
) -> tuple[Window, Tensor]:
    """A window on the canvas: all of it, or a patch that shows the centre of an object.

    Args:
        canvas: the window that the patch lies in.
        boxes: (n, 4) corners in the same pixels; n is at least 1, or no patch is found.
        recipe: whose patches; torchvision's asks for the least overlap of objects alone whose
            centre is in the patch.
        generator: where the draws come from.

    Returns:
        The window, and which objects have their centre in it, (n,) bool: all if it is the canvas.
    """
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    while True:
        choice = int(torch.randint(len(_MIN_OVERLAPS) + 1, (1,), generator=generator))
        if choice == len(_MIN_OVERLAPS):
            return canvas, torch.ones(boxes.size(0), dtype=torch.bool)
        windows = draw_windows(canvas, recipe, generator)
        inside = (
            (windows[:, None, :2] < centre) & (centre < windows[:, None, 2:])  # (trials, n, 2)
        ).all(2)
        good = inside.any(1)
        if _MIN_OVERLAPS[choice] > 0:
            overlaps = box_iou(windows, boxes)
            if recipe == "torchvision":
                overlaps = overlaps * inside
            good &= overlaps.amax(1) >= _MIN_OVERLAPS[choice]
        if bool(good.any()):
            first = int(good.int().argmax())
            return _corners(windows[first]), inside[first]


def draw_windows(canvas: Window, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Random windows on the canvas of the scales and aspects that a recipe allows.

    Caffe's `SampleBBox` draws the scale and then an aspect, relative to the canvas; torchvision's
    `RandomIoUCrop`, like amdegroot's code, draws width and height, in whole pixels, and drops
    windows whose aspect is not between 1/2 and 2.

    Args:
        canvas: where.
        recipe: whose.
        generator: where the draws come from.

    Returns:
        (trials, 4) corners, fewer where some were dropped.
    """
    draws = torch.rand(_TRIALS[recipe], 4, generator=generator, dtype=torch.float32)
    x1, y1, x2, y2 = canvas
    whole, origin = draws.new_tensor([x2 - x1, y2 - y1]), draws.new_tensor([x1, y1])
    if recipe == "torchvision":
        size = (whole * (_MIN_SCALE + (1 - _MIN_SCALE) * draws[:, :2])).floor_()
        aspect = size[:, 0] / size[:, 1]
        allowed = (aspect >= 1 / _MAX_ASPECT) & (aspect <= _MAX_ASPECT)  # 0 / 0 is not
        size = size[allowed]
        corner = ((whole - size) * draws[allowed, 2:]).floor_() + origin
        return torch.cat([corner, corner + size], dim=1)
    scale = _MIN_SCALE + (1 - _MIN_SCALE) * draws[:, 0]
    low, high = (scale * scale).clamp(min=1 / _MAX_ASPECT), (scale**-2).clamp(max=_MAX_ASPECT)
    aspect = (low + (high - low) * draws[:, 1]).sqrt()
    size = torch.stack([scale * aspect, scale / aspect], dim=1).clamp(max=1.0)  # of the canvas
    corner = draws[:, 2:] * (1 - size)
    return torch.cat([corner * whole + origin, (corner + size) * whole + origin], dim=1)


def _corners(window: Tensor) -> Window:
    x1, y1, x2, y2 = window.tolist()
    return x1, y1, x2, y2
