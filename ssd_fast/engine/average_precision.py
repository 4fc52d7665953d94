# SPDX-License-Identifier: BSD-3-Clause
"""average_precision: how well detections find the objects, by PASCAL VOC's rules.

The definition is the development kit's `VOCevaldet.m` (Everingham et al., IJCV 2010, section 4.2):
a detection answers for the object of its image and class that it overlaps most; the best-scored
answer is true, every other one is false, and answers for difficult objects count for nothing. One
difference: boxes here are continuous, so their sides are `x2 - x1` without the kit's `+ 1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

__all__ = ["AveragePrecision", "PrecisionRecall", "average_precision", "mean_average_precision"]

_COCO_THRESHOLDS = tuple(0.5 + 0.05 * i for i in range(10))


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
    method: Literal["area", "voc07"] = "area",
) -> AveragePrecision:
    """Average precision of each class and its mean.

    Args:
        detections: one dict an image: boxes (D, 4) corners, scores (D,), labels (D,). Equal scores
            rank in the order given.
        targets: one dict an image: boxes (N, 4) corners in the same unit, labels (N,), and
            optionally difficult (N,) bool: objects that need not be found.
        num_classes: classes with background, which is label 0.
        iou_threshold: least IoU, in (0, 1], at which a detection answers for an object.
        method: "area", the area under the precision envelope (VOC 2010 and later), or "voc07", its
            mean at the recalls 0, 0.1, ..., 1 (VOC 2007).

    Returns:
        Average precision of each class, the mean, and the curves.

    Raises:
        ValueError: lists of different lengths, a shape or label that does not fit, a score that is
            NaN, or an option out of range. The message names the image.
    """
    if method not in ("area", "voc07"):
        raise ValueError(f'method: expected "area" or "voc07", got {method!r}')
    answers = _match(_flatten(detections, targets, num_classes))
    return _score(answers, num_classes, iou_threshold, method)


def mean_average_precision(
    detections: Sequence[dict[str, Tensor]],
    targets: Sequence[dict[str, Tensor]],
    *,
    num_classes: int,
    iou_thresholds: Sequence[float] = _COCO_THRESHOLDS,
    method: Literal["area", "voc07"] = "area",
) -> float:
    """Mean of `average_precision(...).mean` over IoU thresholds, 0.5 to 0.95 by default.

    It follows COCO's choice of thresholds and VOC's rules at each of them.

    Args:
        detections: as for `average_precision`.
        targets: as for `average_precision`.
        num_classes: classes with background, which is label 0.
        iou_thresholds: each in (0, 1].
        method: as for `average_precision`.

    Returns:
        The mean; NaN if no class has objects.

    Raises:
        ValueError: as for `average_precision`.
    """
    answers = _match(_flatten(detections, targets, num_classes))
    means = [_score(answers, num_classes, t, method).mean for t in iou_thresholds]
    return sum(means) / len(means)


class _Table(NamedTuple):
    """All images at once. `key` is image * num_classes + label, so that equal keys may match."""

    boxes: Tensor  # (D, 4) float64, descending score
    scores: Tensor  # (D,) float64
    key: Tensor  # (D,) int64
    labels: Tensor  # (D,) int64
    object_boxes: Tensor  # (N, 4) float64, ascending key
    object_key: Tensor  # (N,) int64
    object_labels: Tensor  # (N,) int64
    difficult: Tensor  # (N,) bool


class _Answers(NamedTuple):
    """What each detection overlaps most; this does not depend on the threshold."""

    table: _Table
    best: Tensor  # (D,) int64, an object of the detection's image and class; 0 if there is none
    overlap: Tensor  # (D,) float64, their IoU; 0 if there is none


def _flatten(
    detections: Sequence[dict[str, Tensor]],
    targets: Sequence[dict[str, Tensor]],
    num_classes: int,
) -> _Table:
    """Checks the images one by one and puts them in one table."""
    if len(detections) != len(targets):
        raise ValueError(
            f"detections: expected one for each of {len(targets)} targets, got {len(detections)}"
        )
    if num_classes < 2:
        raise ValueError(f"num_classes: expected 2 or more, background included, got {num_classes}")
    found = [_rows("detections", i, d, num_classes, "scores") for i, d in enumerate(detections)]
    there = [_rows("targets", i, t, num_classes, "difficult") for i, t in enumerate(targets)]
    boxes, labels, scores, key = _concatenate(found, num_classes)
    object_boxes, object_labels, difficult, object_key = _concatenate(there, num_classes)
    order = scores.argsort(descending=True, stable=True)
    by_key = object_key.argsort(stable=True)  # stable: of equal overlaps the first object wins
    return _Table(
        boxes[order],
        scores[order],
        key[order],
        labels[order],
        object_boxes[by_key],
        object_key[by_key],
        object_labels[by_key],
        difficult[by_key] > 0,
    )


def _rows(
    name: str, image: int, rows: dict[str, Tensor], num_classes: int, third: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (n, 4), labels (n,) and the third column (n,) of an image, checked, on the CPU."""
    boxes, labels = rows["boxes"].detach().cpu().double(), rows["labels"].detach().cpu().long()
    n = boxes.size(0)
    value = rows.get(third)
    if value is None:
        if third == "scores":
            raise ValueError(
                f"{name}[{image}]: expected boxes, labels and scores, got {list(rows)}"
            )
        value = torch.zeros(n)
    value = value.detach().cpu().double()
    if boxes.shape != (n, 4) or labels.shape != (n,) or value.shape != (n,):
        raise ValueError(
            f"{name}[{image}]: expected boxes (n, 4), labels (n,) and {third} (n,), got "
            f"{tuple(boxes.shape)}, {tuple(labels.shape)} and {tuple(value.shape)}"
        )
    if n and (int(labels.min()) < 1 or int(labels.max()) >= num_classes):
        raise ValueError(
            f"{name}[{image}]: expected labels from 1 to {num_classes - 1}, "
            f"got {int(labels.min())} to {int(labels.max())}"
        )
    if bool(value.isnan().any()):
        row = int(value.isnan().nonzero()[0])
        raise ValueError(f"{name}[{image}]: {third}[{row}] is NaN")
    return boxes, labels, value


