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

Answers for difficult objects count as neither true nor false. Boxes are continuous: their sides are
`x2 - x1`, as in COCO, without the `+ 1` of the VOC kit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

__all__ = ["AveragePrecision", "PrecisionRecall", "average_precision", "mean_average_precision"]

Method: TypeAlias = Literal["area", "voc07", "coco"]

_COCO_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
_COCO_DETECTIONS = 100  # of an image and class


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
) -> AveragePrecision:
    """Average precision of each class and its mean.

    Args:
        detections: one dict an image: boxes (D, 4) corners, scores (D,), labels (D,). Equal scores
            rank in the order given.
        targets: one dict an image: boxes (N, 4) corners in the same unit, labels (N,), and
            optionally difficult (N,) bool: objects that need not be found.
        num_classes: classes with background, which is label 0.
        iou_threshold: least IoU, in (0, 1], at which a detection answers for an object.
        method: "area" (VOC 2010 and later), "voc07" (VOC 2007) or "coco".

    Returns:
        Average precision of each class, the mean, and the curves.

    Raises:
        ValueError: lists of different lengths, a missing key, a shape or label that does not fit, a
            score that is NaN, or an option out of range. The message names the image.
    """
    return _evaluate(detections, targets, num_classes, [iou_threshold], method)[0]


