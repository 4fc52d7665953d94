# SPDX-License-Identifier: BSD-3-Clause
"""Which object each detection answers for, by the rule of PASCAL VOC.

All images are looked at together, in a table whose rows may match where their keys are equal, so
that the work is a few tensor operations for each object that a key has at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ssd_fast.data.default_device import cpu_by_default

__all__ = [
    "DetectionTable",
    "JoinedImages",
    "iou",
    "join_images",
    "judge",
    "match_voc",
    "rank",
    "share_in_region",
    "share_inside",
    "span",
    "tabulate",
]

Rows: TypeAlias = dict[str, Tensor]
_Overlap: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class JoinedImages(NamedTuple):
    """The rows of all images by column: boxes, labels, images and key of both, and more of each."""

    found: Rows  # scores (D,) too; ascending label, then descending score
    there: Rows  # areas (N,), difficult (N,) and ignore (N,) too
    num_classes: int


class DetectionTable(NamedTuple):
    """All images at once. Detections and objects of equal key may match."""

    boxes: Tensor  # (D, 4) float64, ascending label, then descending score
    scores: Tensor  # (D,) float64
    labels: Tensor  # (D,) int64
    images: Tensor  # (D,) int64
    key: Tensor  # (D,) int64, image * num_classes + label
    object_boxes: Tensor  # (N, 4) float64, ascending key
    object_labels: Tensor  # (N,) int64
    object_images: Tensor  # (N,) int64
    object_key: Tensor  # (N,) int64
    optional: Tensor  # (N,) bool, objects that need not be found; their finding is no fault
    region_boxes: Tensor  # (R, 4) float64, ascending key: where no detection is a fault
    region_key: Tensor  # (R,) int64


@cpu_by_default
def join_images(
    detections: Sequence[Rows], targets: Sequence[Rows], num_classes: int
) -> JoinedImages:
    """Checks all images and puts them together, which takes longer than to score them.

    Args:
        detections: one dict an image: boxes (D, 4), scores (D,), labels (D,).
        targets: one dict an image: boxes (N, 4), labels (N,), and optionally difficult (N,) bool,
            ignore or iscrowd (N,) bool, area (N,).
        num_classes: classes with background.

    Returns:
        All rows.

    Raises:
        ValueError: something is missing or does not fit; names the image.
    """
    if len(detections) != len(targets):
        raise ValueError(
            f"detections: expected one for each of {len(targets)} targets, got {len(detections)}"
        )
    if num_classes < 2:
        raise ValueError(f"num_classes: expected 2 or more, background included, got {num_classes}")
    found = _join("detections", detections, ("boxes", "labels", "scores"), num_classes)
    there = _join("targets", targets, ("boxes", "labels"), num_classes)
    order = found["scores"].argsort(descending=True, stable=True)
    order = order[found["labels"][order].argsort(stable=True)]
    found = {name: column[order] for name, column in found.items()}
    for rows in (found, there):
        rows["key"] = rows["images"] * num_classes + rows["labels"]
    return JoinedImages(found, there, num_classes)


def tabulate(
    images: JoinedImages,
    *,
    difficult_is_region: bool,
    area_range: tuple[float, float] | None = None,
) -> DetectionTable:
    """Makes the table by a rule.

    Args:
        images: from `join_images`.
        difficult_is_region: whether difficult objects are regions as crowds are, which COCO's rule
            knows, or objects that need not be found, which VOC's does.
        area_range: least and largest area of the objects that have to be found; None for all.

    Returns:
        The table.
    """
    found, there = images.found, images.there
    difficult, region = there["difficult"], there["ignore"]
    if difficult_is_region:
        difficult, region = torch.zeros_like(difficult), region | difficult
    if area_range is not None:
        difficult = difficult | (there["areas"] < area_range[0]) | (there["areas"] > area_range[1])
    # Stable, so that within a key objects keep their order, by which the rules break ties.
    by_key = there["key"].argsort(stable=True)
    kept, regions = by_key[~region[by_key]], by_key[region[by_key]]
    return DetectionTable(
        boxes=found["boxes"],
        scores=found["scores"],
        labels=found["labels"],
        images=found["images"],
        key=found["key"],
        object_boxes=there["boxes"][kept],
        object_labels=there["labels"][kept],
        object_images=there["images"][kept],
        object_key=there["key"][kept],
        optional=difficult[kept],
        region_boxes=there["boxes"][regions],
        region_key=there["key"][regions],
    )


def match_voc(table: DetectionTable, thresholds: Sequence[float]) -> Tensor:
    """The object that a detection overlaps most, the first of equals, where that is enough.

    Args:
        table: from `tabulate`.
        thresholds: T least IoUs.

    Returns:
        (T, D) int64, -1 for none.
    """
    best, overlap = _nearest(table.boxes, table.key, table.object_boxes, table.object_key, iou)
    least = torch.tensor(thresholds, dtype=torch.float64).unsqueeze(1)
    return torch.where(overlap >= least, best, -1)


def judge(
    table: DetectionTable,
    objects: Tensor,
    excused: Tensor,
    area_range: tuple[float, float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Which detections are true, and which are neither true nor false.

    Args:
        table: from `tabulate`.
        objects: (D,) int64, the object of each detection, -1 for none.
        excused: (D,) bool, detections that are no fault if they are not true.
        area_range: detections of another area that answer for nothing are neither.

    Returns:
        true (D,) bool; neither (D,) bool: answers for optional objects, and excused false ones.
    """
    answering = (objects >= 0).nonzero().squeeze(1)
    neither = torch.zeros(table.scores.numel(), dtype=torch.bool)
    neither[answering] = table.optional[objects[answering]]
    # The lowest row of an object is its best-scored answer.
    nobody = table.scores.numel()
    winner = torch.full((table.optional.numel(),), nobody)
    winner.scatter_reduce_(0, objects[answering], answering, "amin")
    true = torch.zeros_like(neither)
    true[winner[winner < nobody]] = True
    true &= ~neither
    neither |= ~true & excused
    if area_range is not None:
        area = _area(table.boxes)
        neither |= (objects < 0) & ((area < area_range[0]) | (area > area_range[1]))
    return true, neither


