# SPDX-License-Identifier: BSD-3-Clause
"""Default boxes ("priors") of SSD: the published grids by name, and any other grid.

Priors are (P, 4) float32 corners `(x1, y1, x2, y2)` in [0, 1] units of the image (they may cross
its border), in the order of the heads' maps: level, then row, then column, then box of the cell.
They are computed in float64 and rounded to float32 once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

__all__ = ["SSD300", "SSD512", "PriorBoxes", "ssd300", "ssd512"]

Clip: TypeAlias = Literal["cxcywh", "wh", "xyxy"]
"""Which numbers of a box are clamped to [0, 1]; the words are torchvision's box formats."""

_Number = TypeVar("_Number", int, float)
_Size: TypeAlias = int | tuple[int, int]
_Step: TypeAlias = float | tuple[float, float]


@dataclass(frozen=True)
class PriorBoxes:
    """A grid of default boxes over one or more feature maps (SSD paper, section 2.2).

    Each cell of map k carries, in this order: a square of side `min_sizes[k]`; if `max_sizes` is
    given, a square of side `sqrt(min_sizes[k] * max_sizes[k])`; and for each aspect ratio r a box
    of width `min * sqrt(r)` and height `min / sqrt(r)`, followed, with `flip`, by the same box
    upright. Calling the object gives the boxes.

    Args:
        image_size: side of the network's input in pixels, or `(height, width)`.
        feature_maps: the maps' sides in cells, or `(height, width)` of each.
        min_sizes: side of each map's smaller square, in pixels.
        max_sizes: upper side of each map, in pixels; None leaves the second square out.
        aspect_ratios: width over height of each map's other boxes, 1 left out.
        steps: distance between neighbouring cells in pixels, or `(vertical, horizontal)`, of each
            map; None is `image_size / feature_map`.
        flip: each aspect ratio r is followed by 1 / r.
        clip: clamp to [0, 1] the centre and size ("cxcywh"), the size ("wh"), the corners
            ("xyxy") or nothing (None).

    Raises:
        ValueError: lists of different lengths, or a size, step or ratio that is not positive.

    Example:
        >>> PriorBoxes(320, (20, 10), (64, 128), (128, 192), ((2,), (2, 3)))().shape
        torch.Size([2200, 4])
    """

    image_size: _Size
    feature_maps: Sequence[_Size]
    min_sizes: Sequence[float]
    max_sizes: Sequence[float] | None
    aspect_ratios: Sequence[Sequence[float]]
    steps: Sequence[_Step] | None = None
    flip: bool = True
    clip: Clip | None = None

    def __post_init__(self) -> None:
        """Checks the arguments, and makes lists tuples, so that equal grids are equal."""
        for field in fields(self):
            object.__setattr__(self, field.name, _tuples(getattr(self, field.name)))
        levels = len(self.feature_maps)
        if levels == 0:
            raise ValueError("feature_maps: expected at least one map, got none")
        for name in ("min_sizes", "max_sizes", "aspect_ratios", "steps"):
            values = getattr(self, name)
            if values is not None and len(values) != levels:
                raise ValueError(
                    f"{name}: expected {levels} entries, one for each of feature_maps,"
                    f" got {len(values)}"
                )
        for name in ("image_size", "feature_maps", "min_sizes", "max_sizes", "steps"):
            _check_positive(name, getattr(self, name))
        _check_positive("aspect_ratios", self.aspect_ratios)
        if self.clip not in (None, "cxcywh", "wh", "xyxy"):
            raise ValueError(f"clip: expected 'cxcywh', 'wh', 'xyxy' or None, got {self.clip!r}")

    @property
    def boxes_per_cell(self) -> tuple[int, ...]:
        """How many boxes a cell of each map carries."""
        squares = 1 if self.max_sizes is None else 2
        return tuple(squares + len(r) * (2 if self.flip else 1) for r in self.aspect_ratios)

    def __len__(self) -> int:
        """The number of boxes, P."""
        cells = [h * w for h, w in map(_pair, self.feature_maps)]
        return sum(n * a for n, a in zip(cells, self.boxes_per_cell, strict=True))

    def __call__(self) -> Tensor:
        """The boxes: (P, 4) float32 corners in [0, 1] units, a new tensor at each call."""
        boxes = torch.cat([self._level(k) for k in range(len(self.feature_maps))])
        if self.clip == "cxcywh":
            boxes = boxes.clamp(0, 1)
        elif self.clip == "wh":
            boxes = torch.cat([boxes[:, :2], boxes[:, 2:].clamp(0, 1)], dim=1)
        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        corners = torch.cat([centre - half, centre + half], dim=1)
        if self.clip == "xyxy":
            corners = corners.clamp(0, 1)
        return corners.float()

    def _level(self, k: int) -> Tensor:
        """Centre and size of map k's boxes, (H * W * A, 4) float64 in [0, 1] units."""
        height, width = _pair(self.image_size)
        rows, columns = _pair(self.feature_maps[k])
        step = (height / rows, width / columns) if self.steps is None else _pair(self.steps[k])
        y = (torch.arange(rows, dtype=torch.float64, device="cpu") + 0.5) * step[0] / height
        x = (torch.arange(columns, dtype=torch.float64, device="cpu") + 0.5) * step[1] / width
        sizes = torch.tensor(self._sizes(k), dtype=torch.float64, device="cpu")
        sizes = sizes / torch.tensor([width, height], dtype=torch.float64, device="cpu")
        centres = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
        centres = centres[:, :, None].expand(-1, -1, len(sizes), -1)
        return torch.cat([centres, sizes.expand_as(centres)], dim=-1).reshape(-1, 4)

    def _sizes(self, k: int) -> list[tuple[float, float]]:
        """Width and height in pixels of the boxes of a cell of map k."""
        side = self.min_sizes[k]
        sizes = [(side, side)]
        if self.max_sizes is not None:
            sizes.append((math.sqrt(side * self.max_sizes[k]),) * 2)
        for ratio in self.aspect_ratios[k]:
            wide = (side * math.sqrt(ratio), side / math.sqrt(ratio))
            sizes += [wide, wide[::-1]] if self.flip else [wide]
        return sizes


