# SPDX-License-Identifier: BSD-3-Clause
"""Which object each detection answers for, and which are true, by the rule of PASCAL VOC."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssd_fast.boxes import box_area
from ssd_fast.engine.box_overlap import iou
from ssd_fast.engine.detection_table import DetectionTable
from ssd_fast.engine.equal_keys import candidate_rounds

__all__ = ["judge", "match_voc"]


def match_voc(table: DetectionTable, thresholds: Sequence[float]) -> Tensor:
    """The object that a detection overlaps most, the first of equals, where that is enough.

    Args:
        table: from `tabulate`.
        thresholds: T least IoUs.

    Returns:
        (T, D) int64, -1 for none.
    """
    best, overlap = torch.zeros_like(table.key), torch.zeros_like(table.scores)
    for rows, candidate in candidate_rounds(table.key, table.object_key):
        overlaps = iou(table.boxes[rows], table.object_boxes[candidate])
        better = overlaps > overlap[rows]
        best[rows[better]] = candidate[better]
        overlap[rows[better]] = overlaps[better]
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
