# SPDX-License-Identifier: BSD-3-Clause
"""average_precision: how well detections find the objects, by the rules of PASCAL VOC or COCO.

Both rank all detections of a class by score, call each true or false, and average the precision
over the recall. They differ in who answers for an object, and in the average:

* VOC (`VOCevaldet.m` of the development kit; Everingham et al., IJCV 2010, section 4.2): a
  detection answers for the object of its image and class that it overlaps most, taken or not; of
  several answers the best-scored one is true. The average is the area under the precision envelope,
  or in 2007 its mean at eleven recalls.
* COCO (`cocoeval.py` of pycocotools): a detection answers for the object it overlaps most among
  those not taken by a better-scored one, and only the 100 best of an image and class count. The
  average is the envelope's mean at 101 recalls.

Answers for difficult objects count as neither true nor false, and so do detections that would be
false, but of whose own area as much as the threshold lies inside a region to ignore: COCO's crowds.
COCO knows no difficult objects; by its rule they are regions, too. Boxes are continuous: their
sides are `x2 - x1`, as in COCO, without the `+ 1` of the VOC kit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ssd_fast.data.default_device import cpu_by_default
from ssd_fast.engine.coco_matching import COCOTable, judge_coco
from ssd_fast.engine.detection_table import share_in_region, tabulate
from ssd_fast.engine.iou_thresholds import read_iou_threshold, read_iou_thresholds
from ssd_fast.engine.joined_images import JoinedImages, join_images
from ssd_fast.engine.voc_matching import judge, match_voc
from ssd_fast.ops._arguments import describe

__all__ = [
    "COCO_THRESHOLDS",
    "AveragePrecision",
    "Method",
    "PrecisionRecall",
    "average_precision",
    "average_precisions",
    "mean_average_precision",
    "score_images",
]

Method: TypeAlias = Literal["area", "voc07", "coco"]

# 0.5, 0.55, ..., 0.95, rounded as in pycocotools, whose 0.9 is a little less.
COCO_THRESHOLDS = (*(0.5 + i * ((0.95 - 0.5) / 9) for i in range(9)), 0.95)


@dataclass(frozen=True)
class PrecisionRecall:
    """The curve of one class, a point for each detection, best score first.

    Attributes:
        precision: (D,) float64, share of the detections so far that are true.
        recall: (D,) float64, share of the objects found so far; NaN if there are none.
        scores: (D,) float64, descending.
        num_objects: objects that are not difficult.
    """

    precision: Tensor
    recall: Tensor
    scores: Tensor
    num_objects: int


@dataclass(frozen=True)
class AveragePrecision:
    """Average precision of every class.

    Attributes:
        per_class: (num_classes - 1,) float64, entry i for label i + 1; NaN without objects.
        mean: the mean over classes that have objects; NaN if none has.
        curves: the precision-recall curve of each class, in the order of `per_class`.
    """

    per_class: Tensor
    mean: float
    curves: tuple[PrecisionRecall, ...]


def average_precision(
    detections: Sequence[dict[str, Tensor]],
    targets: Sequence[dict[str, Tensor]],
    *,
    num_classes: int,
    iou_threshold: float = 0.5,
    method: Method = "area",
    area_range: tuple[float, float] | None = None,
) -> AveragePrecision:
    """Average precision of each class and its mean.

    Args:
        detections: one dict an image: boxes (D, 4) corners, scores (D,), labels (D,). Equal scores
            rank in the order given.
        targets: one dict an image: boxes (N, 4) corners in the same unit, labels (N,), and
            optionally difficult (N,) bool: objects that need not be found; ignore or iscrowd (N,)
            bool: regions of many objects; area (N,): of the objects, where not that of the boxes.
            A box without area is an object that nobody finds, as in pycocotools.
        num_classes: classes with background, which is label 0.
        iou_threshold: least IoU, in (0, 1], at which a detection answers for an object.
        method: "area" (VOC 2010 and later), "voc07" (VOC 2007) or "coco".
        area_range: only objects of this area, least and largest, have to be found, and detections
            of another area that find nothing are left out. None takes all.

    Returns:
        Average precision of each class, the mean, and the curves.

    Raises:
        ValueError: lists of different lengths, a missing key, no tensor, a shape, dtype or label
            that does not fit, a score that is NaN, an object whose box is not finite or inverted,
            or an option out of range. The message names the image and the row.
    """
    threshold = read_iou_threshold("iou_threshold", iou_threshold)
    images = join_images(detections, targets, num_classes)
    return score_images(images, [threshold], method, area_range)[0]


def average_precisions(
    detections: Sequence[dict[str, Tensor]],
    targets: Sequence[dict[str, Tensor]],
    *,
    num_classes: int,
    iou_thresholds: Sequence[float] | Tensor,
    method: Method = "area",
    area_range: tuple[float, float] | None = None,
) -> tuple[AveragePrecision, ...]:
    """Average precision at several IoU thresholds, for little more than the price of one.

    Args:
        detections: as for `average_precision`.
        targets: as for `average_precision`.
        num_classes: classes with background, which is label 0.
        iou_thresholds: one or more, each in (0, 1]; a vector of torch or numpy, too.
        method: as for `average_precision`.
        area_range: as for `average_precision`.

    Returns:
        The results, in the order of the thresholds.

    Raises:
        ValueError: as for `average_precision`.
    """
    images = join_images(detections, targets, num_classes)
    return score_images(images, iou_thresholds, method, area_range)


def mean_average_precision(
    detections: Sequence[dict[str, Tensor]],
    targets: Sequence[dict[str, Tensor]],
    *,
    num_classes: int,
    iou_thresholds: Sequence[float] | Tensor = COCO_THRESHOLDS,
    method: Method = "coco",
) -> float:
    """COCO's mAP: the mean of `average_precision(...).mean` over IoU thresholds.

    Args:
        detections: as for `average_precision`.
        targets: as for `average_precision`.
        num_classes: classes with background, which is label 0.
        iou_thresholds: one or more, each in (0, 1]; 0.5, 0.55, ..., 0.95 by default.
        method: as for `average_precision`.

    Returns:
        The mean; NaN if no class has objects.

    Raises:
        ValueError: as for `average_precision`.
    """
    results = score_images(join_images(detections, targets, num_classes), iou_thresholds, method)
    return sum(result.mean for result in results) / len(results)


@cpu_by_default
def score_images(
    images: JoinedImages,
    thresholds: Sequence[float] | Tensor,
    method: Method,
    area_range: tuple[float, float] | None = None,
) -> tuple[AveragePrecision, ...]:
    """Average precision of images that are joined already, at several IoU thresholds.

    Args:
        images: from `join_images`.
        thresholds: one or more IoUs, each in (0, 1].
        method: as for `average_precision`.
        area_range: as for `average_precision`.

    Returns:
        The results, in the order of the thresholds.

    Raises:
        ValueError: an option is out of its range.
    """
    if method not in ("area", "voc07", "coco"):
        raise ValueError(f'method: expected "area", "voc07" or "coco", got {method!r}')
    thresholds = read_iou_thresholds(thresholds)
    _check_area_range(area_range)
    num_classes = images.num_classes
    scores = images.found["scores"]
    labels = torch.arange(1, num_classes + 1)
    rows = torch.searchsorted(images.found["labels"], labels).tolist()
    rule = _by_coco if method == "coco" else _by_voc
    required, judged = rule(images, thresholds, area_range)
    num_objects = required.bincount(minlength=num_classes).tolist()
    results = []
    for true, counted in judged:
        curves = tuple(
            _curve(true[start:stop], counted[start:stop], scores[start:stop], number)
            for start, stop, number in zip(rows[:-1], rows[1:], num_objects[1:], strict=True)
        )
        values = torch.tensor([_average(curve, method) for curve in curves], dtype=torch.float64)
        results.append(AveragePrecision(values, float(values.nanmean()), curves))
    return tuple(results)


def _check_area_range(area_range: Any) -> None:
    """Raises ValueError unless it is None or two numbers in order."""
    if area_range is None:
        return
    numbers = isinstance(area_range, Sequence) and all(isinstance(x, Real) for x in area_range)
    if not numbers or len(area_range) != 2 or not area_range[0] <= area_range[1]:
        raise ValueError(
            "area_range: expected the least and the largest area, such as (0, 1024), or None for"
            f" all, got {describe(area_range)}"
        )


def _by_coco(
    images: JoinedImages, thresholds: Sequence[float], area_range: tuple[float, float] | None
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """As `_by_voc`."""
    table = COCOTable.of(images, min(thresholds))
    true, counted = judge_coco(table, thresholds, area_range)
    required = table.object_labels[table.required(area_range)]
    return required, list(zip(true, counted, strict=True))


def _by_voc(
    images: JoinedImages, thresholds: Sequence[float], area_range: tuple[float, float] | None
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Labels of the objects to find, and at each threshold which detections are true and count."""
    table = tabulate(images, difficult_is_region=False, area_range=area_range)
    inside = share_in_region(table)
    judged = []
    for threshold, objects in zip(thresholds, match_voc(table, thresholds), strict=True):
        true, neither = judge(table, objects, inside >= threshold, area_range)
        judged.append((true, ~neither))
    return table.object_labels[~table.optional], judged