def ssd300(preset: str = "voc") -> Tensor:
    """The 8732 default boxes of SSD300, as one of its implementations places them.

    * `"voc"`, `"coco"`: amdegroot/ssd.pytorch and its descendants. Sides 30 to 315 pixels (VOC) or
      21 to 315 (COCO); centre and size clamped to [0, 1], which moves 134 (116) boxes.
    * `"torchvision"`: the sizes of `"coco"`, only the sizes clamped: 114 boxes differ from it.
      Equal to `DefaultBoxGenerator` divided by 300 to within 1.2e-7 (that generator works in
      float32, these are rounded once).
    * `"nvidia"`: the boxes of NVIDIA's DeepLearningExamples in the order of this package; there
      they are stored level by level as (box, row, column). Equal to `"coco"`.
    * `"sgrvinod"`: a-PyTorch-Tutorial-to-Object-Detection. Centres in the middle of
      `300 / map` cells, own scales, boxes of a cell in the order s, s', 2, 3, 1/2, .333.
    * `"caffe-voc"`: weiliu89/caffe, branch ssd. `"voc"` without any clamp.

    Args:
        preset: one of the names above, the keys of `SSD300`.

    Returns:
        (8732, 4) float32 corners in [0, 1] units.

    Raises:
        ValueError: an unknown preset.
    """
    return _preset("ssd300", SSD300, preset)()


