# SPDX-License-Identifier: BSD-3-Clause
"""COCO's twelve numbers, by the rules of `cocoeval.py` in pycocotools."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssd_fast.data.default_device import cpu_by_default
from ssd_fast.engine.average_precision import COCO_THRESHOLDS
from ssd_fast.engine.coco_matching import COCOTable, judge_coco
from ssd_fast.engine.joined_images import JoinedImages, join_images

__all__ = ["COCOEvaluation", "evaluate_coco", "evaluate_joined"]

_AREAS = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
_LIMITS = (1, 10, 100)  # detections of an image and class
_RECALLS = torch.arange(101, dtype=torch.float64, device="cpu") * 0.01  # as cocoeval.py rounds
_TINY = 2.0**-52  # what cocoeval.py adds to denominators


@dataclass(frozen=True)
class COCOEvaluation:
    """What COCO reports. A number that no object decides is NaN.

    Attributes:
        per_class: (num_classes - 1,) float64, `ap` of each class.
        ap: average precision, the mean over IoU 0.5, 0.55, ..., 0.95 and classes.
        ap_50: the same at IoU 0.5.
        ap_75: the same at IoU 0.75.
        ap_small: of objects of at most 32 x 32 pixels.
        ap_medium: of objects between.
        ap_large: of objects of at least 96 x 96 pixels.
        ar_1: average recall, given one detection an image and class.
        ar_10: the same, given ten.
        ar_100: the same, given a hundred.
        ar_small: average recall of small objects, given a hundred.
        ar_medium: the same of medium ones.
        ar_large: the same of large ones.
    """

    per_class: Tensor
    ap: float
    ap_50: float
    ap_75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar_1: float
    ar_10: float
    ar_100: float
    ar_small: float
    ar_medium: float
    ar_large: float

    def metrics(self) -> dict[str, Any]:
        """The numbers, as JSON has them: NaN is null."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["per_class"] = [_number(value) for value in self.per_class.tolist()]
        return {k: _number(v) if isinstance(v, float) else v for k, v in values.items()}


def evaluate_coco(
    detections: Sequence[dict[str, Tensor]],
    targets: Sequence[dict[str, Tensor]],
    *,
    num_classes: int,
) -> COCOEvaluation:
    """COCO's numbers, equal to those of pycocotools.

    Args:
        detections: one dict an image: boxes (D, 4) corners, scores (D,), labels (D,).
        targets: one dict an image: boxes (N, 4) corners in pixels, labels (N,), and optionally
            ignore or iscrowd (N,) bool: regions of many objects; difficult (N,) bool: the same,
            since COCO knows no difficult objects; area (N,): of the objects, where not that of the
            boxes.
        num_classes: classes with background, which is label 0.

    Returns:
        The numbers.

    Raises:
        ValueError: as for `average_precision`.
    """
    return evaluate_joined(join_images(detections, targets, num_classes))


@cpu_by_default
def evaluate_joined(joined: JoinedImages) -> COCOEvaluation:
    """The same of images that are joined already.

    Args:
        joined: from `join_images`.

    Returns:
        The numbers.
    """
    table = COCOTable.of(joined, min(COCO_THRESHOLDS))
    precision, recall = [], []
    for area_range in _AREAS:
        true, counted = judge_coco(table, COCO_THRESHOLDS, area_range)
        objects = table.object_labels[table.required(area_range)]
        number = objects.bincount(minlength=table.num_classes)[1:].double()
        precision.append(_precision(table, true, counted, number))
        limits = _LIMITS if area_range == _AREAS[0] else _LIMITS[-1:]
        recall += [_recall(table, true & (table.ranks < limit), number) for limit in limits]
    every = precision[0]
    at_50, at_75 = (COCO_THRESHOLDS.index(threshold) for threshold in (0.5, 0.75))
    numbers = [every, every[at_50], every[at_75], *precision[1:], *recall]
    return COCOEvaluation(every.mean((0, 2)), *(float(number.nanmean()) for number in numbers))


def _precision(table: COCOTable, true: Tensor, counted: Tensor, number: Tensor) -> Tensor:
    """The precision that each recall leaves reachable, (thresholds, classes, recalls) float64.

    A class without objects has NaN, and a recall that is not reached 0.
    """
    classes = number.numel()
    begins = torch.searchsorted(table.labels, torch.arange(1, classes + 1))
    at_recall = []
    for hit, counts in zip(true, counted, strict=True):
        # Of the detections that count, precision and recall are at their best where one is true.
        rows = hit.nonzero().squeeze(1)
        kind = table.labels[rows] - 1
        before = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        shown = before[rows + 1] - before[begins][kind]
        found = torch.arange(1, rows.numel() + 1) - torch.searchsorted(rows, begins)[kind]
        reached = torch.searchsorted(_RECALLS, found / number[kind], right=True) - 1
        best = torch.zeros(classes, _RECALLS.numel(), dtype=torch.float64)
        at = kind * _RECALLS.numel() + reached
        best.view(-1).scatter_reduce_(0, at, found.double() / (shown + _TINY), "amax")
        at_recall.append(best.flip(1).cummax(1).values.flip(1))
    return torch.where(number[:, None] > 0, torch.stack(at_recall), torch.nan)


def _recall(table: COCOTable, true: Tensor, number: Tensor) -> Tensor:
    """Share of the objects that are found, (thresholds, classes) float64; NaN without objects."""
    found = [table.labels[hit].bincount(minlength=table.num_classes)[1:] for hit in true]
    return torch.stack(found) / number


def _number(value: float) -> float | None:
    return None if value != value else round(value, 6)