def _curve(true: Tensor, kept: Tensor, scores: Tensor, num_objects: int) -> PrecisionRecall:
    """Precision and recall after each detection of a class that counts."""
    found = true[kept].cumsum(0).double()
    precision = found / torch.arange(1, found.numel() + 1)
    recall = found / num_objects if num_objects else torch.full_like(found, torch.nan)
    return PrecisionRecall(precision, recall, scores[kept], num_objects)


def _average(curve: PrecisionRecall, method: Method) -> float:
    """The mean of the precision envelope over recall."""
    if curve.num_objects == 0:
        return float("nan")
    envelope = curve.precision.flip(0).cummax(0).values.flip(0)
    if method == "area":
        return float((envelope * curve.recall.diff(prepend=curve.recall.new_zeros(1))).sum())
    if method == "voc07":
        # Recall k / 10 is reached at found * 10 >= k * objects: integers, where 0.1 * 3 > 0.3.
        found = (curve.recall * curve.num_objects).round()
        at = torch.searchsorted(found * 10, torch.arange(11.0).double() * curve.num_objects)
    else:  # in floating point, as pycocotools compares
        at = torch.searchsorted(curve.recall, torch.arange(101.0).double() * 0.01)
    return float(torch.cat([envelope, envelope.new_zeros(1)])[at].mean())