def _concatenate(
    images: list[tuple[Tensor, Tensor, Tensor]], num_classes: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The images' columns in one piece each, and the key of every row."""
    boxes = torch.cat([torch.zeros(0, 4, dtype=torch.float64), *(b for b, _, _ in images)])
    labels = torch.cat([torch.zeros(0, dtype=torch.int64), *(x for _, x, _ in images)])
    third = torch.cat([torch.zeros(0, dtype=torch.float64), *(v for _, _, v in images)])
    counts = torch.tensor([b.size(0) for b, _, _ in images], dtype=torch.int64)
    image = torch.arange(len(images)).repeat_interleave(counts)
    return boxes, labels, third, image * num_classes + labels


def _match(table: _Table) -> _Answers:
    """Finds for each detection the object of its image and class that it overlaps most."""
    first = torch.searchsorted(table.object_key, table.key)
    count = torch.searchsorted(table.object_key, table.key, right=True) - first
    best = torch.zeros_like(first)
    overlap = torch.zeros_like(table.scores)
    # Round j compares every detection that has more than j candidates with its j-th, so memory
    # stays at a few rows a detection however many objects an image holds.
    rows = count.nonzero().squeeze(1)
    j = 0
    while rows.numel():
        candidate = first[rows] + j
        iou = _iou(table.boxes[rows], table.object_boxes[candidate])
        better = iou > overlap[rows]
        best[rows[better]] = candidate[better]
        overlap[rows[better]] = iou[better]
        j += 1
        rows = rows[count[rows] > j]
    return _Answers(table, best, overlap)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of the rows of two (n, 4) lists of corners, (n,)."""
    size = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    inter = size.prod(1)
    return inter / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inter)


def _score(
    answers: _Answers, num_classes: int, iou_threshold: float, method: str
) -> AveragePrecision:
    """Calls each detection true, false or neither at a threshold, and averages the precision."""
    if not 0.0 < iou_threshold <= 1.0:
        raise ValueError(f"iou_threshold: expected more than 0 and at most 1, got {iou_threshold}")
    table = answers.table
    hit = (answers.overlap >= iou_threshold).nonzero().squeeze(1)
    neither = torch.zeros(table.scores.numel(), dtype=torch.bool)
    neither[hit] = table.difficult[answers.best[hit]]
    # Rows are in descending score, so the lowest row of an object is its best-scored answer.
    winner = torch.full((table.difficult.numel(),), table.scores.numel(), dtype=torch.int64)
    winner.scatter_reduce_(0, answers.best[hit], hit, "amin")
    true = torch.zeros_like(neither)
    true[winner[winner < table.scores.numel()]] = True
    curves = tuple(_curve(table, true, neither, label) for label in range(1, num_classes))
    values = [_average(curve, method) for curve in curves]
    per_class = torch.tensor(values, dtype=torch.float64)
    return AveragePrecision(per_class, float(per_class.nanmean()), curves)


def _curve(table: _Table, true: Tensor, neither: Tensor, label: int) -> PrecisionRecall:
    """Precision and recall after each detection of a class."""
    rows = ((table.labels == label) & ~neither).nonzero().squeeze(1)
    num_objects = int(((table.object_labels == label) & ~table.difficult).sum())
    found = true[rows].cumsum(0).double()
    precision = found / torch.arange(1, rows.numel() + 1)
    recall = found / num_objects if num_objects else torch.full_like(found, torch.nan)
    return PrecisionRecall(precision, recall, table.scores[rows], num_objects)


def _average(curve: PrecisionRecall, method: str) -> float:
    """Area under the precision envelope, or its mean at eleven recalls."""
    if curve.num_objects == 0:
        return float("nan")
    envelope = curve.precision.flip(0).cummax(0).values.flip(0)
    found = (curve.recall * curve.num_objects).round()
    if method == "voc07":
        # Recall r / 10 is reached at found * 10 >= r * objects: integers, where 0.1 * 3 > 0.3.
        at = torch.searchsorted(found * 10, torch.arange(11.0).double() * curve.num_objects)
        return float(torch.cat([envelope, envelope.new_zeros(1)])[at].mean())
    return float((envelope * found.diff(prepend=found.new_zeros(1))).sum() / curve.num_objects)
