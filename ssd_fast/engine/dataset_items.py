# SPDX-License-Identifier: BSD-3-Clause
"""What the engine asks of a dataset, which may be somebody's own: items are checked when read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ssd_fast.engine.subset import place_in_whole
from ssd_fast.ops._arguments import describe

__all__ = ["DetectionDataset", "read_item", "read_truth"]

_INTEGERS = {
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
}
_NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64, *_INTEGERS}
_FLAGS = {torch.bool, *_INTEGERS}
# The dtype that each column is given, and those that it may have.
_COLUMNS = {
    "labels": (torch.int64, _INTEGERS),
    "difficult": (torch.bool, _FLAGS),
    "ignore": (torch.bool, _FLAGS),
    "iscrowd": (torch.bool, _FLAGS),
    "area": (torch.float64, _NUMBERS),
}


class DetectionDataset(Protocol):
    """What the engine asks of a dataset."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes; label i + 1 is `class_names[i]`."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int, /) -> tuple[Tensor, dict[str, Tensor]]:
        """Image (3, H, W) uint8, and a dict of its n objects.

        Required are boxes (n, 4), corners in pixels, and labels (n,), integers from 1.

        Optional are difficult (n,), objects that evaluation need not find; ignore or COCO's iscrowd
        (n,), regions that are no objects, as crowds; all three bool, or 0 and 1; and area (n,), the
        objects' pixels, by which COCO's metric tells their sizes. Other keys are left aside.
        """


def read_item(dataset: DetectionDataset, index: int) -> tuple[Tensor, dict[str, Tensor]]:
    """An image of a dataset and its objects, whose values are not looked at.

    Args:
        dataset: the images.
        index: of the image.

    Returns:
        What the dataset gave: boxes as float32, area as float64, labels as int64, marks as bool;
        and ignore (n,) always: what `ignore` or `iscrowd` marks.

    Raises:
        BrokenSample: the image does not decode.
        ValueError: it is not what `DetectionDataset` says; names the item.
    """
    dataset, index = place_in_whole(dataset, index)
    name, item = f"dataset[{index}]", cast(Any, dataset[index])
    pair = isinstance(item, tuple | list) and len(item) == 2
    if not pair or not isinstance(item[1], Mapping):
        raise ValueError(
            f"{name}: expected an image and a dict of its objects, got {describe(item)}"
        )
    image, target = item
    if not _has_shape(image, 3, None, None) or image.dtype != torch.uint8 or image.numel() == 0:
        raise ValueError(f"{name}: expected an image (3, H, W) uint8, got {describe(image)}")
    boxes = target.get("boxes")
    if not _has_shape(boxes, None, 4) or boxes.dtype not in _NUMBERS:
        raise ValueError(
            f"{name}: expected boxes (n, 4) float32, corners in pixels, got {describe(boxes)}; an"
            " image without objects has torch.zeros(0, 4)"
        )
    return image, {**target, "boxes": boxes.float(), **_convert(name, target, len(boxes))}


def read_truth(dataset: DetectionDataset, index: int) -> tuple[Tensor, dict[str, Tensor]]:
    """An image of a dataset and its objects, none of which would lower a score by its faults.

    Training leaves such objects out and counts them; in evaluation they would be objects that no
    detection finds. A box without area is one, and stays one, as in pycocotools.

    Args:
        dataset: the images.
        index: of the image.

    Returns:
        As `read_item`.

    Raises:
        BrokenSample: the image does not decode.
        ValueError: as `read_item`, or a label of no class, a box that is not finite or inverted, or
            an area that is not finite or negative; names the item and row.
    """
    dataset, index = place_in_whole(dataset, index)
    image, target = read_item(dataset, index)
    name, labels, boxes = f"dataset[{index}]", target["labels"], target["boxes"]
    classes = len(dataset.class_names)
    # Of regions to ignore, too: each is one of its class.
    expected = f"from 1 to {classes}, one for each of class_names; correct it or leave it out"
    _check_rows(name, "labels", labels, (labels >= 1) & (labels <= classes), expected)
    sound = boxes.isfinite().all(1) & (boxes[:, :2] <= boxes[:, 2:]).all(1)
    expected = "finite corners, x1 <= x2 and y1 <= y2; correct it, or leave it out"
    _check_rows(name, "boxes", boxes, sound, expected)
    area = target.get("area", torch.zeros_like(labels))
    expected = "0 or more and finite; correct it, or leave the column out for the boxes' own areas"
    _check_rows(name, "area", area, area.isfinite() & (area >= 0), expected)
    return image, target


def _convert(name: str, target: Mapping[str, Any], n: int) -> dict[str, Tensor]:
    """The columns beside the boxes, checked, each of one dtype; ignore is always among them."""
    columns = {}
    for column, (wanted, dtypes) in _COLUMNS.items():
        if column not in target and column != "labels":
            continue
        value: Any = target.get(column)
        # An empty list makes a tensor of float32, whatever it is a list of.
        if not _has_shape(value, n) or (n > 0 and value.dtype not in dtypes):
            raise ValueError(
                f"{name}: expected {column} ({n},) {str(wanted).removeprefix('torch.')}, one for"
                f" each box, got {describe(value)}"
            )
        columns[column] = value.to(wanted)
    nothing = torch.zeros_like(columns["labels"], dtype=torch.bool)
    ignore = columns.get("ignore", nothing) | columns.get("iscrowd", nothing)
    return columns | {"ignore": ignore}


def _check_rows(name: str, column: str, values: Tensor, sound: Tensor, expected: str) -> None:
    """Raises ValueError about the first row that is not sound."""
    if sound.all():
        return
    row = int((~sound).nonzero()[0])
    value = values[row].tolist()
    shown = tuple(value) if isinstance(value, list) else value
    raise ValueError(f"{name}: {column}[{row}] is {shown}: expected {expected}")


def _has_shape(value: Any, *shape: int | None) -> bool:
    """Whether it is a tensor of the shape, in which None stands for any size."""
    if not isinstance(value, Tensor) or value.dim() != len(shape):
        return False
    return all(wanted in (None, size) for size, wanted in zip(value.shape, shape, strict=True))