def ssd512(preset: str = "voc") -> Tensor:
    """The 24564 default boxes of SSD512 (weiliu89/caffe, `ssd_pascal.py` and `ssd_coco.py` at 512).

    Args:
        preset: `"voc"` (sides 35.84 to 537.6 pixels) or `"coco"` (20.48 to 542.72), centre and size
            clamped to [0, 1]; or `"caffe-voc"`, as `"voc"` without the clamp and with the sides
            truncated to whole pixels, as Caffe's layer does.

    Returns:
        (24564, 4) float32 corners in [0, 1] units.

    Raises:
        ValueError: an unknown preset.
    """
    return _preset("ssd512", SSD512, preset)()


def _preset(name: str, presets: Mapping[str, PriorBoxes], preset: str) -> PriorBoxes:
    if preset not in presets:
        raise ValueError(f"preset: {name} has {', '.join(map(repr, presets))}, got {preset!r}")
    return presets[preset]


def _pair(value: _Number | tuple[_Number, _Number]) -> tuple[_Number, _Number]:
    return value if isinstance(value, tuple) else (value, value)


def _tuples(value: Any) -> Any:
    """The value with every list in it made a tuple."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _check_positive(name: str, values: object) -> None:
    """Raises ValueError unless every number in the nested sequences is finite and positive."""
    if isinstance(values, Sequence) and not isinstance(values, str):
        for value in values:
            _check_positive(name, value)
    elif values is not None and not (
        isinstance(values, int | float) and values > 0 and math.isfinite(values)
    ):
        raise ValueError(f"{name}: expected positive numbers, got {values!r}")


_SSD300_VOC = PriorBoxes(
    image_size=300,
    feature_maps=(38, 19, 10, 5, 3, 1),
    min_sizes=(30, 60, 111, 162, 213, 264),
    max_sizes=(60, 111, 162, 213, 264, 315),
    aspect_ratios=((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
    steps=(8, 16, 32, 64, 100, 300),
    clip="cxcywh",
)
_SSD300_COCO = replace(
    _SSD300_VOC,
    min_sizes=(21, 45, 99, 153, 207, 261),
    max_sizes=(45, 99, 153, 207, 261, 315),
)
_THIRD = 0.333  # as sgrvinod writes it

SSD300: Mapping[str, PriorBoxes] = MappingProxyType(
    {
        "voc": _SSD300_VOC,
        "coco": _SSD300_COCO,
        "torchvision": replace(_SSD300_COCO, clip="wh"),
        "nvidia": _SSD300_COCO,
        "sgrvinod": replace(
            _SSD300_VOC,
            min_sizes=(30, 60, 112.5, 165, 217.5, 270),
            max_sizes=(60, 112.5, 165, 217.5, 270, 300),
            aspect_ratios=((2, 0.5), *[(2, 3, 0.5, _THIRD)] * 3, (2, 0.5), (2, 0.5)),
            steps=None,
            flip=False,
        ),
        "caffe-voc": replace(_SSD300_VOC, clip=None),
    }
)
"""The grids behind `ssd300`, by preset."""

_SSD512_VOC = PriorBoxes(
    image_size=512,
    feature_maps=(64, 32, 16, 8, 4, 2, 1),
    min_sizes=(35.84, 76.8, 153.6, 230.4, 307.2, 384.0, 460.8),
    max_sizes=(76.8, 153.6, 230.4, 307.2, 384.0, 460.8, 537.6),
    aspect_ratios=((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)),
    steps=(8, 16, 32, 64, 128, 256, 512),
    clip="cxcywh",
)

SSD512: Mapping[str, PriorBoxes] = MappingProxyType(
    {
        "voc": _SSD512_VOC,
        "coco": replace(
            _SSD512_VOC,
            min_sizes=(20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8),
            max_sizes=(51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72),
        ),
        "caffe-voc": replace(
            _SSD512_VOC,
            min_sizes=(35, 76, 153, 230, 307, 384, 460),
            max_sizes=(76, 153, 230, 307, 384, 460, 537),
            clip=None,
        ),
    }
)
"""The grids behind `ssd512`, by preset."""
