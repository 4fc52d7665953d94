# SPDX-License-Identifier: BSD-3-Clause
"""ShapesDataset: generated scenes of overlapping shapes with exact boxes, nothing to download.

Drawn with torch alone from the shapes' equations, in a millisecond or two a scene, so that training
needs neither a cache nor a worker process.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ssd_fast.data.default_device import cpu_by_default

__all__ = ["ShapesDataset"]

_MIN_VISIBLE = 0.3  # of an object: nobody can ask a detector for one that shows less
_MIN_SIDE, _MAX_SIDE = 0.1, 0.5  # of the scene: 30 to 150 pixels of 300
_MIN_CONTRAST = 0.35  # distance of an object's RGB in [0, 1] from both colours of the ground
_TRIES = 200  # outlines drawn for each object before the scene stays with fewer
_LEAST_TEXTURE = 300
_SPARE = 212  # rows and columns by which a texture exceeds the scene, so that crops of it differ

Colour = tuple[float, float, float]


class _Outline(NamedTuple):
    """A convex shape: all `nx * x + ny * y <= d` of its half planes; without any, the unit disc."""

    half_planes: tuple[tuple[float, float, float], ...]  # (nx, ny, d), unit normals
    extent: tuple[float, float, float, float]  # tight corners (x1, y1, x2, y2)


class _Object(NamedTuple):
    label: int
    box: tuple[float, float, float, float]  # corners in pixels
    rows: slice  # the pixels the box touches
    columns: slice
    alpha: Tensor  # (rows, columns) float32, the share of each pixel that the shape covers


class ShapesDataset(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Scenes of circles, rectangles and triangles that lie over one another on a textured ground.

    Scene `i` is a function of `(seed, i, size, min_objects, max_objects)` alone: the same in every
    process and worker, in any order of access, and never stored. Each holds `min_objects` to
    `max_objects` objects, fully inside the image, whose boxes have sides of 10 % to 50 % of the
    image (30 to 150 pixels of 300). A later object lies over an earlier one; a place where it would
    hide more than 70 % of any object is drawn again. (After 200 tries an object a scene stays with
    fewer; none has been seen to.) Boxes are tight around the whole outline, its hidden part too.

    Args:
        length: number of scenes, at least 1.
        size: height and width of a scene in pixels, at least 32.
        seed: 0 or larger; two seeds share no scene, so a held-out set is a second seed.
        min_objects: least number of objects of a scene, at least 0.
        max_objects: largest number of objects of a scene, from `min_objects` to 20.

    Raises:
        ValueError: an argument is out of its range.
    """

    class_names: tuple[str, ...] = ("circle", "rectangle", "triangle")

    def __init__(
        self,
        length: int,
        *,
        size: int = 300,
        seed: int = 0,
        min_objects: int = 1,
        max_objects: int = 5,
    ) -> None:
        _check_integer("length", length, 1)
        _check_integer("size", size, 32)
        _check_integer("seed", seed, 0)
        _check_integer("min_objects", min_objects, 0)
        _check_integer("max_objects", max_objects, max(min_objects, 1), 20)
        self.length = length
        self.size = size
        self.seed = seed
        self.min_objects = min_objects
        self.max_objects = max_objects

    def __len__(self) -> int:
        """Number of scenes."""
        return self.length

    @cpu_by_default
    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Draws a scene.

        Args:
            index: from `-length` to `length - 1`.

        Returns:
            image (3, size, size) uint8 RGB, and its target: boxes (n, 4) float32 corners in pixels,
            labels (n,) int64, 1 for `class_names[0]`, difficult (n,) bool, all false.

        Raises:
            IndexError: there is no such scene.
        """
        if not -self.length <= index < self.length:
            raise IndexError(f"index: expected less than the {self.length} scenes, got {index}")
        # Python's generator takes seeds of any length, and a scalar costs it 50 ns: torch's, 3 us.
        random = Random((self.seed << 64) | (index % self.length))
        canvas, ground = _draw_ground(random, self.size)
        objects = _place_objects(
            random, self.size, random.randint(self.min_objects, self.max_objects)
        )
        for item in objects:
            _paint(random, canvas, item, ground)
        target = {
            "boxes": torch.tensor([item.box for item in objects], dtype=torch.float32).reshape(
                -1, 4
            ),
            "labels": torch.tensor([item.label for item in objects], dtype=torch.int64),
            "difficult": torch.zeros(len(objects), dtype=torch.bool),
        }
        # By way of int16, because the direct conversion is not vectorised: four times slower.
        return canvas.to(torch.int16).to(torch.uint8), target


def _place_objects(random: Random, size: int, count: int) -> list[_Object]:
    """Draws outlines and places until `count` objects are visible, in drawing order."""
    objects: list[_Object] = []
    areas: list[int] = []  # pixels of each object
    visible: list[int] = []  # those that no later object covers
    owner = torch.ones((size, size), dtype=torch.uint8)  # 1 is ground, i + 2 object i, the topmost
    for _ in range(_TRIES * count):
        if len(objects) == count:
            break
        item = _draw_outline(random, size)
        inside = item.alpha >= 0.5
        window = owner[item.rows, item.columns]
        # Pixels by what the object would cover: 0 stands for those outside it.
        covered = torch.bincount((window * inside).view(-1), minlength=count + 2).tolist()
        left = [seen - hidden for seen, hidden in zip(visible, covered[2:], strict=False)]
        if any(seen < _MIN_VISIBLE * area for seen, area in zip(left, areas, strict=True)):
            continue
        objects.append(item)
        areas.append(sum(covered[1:]))
        visible = [*left, areas[-1]]
        window.masked_fill_(inside, len(objects) + 1)
    return objects


def _draw_outline(random: Random, size: int) -> _Object:
    """A shape of random class, form, size and place, inside the scene."""
    label = random.randrange(len(_OUTLINES)) + 1
    outline = _OUTLINES[label - 1](random)
    x1, y1, x2, y2 = outline.extent
    long, short = max(x2 - x1, y2 - y1), min(x2 - x1, y2 - y1)
    # The shorter side is what makes an object too small to tell, so it bounds the scale from below.
    scale = random.uniform(_MIN_SIDE * size / short, _MAX_SIDE * size / long)
    width, height = scale * (x2 - x1), scale * (y2 - y1)
    left, top = random.uniform(0, size - width), random.uniform(0, size - height)
    rows = slice(math.floor(top), min(math.ceil(top + height), size))
    columns = slice(math.floor(left), min(math.ceil(left + width), size))
    x = torch.arange(columns.start, columns.stop, dtype=torch.float32) + (0.5 - left + scale * x1)
    y = torch.arange(rows.start, rows.stop, dtype=torch.float32) + (0.5 - top + scale * y1)
    box = (left, top, left + width, top + height)
    return _Object(label, box, rows, columns, _coverage(outline, scale, x, y.unsqueeze(1)))


def _coverage(outline: _Outline, scale: float, x: Tensor, y: Tensor) -> Tensor:
    """Share of each pixel inside the outline, by the distance of its centre to the edge."""
    if not outline.half_planes:
        distance = torch.sqrt(x * x + y * y) - scale
    else:
        planes = torch.tensor(outline.half_planes, dtype=torch.float32)
        nx, ny, d = planes.view(-1, 3, 1, 1).unbind(1)
        distance = (nx * x + (ny * y - d * scale)).amax(0)
    return distance.neg_().add_(0.5).clamp_(0.0, 1.0)


def _paint(random: Random, canvas: Tensor, item: _Object, ground: Sequence[Colour]) -> None:
    """Blends an object into the scene: one colour, or two over a texture."""
    height, width = item.alpha.shape
    colour = _draw_colour(random, ground)
    fill = _column(colour)
    if random.random() < 0.6:
        other = [min(max(c + random.uniform(-0.3, 0.3), 0.0), 1.0) for c in colour]
        fill = _blend(colour, other, _draw_texture(random, height, width))
    patch = canvas[:, item.rows, item.columns]
    patch.lerp_(fill.expand_as(patch), item.alpha.expand_as(patch))


def _draw_ground(random: Random, size: int) -> tuple[Tensor, list[Colour]]:
    """The scene without objects, (3, size, size) float32 in [0, 255], and its two colours."""
    first, second = _any_colour(random), _any_colour(random)
    weight = _draw_texture(random, size, size)
    if random.random() < 0.5:
        weight = torch.lerp(weight, _draw_texture(random, size, size), random.uniform(0.1, 0.5))
    return _blend(first, second, weight), [first, second]


def _any_colour(random: Random) -> Colour:
    return random.random(), random.random(), random.random()


def _draw_colour(random: Random, ground: Sequence[Colour]) -> Colour:
    """A colour that stands out from the ground; two balls of this radius cannot fill the cube."""
    while True:
        colour = _any_colour(random)
        if all(math.dist(colour, other) >= _MIN_CONTRAST for other in ground):
            return colour


def _blend(first: Sequence[float], second: Sequence[float], weight: Tensor) -> Tensor:
    """The colours between two, (3, height, width) in [0, 255]; twice as fast here as torch.lerp."""
    way = [b - a for a, b in zip(first, second, strict=True)]
    return (_column(way) * weight).add_(_column(first))


def _column(colour: Sequence[float]) -> Tensor:
    return torch.tensor(colour, dtype=torch.float32).mul_(255.0).view(3, 1, 1)


def _draw_texture(random: Random, height: int, width: int) -> Tensor:
    """A window of one of the fixed textures, (height, width) float32 in [0, 1]."""
    textures = _textures(max(height, width, _LEAST_TEXTURE))
    field = textures[random.randrange(len(textures))]
    top = random.randrange(field.size(0) - height + 1)
    left = random.randrange(field.size(1) - width + 1)
    return field[top : top + height, left : left + width]


@functools.lru_cache(maxsize=4)
def _textures(size: int) -> Tensor:
    """Noise of four grains and stripes of six directions, (10, size + 212, size + 212) float32."""
    side = size + _SPARE
    generator = torch.Generator().manual_seed(0)
    fields = []
    for grain in (3, 12, 40, 120):
        shape = (1, 1, side // grain + 2, side // grain + 2)
        coarse = torch.rand(shape, generator=generator, dtype=torch.float32)
        fine = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
        fields.append(fine[0, 0].clamp_(0.0, 1.0))
    axis = torch.arange(side, dtype=torch.float32)
    for i in range(6):
        angle, period = math.pi * i / 6, 8.0 * 1.5**i
        phase = axis * math.cos(angle) + (axis * math.sin(angle)).unsqueeze(1)
        fields.append(torch.sin(phase * (2 * math.pi / period)).add_(1.0).div_(2.0))
    return torch.stack(fields)


def _circle(random: Random) -> _Outline:
    return _Outline((), (-1.0, -1.0, 1.0, 1.0))


def _rectangle(random: Random) -> _Outline:
    height = random.uniform(0.5, 1.0)
    return _polygon(random, [(-1.0, -height), (1.0, -height), (1.0, height), (-1.0, height)])


def _triangle(random: Random) -> _Outline:
    half_base = random.uniform(0.45, 0.75)
    return _polygon(random, [(0.0, -0.6), (half_base, 0.6), (-half_base, 0.6)])


def _polygon(random: Random, corners: Sequence[tuple[float, float]]) -> _Outline:
    """The convex polygon turned by a random angle. Corners run clockwise on the screen."""
    angle = random.uniform(0.0, 2.0 * math.pi)
    cos, sin = math.cos(angle), math.sin(angle)
    turned = [(cos * x - sin * y, sin * x + cos * y) for x, y in corners]
    half_planes = []
    for (ax, ay), (bx, by) in zip(turned, turned[1:] + turned[:1], strict=True):
        length = math.hypot(bx - ax, by - ay)
        nx, ny = (by - ay) / length, (ax - bx) / length
        half_planes.append((nx, ny, nx * ax + ny * ay))
    xs, ys = zip(*turned, strict=True)
    return _Outline(tuple(half_planes), (min(xs), min(ys), max(xs), max(ys)))


_OUTLINES: tuple[Callable[[Random], _Outline], ...] = (_circle, _rectangle, _triangle)


def _check_integer(name: str, value: int, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__} {value!r}")
    if value < low or (high is not None and value > high):
        limits = f"{low} or more" if high is None else f"{low} to {high}"
        raise ValueError(f"{name}: expected {limits}, got {value}")
