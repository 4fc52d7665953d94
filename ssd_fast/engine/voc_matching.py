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

from ssd_fast.boxes import box_area
from ssd_fast.engine.box_overlap import iou, share_inside
from ssd_fast.engine.equal_keys import span
from ssd_fast.engine.joined_images import JoinedImages

__all__ = ["DetectionTable", "judge", "match_voc", "share_in_region", "tabulate"]

_Overlap: TypeAlias = Callable[[Tensor, Tensor], Tensor]


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
        area = box_area(table.boxes)
        neither |= (objects < 0) & ((area < area_range[0]) | (area > area_range[1]))
    return true, neither


def share_in_region(table: DetectionTable) -> Tensor:
    """How much of each detection lies inside one region of its key, (D,) float64."""
    if table.region_key.numel() == 0:
        return torch.zeros_like(table.scores)
    return _nearest(table.boxes, table.key, table.region_boxes, table.region_key, share_inside)[1]


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