def mean_average_precision(
    detections: Sequence[dict[str, Tensor]],
    targets: Sequence[dict[str, Tensor]],
    *,
    num_classes: int,
    iou_thresholds: Sequence[float] = _COCO_THRESHOLDS,
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
    results = _evaluate(detections, targets, num_classes, list(iou_thresholds), method)
    return sum(result.mean for result in results) / len(results)


class _Table(NamedTuple):
    """All images at once. `key` is image * num_classes + label: rows of equal key may match."""

    boxes: Tensor  # (D, 4) float64, descending score
    scores: Tensor  # (D,) float64
    labels: Tensor  # (D,) int64
    key: Tensor  # (D,) int64
    object_boxes: Tensor  # (N, 4) float64, ascending key
    object_labels: Tensor  # (N,) int64
    object_key: Tensor  # (N,) int64
    difficult: Tensor  # (N,) bool


class _Answers(NamedTuple):
    """Which object each detection answers for."""

    objects: Tensor  # (T, D) int64 at each threshold, -1 for none
    counted: Tensor  # (D,) bool, whether the detection is looked at


def _evaluate(
    detections: Sequence[dict[str, Tensor]],
    targets: Sequence[dict[str, Tensor]],
    num_classes: int,
    thresholds: list[float],
    method: Method,
) -> list[AveragePrecision]:
    """Average precision at each of some thresholds."""
    if method not in ("area", "voc07", "coco"):
        raise ValueError(f'method: expected "area", "voc07" or "coco", got {method!r}')
    if not thresholds or not all(0 < threshold <= 1 for threshold in thresholds):
        raise ValueError(f"iou_threshold: expected more than 0 and at most 1, got {thresholds}")
    table = _flatten(detections, targets, num_classes, difficult_last=method == "coco")
    answers = (_answer_coco if method == "coco" else _answer_voc)(table, thresholds)
    results = []
    for objects in answers.objects:
        true, neither = _judge(table, objects)
        curves = [
            _curve(table, true, answers.counted & ~neither, label)
            for label in range(1, num_classes)
        ]
        values = torch.tensor([_average(curve, method) for curve in curves], dtype=torch.float64)
        results.append(AveragePrecision(values, float(values.nanmean()), tuple(curves)))
    return results


def _flatten(
    detections: Sequence[dict[str, Tensor]],
    targets: Sequence[dict[str, Tensor]],
    num_classes: int,
    *,
    difficult_last: bool,
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
    # Stable, so that within a key objects keep their order: both rules break ties by it.
    by_key = (2 * object_key + difficult_last * (difficult > 0)).argsort(stable=True)
    return _Table(
        boxes[order],
        scores[order],
        labels[order],
        key[order],
        object_boxes[by_key],
        object_labels[by_key],
        object_key[by_key],
        difficult[by_key] > 0,
    )


def _rows(
    name: str, image: int, rows: dict[str, Tensor], num_classes: int, third: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (n, 4), labels (n,) and the third column (n,) of an image, checked, on the CPU."""
    needed = ["boxes", "labels"] + ["scores"] * (third == "scores")
    missing = [column for column in needed if column not in rows]
    if missing:
        raise ValueError(f"{name}[{image}]: expected {' and '.join(missing)} beside {list(rows)}")
    boxes, labels = rows["boxes"].detach().cpu().double(), rows["labels"].detach().cpu().long()
    n = labels.numel()
    value = rows[third].detach().cpu().double() if third in rows else labels.new_zeros(n).double()
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
        raise ValueError(f"{name}[{image}]: {third}[{int(value.isnan().nonzero()[0])}] is NaN")
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


def _candidates(table: _Table) -> tuple[Tensor, Tensor]:
    """First object of each detection's image and class (D,), and how many follow it (D,)."""
    first = torch.searchsorted(table.object_key, table.key)
    return first, torch.searchsorted(table.object_key, table.key, right=True) - first


def _answer_voc(table: _Table, thresholds: list[float]) -> _Answers:
    """The object that a detection overlaps most, the first of equals, where that is enough."""
    first, count = _candidates(table)
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
    least = torch.tensor(thresholds, dtype=torch.float64).unsqueeze(1)
    objects = torch.where(overlap >= least, best, -1)
    return _Answers(objects, torch.ones_like(best, dtype=torch.bool))


def _answer_coco(table: _Table, thresholds: list[float]) -> _Answers:
    """The free object that a detection overlaps most, the last of equals, difficult ones last."""
    counted = _rank(table.key) < _COCO_DETECTIONS
    # A detection below every threshold takes nothing, so the others need not wait for it.
    able = _answer_voc(table, [min(thresholds)]).objects[0] >= 0
    waiting = (able & counted).nonzero().squeeze(1)
    rank = _rank(table.key[waiting])
    first, count = _candidates(table)
    least = torch.tensor(thresholds, dtype=torch.float64).unsqueeze(1)
    objects = torch.full((len(thresholds), table.scores.numel()), -1)
    free = torch.ones(len(thresholds), table.difficult.numel(), dtype=torch.bool)
    # Images and classes are independent: round r lets the r-th detection of each of them choose.
    for r in range(int(rank.max()) + 1 if rank.numel() else 0):
        rows = waiting[rank == r]
        best = objects[:, rows]
        overlap = least.expand(-1, rows.numel()).clone()
        for j in range(int(count[rows].max())):
            at = (count[rows] > j).nonzero().squeeze(1)
            candidate = first[rows[at]] + j
            iou = _iou(table.boxes[rows[at]], table.object_boxes[candidate])
            current = best[:, at]
            better = free[:, candidate] & (iou >= overlap[:, at])
            better &= (current < 0) | table.difficult[current] | ~table.difficult[candidate]
            best[:, at] = torch.where(better, candidate, current)
            overlap[:, at] = torch.where(better, iou, overlap[:, at])
        objects[:, rows] = best
        at_threshold, at_row = (best >= 0).nonzero(as_tuple=True)
        free[at_threshold, best[at_threshold, at_row]] = False
    return _Answers(objects, counted)


def _rank(key: Tensor) -> Tensor:
    """How many rows before each one have the same key, (n,)."""
    ordered, order = key.sort(stable=True)
    rank = torch.arange(key.numel()) - torch.searchsorted(ordered, ordered)
    return torch.empty_like(key).scatter_(0, order, rank)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of the rows of two (n, 4) lists of corners, (n,)."""
    size = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    inter = size.prod(1)
    return inter / ((a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inter)


def _judge(table: _Table, objects: Tensor) -> tuple[Tensor, Tensor]:
    """Which detections (D,) are true, and which are neither: answers for difficult objects."""
    answering = (objects >= 0).nonzero().squeeze(1)
    neither = torch.zeros(table.scores.numel(), dtype=torch.bool)
    neither[answering] = table.difficult[objects[answering]]
    # Rows are in descending score, so the lowest row of an object is its best-scored answer.
    nobody = table.scores.numel()
    winner = torch.full((table.difficult.numel(),), nobody)
    winner.scatter_reduce_(0, objects[answering], answering, "amin")
    true = torch.zeros_like(neither)
    true[winner[winner < nobody]] = True
    return true, neither


def _curve(table: _Table, true: Tensor, counted: Tensor, label: int) -> PrecisionRecall:
    """Precision and recall after each counted detection of a class."""
    rows = ((table.labels == label) & counted).nonzero().squeeze(1)
    num_objects = int(((table.object_labels == label) & ~table.difficult).sum())
    found = true[rows].cumsum(0).double()
    precision = found / torch.arange(1, rows.numel() + 1)
    recall = found / num_objects if num_objects else torch.full_like(found, torch.nan)
    return PrecisionRecall(precision, recall, table.scores[rows], num_objects)


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
