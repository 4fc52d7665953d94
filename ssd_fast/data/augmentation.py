# SPDX-License-Identifier: BSD-3-Clause
"""Augmentation: SSD's zoom-out, crop, mirror and colour distortion, with one resample an image.

The recipe of Liu et al., "SSD: Single Shot MultiBox Detector" (sections 2.2 and 3.6). Zoom-out,
crop and resize are windows on the image, so they are composed first and the pixels are read once;
colour comes after, on fewer pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ssd_fast.data.colours import distort_affine, distort_in_steps, draw_steps, thumbnail
from ssd_fast.data.crops import Recipe, Window, draw_canvas, draw_crop
from ssd_fast.data.default_device import cpu_by_default

__all__ = ["Augmentation"]

_FILL = (123, 117, 104)  # the mean colour that SSD subtracts


class _Patch(NamedTuple):
    """Where the pixels come from and go to, in whole pixels; boxes follow the same map."""

    source: tuple[int, int, int, int]  # x1, y1, x2, y2 in the image
    place: tuple[int, int, int, int]  # x1, y1, x2, y2 in the result


class Augmentation:
    """Draws a training sample from an image: (3, H, W) of any size to (3, size, size).

    In order, each by its own coin:

    1. Zoom-out (section 3.6): the image lies somewhere on a canvas of up to `max_zoom` times its
       width and height, filled with the mean colour.
    2. Crop (section 2.2): the whole canvas, or any patch, or one whose IoU with at least one object
       is 0.1, 0.3, 0.5, 0.7 or 0.9 or more; sides from 0.3 of the canvas on, aspect 1/2 to 2.
       Objects whose centre is in the patch stay, clipped to it; a patch that holds none is drawn
       again. (amdegroot's code takes any patch: it rejects one only if
       `overlap.min() < min_iou and max_iou < overlap.max()`, where `max_iou` is infinite. It also
       leaves out 0.5.)
    3. Resize to `size` x `size`, bilinear without antialiasing, as `SSD` resizes what it is given.
    4. Mirror left to right.
    5. Colour: brightness, contrast, saturation and hue, each in half of the distorted images.

    Two recipes draw by different numbers:

    * "caffe", the authors' `ssd_pascal.py`: 50 patches of a scale and an aspect relative to the
      canvas; brightness up to 32 of 255, contrast and saturation 0.5 to 1.5, hue up to 18 degrees,
      all as linear maps of RGB, where the peers go through HSV. An image without objects counts as
      one object in 2.
    * "torchvision", the defaults of `transforms.v2`: `RandomPhotometricDistort`, `RandomZoomOut`,
      `RandomIoUCrop`, `RandomHorizontalFlip`. 40 patches of a width and a height, aspect in
      pixels, overlap with objects alone whose centre is in the patch; brightness times 0.875 to
      1.125, colours also in another order in half of the images. An image without objects is not
      cropped. The same distribution, at a fraction of the work: `benchmarks/bench_augmentation.py`.

    The result is a function of the inputs and the state of `generator` alone.

    Args:
        size: S, height and width of the result, at least 1.
        recipe: "caffe" or "torchvision".
        zoom_out: probability of 1.
        max_zoom: largest ratio of canvas to image, at least 1.
        crop: probability of 2.
        flip: probability of 4.
        colour: probability of 5.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        size: int = 300,
        *,
        recipe: Recipe = "caffe",
        zoom_out: float = 0.5,
        max_zoom: float = 4.0,
        crop: float = 1.0,
        flip: float = 0.5,
        colour: float = 1.0,
    ) -> None:
        if size < 1:
            raise ValueError(f"size: expected 1 or more, got {size}")
        if not max_zoom >= 1:
            raise ValueError(f"max_zoom: expected 1 or more, got {max_zoom}")
        if recipe not in ("caffe", "torchvision"):
            raise ValueError(f'recipe: expected "caffe" or "torchvision", got {recipe!r}')
        chances = {"zoom_out": zoom_out, "crop": crop, "flip": flip, "colour": colour}
        for name, chance in chances.items():
            if not 0 <= chance <= 1:
                raise ValueError(f"{name}: expected a probability, got {chance}")
        self.size = size
        self.recipe: Recipe = recipe
        self.zoom_out = zoom_out
        self.max_zoom = max_zoom
        self.crop = crop
        self.flip = flip
        self.colour = colour

    @cpu_by_default
    def __call__(
        self, image: Tensor, target: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Draws a sample.

        Args:
            image: (3, H, W) uint8.
            target: boxes (n, 4) float32 corners in pixels, and any columns of n rows, such as
                labels and difficult. Rows that a column "ignore" (n,) bool marks are regions, not
                objects: no crop is drawn around them, and each part of them stays.
            generator: where the draws come from; a CPU generator.

        Returns:
            (3, S, S) uint8, and a target of the same keys: boxes in pixels of the result, and the
            rows of the objects that it shows.

        Raises:
            ValueError: the image is not (3, H, W) uint8.
        """
        if image.dim() != 3 or image.size(0) != 3 or image.dtype != torch.uint8:
            raise ValueError(
                f"image: expected (3, H, W) uint8, got {tuple(image.shape)} {image.dtype}"
            )
        zoom, crop, flip, colour = torch.rand(4, generator=generator, dtype=torch.float32).tolist()
        boxes = target["boxes"]
        height, width = image.shape[1:]
        window: Window = (0.0, 0.0, float(width), float(height))
        if zoom < self.zoom_out:
            window = draw_canvas(width, height, self.max_zoom, self.recipe, generator)
        keep = torch.ones(boxes.size(0), dtype=torch.bool)
        objects = ~target["ignore"] if "ignore" in target else keep
        subjects = boxes[objects]
        if crop < self.crop and (len(subjects) or self.recipe == "caffe"):
            # Where there is no object to show, a crop shows the image: no canvas without it.
            shown = subjects if len(subjects) else boxes.new_tensor([[0.0, 0.0, width, height]])
            window, inside = draw_crop(window, shown, self.recipe, generator)
            # Of a region to ignore any part stays one, wherever its centre is.
            keep = keep.masked_scatter(objects, inside[: len(subjects)])
        patch = _snap(window, width, height, self.size)
        x1, y1, x2, y2 = patch.source
        pixels = _resize(image[:, y1:y2, x1:x2], patch.place)
        if colour < self.colour:
            if self.recipe == "caffe":
                pixels = distort_affine(pixels, generator)
            else:
                pixels = distort_in_steps(pixels, thumbnail(image), draw_steps(generator))
        result = _paste(pixels, patch.place, self.size)
        boxes = _move(boxes, patch).clamp(0, self.size)
        keep &= (boxes[:, :2] < boxes[:, 2:]).all(1)  # what rounding left without area
        boxes = boxes[keep]
        if flip < self.flip:
            result = result.flip(2)
            boxes = torch.stack(
                [self.size - boxes[:, 2], boxes[:, 1], self.size - boxes[:, 0], boxes[:, 3]], dim=1
            )
        return result, {name: value[keep] for name, value in target.items()} | {"boxes": boxes}


def _snap(window: Window, width: int, height: int, size: int) -> _Patch:
    """The part of the window that shows the image, in whole pixels on both sides.

    Boxes follow the snapped map, so the rounding moves image and boxes alike.
    """
    left, right, x1, x2 = _snap_axis(window[0], window[2], width, size)
    top, bottom, y1, y2 = _snap_axis(window[1], window[3], height, size)
    return _Patch((left, top, right, bottom), (x1, y1, x2, y2))


def _snap_axis(low: float, high: float, length: int, size: int) -> tuple[int, int, int, int]:
    """Source (first, last) and place (first, last) on one axis, at least one pixel each.

    Where the window ends inside the image, the place ends with the result: rounding leaves no line
    of the canvas there.
    """
    start = min(max(round(low), 0), length - 1)
    stop = max(min(round(high), length), start + 1)
    scale = size / (high - low)
    first = min(round(max(-low, 0.0) * scale), size - 1)
    last = max(round((min(high, length) - low) * scale), first + 1)
    return start, stop, first, last


def _resize(pixels: Tensor, place: tuple[int, int, int, int]) -> Tensor:
    """The pixels at the size of their place, uint8."""
    x1, y1, x2, y2 = place
    size = (y2 - y1, x2 - x1)
    if pixels.shape[1:] == size:
        return pixels
    # Bytes with the channels last have a vectorised kernel; a window on them has not.
    batch = pixels[None].contiguous(memory_format=torch.channels_last)
    return functional.interpolate(batch, size, mode="bilinear", align_corners=False)[0]


def _paste(pixels: Tensor, place: tuple[int, int, int, int], size: int) -> Tensor:
    """The pixels at their place on the mean colour, a new (3, size, size)."""
    x1, y1, x2, y2 = place
    if place == (0, 0, size, size):
        return pixels.clone()
    result = torch.tensor(_FILL, dtype=torch.uint8).view(3, 1, 1).repeat(1, size, size)
    result[:, y1:y2, x1:x2] = pixels
    return result


def _move(boxes: Tensor, patch: _Patch) -> Tensor:
    """Boxes of the image as boxes of the result."""
    source = torch.tensor(patch.source, dtype=boxes.dtype)
    place = torch.tensor(patch.place, dtype=boxes.dtype)
    scale = (place[2:] - place[:2]) / (source[2:] - source[:2])
    return (boxes - source[:2].repeat(2)) * scale.repeat(2) + place[:2].repeat(2)
