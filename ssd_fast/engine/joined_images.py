# SPDX-License-Identifier: BSD-3-Clause
"""The detections and objects of all images in one piece, checked, for the rules that score them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ssd_fast.boxes import box_area
from ssd_fast.data.default_device import cpu_by_default
from ssd_fast.ops._arguments import describe

__all__ = ["JoinedImages", "Rows", "join_images"]

Rows: TypeAlias = dict[str, Tensor]

_INTEGERS = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8})
_NUMBERS = _INTEGERS | {torch.float64, torch.float32, torch.float16, torch.bfloat16}
_NUMBER = (_NUMBERS, "numbers", "float")
_MARK = (_INTEGERS | {torch.bool}, "bool or integers", "bool")
# What a column may hold, in words, and what makes it so.
_DTYPES = {
    "labels": (_INTEGERS, "integers", "long"),
    **dict.fromkeys(("boxes", "scores", "area"), _NUMBER),
    **dict.fromkeys(("difficult", "ignore", "iscrowd"), _MARK),
}


class JoinedImages(NamedTuple):
    """The rows of all images by column: boxes, labels, images and key of both, and more of each."""

    found: Rows  # scores (D,) too; ascending label, then descending score
    there: Rows  # areas (N,), difficult (N,) and ignore (N,) too
    num_classes: int
    num_images: int


@cpu_by_default
def join_images(
    detections: Sequence[Rows], targets: Sequence[Rows], num_classes: int
) -> JoinedImages:
    """Checks all images and puts them together, which takes longer than to score them.

    Args:
        detections: one dict an image: boxes (D, 4), scores (D,), labels (D,).
        targets: one dict an image: boxes (N, 4), labels (N,), and optionally difficult (N,) bool,
            ignore or iscrowd (N,) bool, area (N,). Boxes without area are objects that nobody
            finds, as in pycocotools.
        num_classes: classes with background.

    Returns:
        All rows.

    Raises:
        ValueError: something is missing, does not fit, or is broken: a score that is NaN, an object
            whose box is inverted or not finite, or whose area is negative or not finite. The
            message names the image, the column and the row.
    """
    for name, images in (("detections", detections), ("targets", targets)):
        if not isinstance(images, Sequence):
            raise ValueError(
                f"{name}: expected a list with one dict an image, got {type(images).__name__}"
            )
    if len(detections) != len(targets):
        raise ValueError(
            f"detections: expected one for each of {len(targets)} targets, got {len(detections)}"
        )
    if not isinstance(num_classes, int) or num_classes < 2:
        raise ValueError(
            "num_classes: expected a whole number of 2 or more, background included, got"
            f" {describe(num_classes)}"
        )
    found = _join("detections", detections, ("boxes", "labels", "scores"), num_classes)
    there = _join("targets", targets, ("boxes", "labels"), num_classes)
    order = found["scores"].argsort(descending=True, stable=True)
    order = order[found["labels"][order].argsort(stable=True)]
    found = {name: column[order] for name, column in found.items()}
    for rows in (found, there):
        rows["key"] = rows["images"] * num_classes + rows["labels"]
    return JoinedImages(found, there, num_classes, len(targets))


def _join(
    name: str, images: Sequence[Rows], needed: tuple[str, ...], num_classes: int
) -> dict[str, Tensor]:
    """The images' columns in one piece each, checked, on the CPU, and the image of each row."""
    counts = [_check_columns(name, i, rows, needed) for i, rows in enumerate(images)]
    of = torch.arange(len(images)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    joined = {"images": of}
    for column, empty in (("boxes", torch.zeros(0, 4)), ("labels", torch.zeros(0).long())):
        joined[column] = torch.cat([empty, *(rows[column].detach().cpu() for rows in images)])
    boxes, labels = joined["boxes"].double(), joined["labels"].long()
    joined |= {"boxes": boxes, "labels": labels}
    expected = f"1 to {num_classes - 1}; correct it, or num_classes, which counts background, 0"
    _check_rows(name, "labels", labels, (labels >= 1) & (labels < num_classes), of, expected)
    if "scores" in needed:
        scores = [torch.zeros(0), *(rows["scores"].detach().cpu() for rows in images)]
        joined["scores"] = torch.cat(scores).double()
        expected = "a number; correct it, or leave the detection out"
        _check_rows(name, "scores", joined["scores"], ~joined["scores"].isnan(), of, expected)
        return joined
    # A detection whose box is broken is false; an object whose box is could never be found.
    sound = boxes.isfinite().all(1) & (boxes[:, 2:] >= boxes[:, :2]).all(1)
    expected = "finite corners, x1 <= x2 and y1 <= y2; correct it, or leave the object out"
    _check_rows(name, "boxes", boxes, sound, of, expected)
    joined["difficult"] = _flags(images, counts, "difficult")
    joined["ignore"] = _flags(images, counts, "ignore") | _flags(images, counts, "iscrowd")
    own = zip(images, box_area(boxes).split(counts) if counts else (), strict=True)
    parts = [rows["area"].detach().cpu().double() if "area" in rows else area for rows, area in own]
    areas = torch.cat([torch.zeros(0, dtype=torch.float64), *parts])
    expected = "0 or more and finite; correct it, or leave the column out for the boxes' own areas"
    _check_rows(name, "area", areas, areas.isfinite() & (areas >= 0), of, expected)
    return joined | {"areas": areas}


def _check_columns(name: str, image: int, rows: Rows, needed: tuple[str, ...]) -> int:
    """How many rows an image has, once its columns are known to be there and to fit."""
    if not isinstance(rows, Mapping):
        raise ValueError(
            f"{name}[{image}]: expected a dict with {' and '.join(needed)}, got"
            f" {type(rows).__name__}"
        )
    missing = [column for column in needed if column not in rows]
    if missing:
        raise ValueError(f"{name}[{image}]: expected {' and '.join(missing)} beside {list(rows)}")
    optional = ("difficult", "ignore", "iscrowd", "area") if "scores" not in needed else ()
    columns = (*needed, *(column for column in optional if column in rows))
    for column in columns:
        if not isinstance(rows[column], Tensor):
            raise ValueError(
                f"{name}[{image}]['{column}']: expected a tensor, got"
                f" {type(rows[column]).__name__}; convert it with torch.as_tensor"
            )
    n = rows["labels"].numel()
    for column in columns:
        value = rows[column]
        expected = (n, 4) if column == "boxes" else (n,)
        if tuple(value.shape) != expected:
            raise ValueError(
                f"{name}[{image}]: expected {column} {expected} beside {n} labels, got"
                f" {tuple(value.shape)}"
            )
        dtypes, words, method = _DTYPES[column]
        if value.dtype not in dtypes and n:  # torch.tensor([]), which holds no label, is float
            raise ValueError(
                f"{name}[{image}]['{column}']: expected {words}, got {value.dtype}; convert them"
                f" with .{method}()"
            )
    return n


def _check_rows(
    name: str, column: str, values: Tensor, sound: Tensor, images: Tensor, expected: str
) -> None:
    """Raises ValueError about the first row that is not sound."""
    if sound.all():
        return
    at = int((~sound).nonzero()[0])
    image = int(images[at])
    row = at - int(torch.searchsorted(images, image))
    value = values[at].tolist()
    shown = tuple(value) if isinstance(value, list) else value
    raise ValueError(f"{name}[{image}]['{column}'][{row}] is {shown}: expected {expected}")


def _flags(images: Sequence[Rows], counts: list[int], column: str) -> Tensor:
    """A column of booleans, false for images that lack it."""
    parts = [
        rows[column].detach().cpu().bool() if column in rows else torch.zeros(n, dtype=torch.bool)
        for rows, n in zip(images, counts, strict=True)
    ]
    return torch.cat([torch.zeros(0, dtype=torch.bool), *parts])