def share_in_region(table: DetectionTable) -> Tensor:
    """How much of each detection lies inside one region of its key, (D,) float64."""
    if table.region_key.numel() == 0:
        return torch.zeros_like(table.scores)
    return _nearest(table.boxes, table.key, table.region_boxes, table.region_key, share_inside)[1]


def iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of the rows of two (n, 4) lists of corners, (n,)."""
    inter = _intersection(a, b)
    return inter / (_area(a) + _area(b) - inter)


def share_inside(a: Tensor, b: Tensor) -> Tensor:
    """The share of each box of `a` that lies inside that of `b`, (n,)."""
    return _intersection(a, b) / _area(a)


def span(key: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """First row of each key among the ascending `other` (D,), and how many follow it (D,)."""
    first = torch.searchsorted(other, key)
    if other.numel() == 0:
        return first, torch.zeros_like(first)
    length = other.unique_consecutive(return_counts=True)[1]
    run = length.repeat_interleave(length)
    at = first.clamp(max=other.numel() - 1)
    return first, torch.where(other[at] == key, run[at], 0)


def rank(key: Tensor) -> Tensor:
    """How many rows before each one have the same key, (n,)."""
    ordered, order = key.sort(stable=True)
    return torch.empty_like(key).scatter_(0, order, _rank_in_run(ordered))


def _join(
    name: str, images: Sequence[Rows], needed: tuple[str, ...], num_classes: int
) -> dict[str, Tensor]:
    """The images' columns in one piece each, checked, on the CPU, and the image of each row."""
    counts = [_check_shapes(name, i, rows, needed) for i, rows in enumerate(images)]
    of = torch.arange(len(images)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    joined = {"images": of}
    for column, empty in (("boxes", torch.zeros(0, 4)), ("labels", torch.zeros(0).long())):
        joined[column] = torch.cat([empty, *(rows[column].detach().cpu() for rows in images)])
    boxes, labels = joined["boxes"].double(), joined["labels"].long()
    bad = ((labels < 1) | (labels >= num_classes)).nonzero()
    if bad.numel():
        raise ValueError(
            f"{name}[{int(of[bad[0]])}]: expected labels from 1 to {num_classes - 1}, "
            f"got {int(labels[bad[0]])}"
        )
    joined |= {"boxes": boxes, "labels": labels}
    if "scores" in needed:
        scores = [torch.zeros(0), *(rows["scores"].detach().cpu() for rows in images)]
        joined["scores"] = torch.cat(scores).double()
        broken = joined["scores"].isnan().nonzero()
        if broken.numel():
            image = int(of[broken[0]])
            row = int(broken[0]) - sum(counts[:image])
            raise ValueError(f"{name}[{image}]: scores[{row}] is NaN")
        return joined
    joined["difficult"] = _flags(images, counts, "difficult")
    joined["ignore"] = _flags(images, counts, "ignore") | _flags(images, counts, "iscrowd")
    areas = zip(images, _area(boxes).split(counts) if counts else (), strict=True)
    parts = [rows["area"].detach().cpu().double() if "area" in rows else own for rows, own in areas]
    joined["areas"] = torch.cat([torch.zeros(0, dtype=torch.float64), *parts])
    return joined


def _check_shapes(name: str, image: int, rows: Rows, needed: tuple[str, ...]) -> int:
    """How many rows an image has, once its columns are known to be there and to fit."""
    missing = [column for column in needed if column not in rows]
    if missing:
        raise ValueError(f"{name}[{image}]: expected {' and '.join(missing)} beside {list(rows)}")
    n = rows["labels"].numel()
    optional = ("difficult", "ignore", "iscrowd", "area") if "scores" not in needed else ()
    for column in (*needed, *(c for c in optional if c in rows)):
        expected = (n, 4) if column == "boxes" else (n,)
        if tuple(rows[column].shape) != expected:
            raise ValueError(
                f"{name}[{image}]: expected {column} {expected} beside {n} labels, got"
                f" {tuple(rows[column].shape)}"
            )
    return n


def _flags(images: Sequence[Rows], counts: list[int], column: str) -> Tensor:
    """A column of booleans, false for images that lack it."""
    parts = [
        rows[column].detach().cpu().bool() if column in rows else torch.zeros(n, dtype=torch.bool)
        for rows, n in zip(images, counts, strict=True)
    ]
    return torch.cat([torch.zeros(0, dtype=torch.bool), *parts])


def _nearest(
    boxes: Tensor, key: Tensor, others: Tensor, other_key: Tensor, overlap_of: _Overlap
) -> tuple[Tensor, Tensor]:
    """The other box of equal key that each box overlaps most, the first of equals, and how much."""
    first, count = span(key, other_key)
    best = torch.zeros_like(first)
    overlap = torch.zeros(key.numel(), dtype=torch.float64)
    # Round j compares every box that has more than j candidates with its j-th, so memory stays at a
    # few rows a box however many candidates there are.
    rows = count.nonzero().squeeze(1)
    j = 0
    while rows.numel():
        candidate = first[rows] + j
        overlaps = overlap_of(boxes[rows], others[candidate])
        better = overlaps > overlap[rows]
        best[rows[better]] = candidate[better]
        overlap[rows[better]] = overlaps[better]
        j += 1
        rows = rows[count[rows] > j]
    return best, overlap


def _rank_in_run(ordered: Tensor) -> Tensor:
    """The same of an ascending key."""
    at = torch.arange(ordered.numel())
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    return at - torch.where(starts, at, 0).cummax(0).values


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    size = torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])
    return size.clamp(min=0).prod(1)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)
