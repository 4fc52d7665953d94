# SPDX-License-Identifier: BSD-3-Clause
"""confusion: what the detections took each object for, counted over classes and over images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ssd_fast.data.default_device import cpu_by_default
from ssd_fast.engine.coco_matching import find_overlaps, match_coco
from ssd_fast.engine.detection_table import DetectionTable, share_in_region, tabulate
from ssd_fast.engine.iou_thresholds import read_iou_threshold
from ssd_fast.engine.joined_images import JoinedImages, join_images
from ssd_fast.ops._arguments import check_threshold

__all__ = ["Confusion", "confusion_matrix", "count_confusion"]


@dataclass(frozen=True)
class Confusion:
    """Counts at one score threshold and one IoU.

    Attributes:
        counts: (C, C) int64. Entry (t, p) counts objects of label t detected as label p; label 0 is
            background: row 0 has the detections where nothing is, column 0 the objects missed.
        missed: (images,) int64, objects that no detection answers for.
        false: (images,) int64, detections that answer for nothing.
        confused: (images,) int64, objects detected as another class.
    """

    counts: Tensor
    missed: Tensor
    false: Tensor
    confused: Tensor


def confusion_matrix(
    detections: Sequence[dict[str, Tensor]],
    targets: Sequence[dict[str, Tensor]],
    *,
    num_classes: int,
    score_threshold: float,
    iou_threshold: float = 0.5,
) -> Confusion:
    """Counts what was found, missed, confused and made up.

    Detections choose twice, best score first: of the objects of their class the free one that they
    overlap most, as in COCO's rule; then those left choose so of all objects left, whatever their
    class. Difficult objects and regions to ignore are neither missed nor does a detection of their
    class inside them count.

    Args:
        detections: one dict an image: boxes (D, 4) corners, scores (D,), labels (D,).
        targets: one dict an image: boxes (N, 4), labels (N,), and optionally difficult, ignore or
            iscrowd (N,) bool.
        num_classes: C, with background.
        score_threshold: detections below it are left out.
        iou_threshold: least IoU of a detection and its object, in (0, 1].

    Returns:
        The counts.

    Raises:
        ValueError: as for `average_precision`, for detections that are left out, too.
    """
    images = join_images(detections, targets, num_classes)
    return count_confusion(images, score_threshold=score_threshold, iou_threshold=iou_threshold)


@cpu_by_default
def count_confusion(
    images: JoinedImages, *, score_threshold: float, iou_threshold: float
) -> Confusion:
    """The same of images that are joined already.

    Args:
        images: from `join_images`.
        score_threshold: as for `confusion_matrix`.
        iou_threshold: as for `confusion_matrix`.

    Returns:
        The counts.

    Raises:
        ValueError: a threshold is NaN, no number, or out of its range.
    """
    check_threshold("score_threshold", score_threshold)
    iou_threshold = read_iou_threshold("iou_threshold", iou_threshold)
    # A float32 score of 0.9 is a little less than the number 0.9, and is meant to be kept.
    rounded = float(torch.tensor(float(score_threshold), dtype=torch.float32))
    keep = images.found["scores"] >= min(float(score_threshold), rounded)
    found = {name: column[keep] for name, column in images.found.items()}
    table = tabulate(images._replace(found=found), difficult_is_region=True)
    choice = _choose(table, iou_threshold)
    missed = torch.ones_like(table.optional)
    missed[choice.right] = False
    missed[choice.mistaken] = False
    counts = torch.zeros(images.num_classes, images.num_classes, dtype=torch.int64)
    labels = table.object_labels
    for truth, predicted in (
        (labels[choice.right], labels[choice.right]),
        (labels[choice.mistaken], table.labels[choice.mistaking]),
        (labels[missed], torch.zeros_like(labels[missed])),
        (torch.zeros_like(choice.false), table.labels[choice.false]),
    ):
        counts.index_put_((truth, predicted), torch.ones_like(truth), accumulate=True)
    size = images.num_images
    return Confusion(
        counts,
        table.object_images[missed].bincount(minlength=size),
        table.images[choice.false].bincount(minlength=size),
        table.images[choice.mistaking].bincount(minlength=size),
    )


class _Choice(NamedTuple):
    right: Tensor  # objects that a detection of their class has found
    mistaken: Tensor  # objects that one of another class has
    mistaking: Tensor  # those detections, in the same order
    false: Tensor  # detections that have found nothing and are not excused


def _choose(table: DetectionTable, iou_threshold: float) -> _Choice:
    """Lets detections choose among the objects of their class, then those left among all left."""
    objects = _take(table.boxes, table.key, table.object_boxes, table.object_key, iou_threshold)
    right = objects[objects >= 0]
    free = torch.ones_like(table.optional)
    free[right] = False
    rest = ((objects < 0) & (share_in_region(table) < iou_threshold)).nonzero().squeeze(1)
    rest = rest[table.scores[rest].argsort(descending=True, stable=True)]
    left = free.nonzero().squeeze(1)
    other = _take(
        table.boxes[rest],
        table.images[rest],
        table.object_boxes[left],
        table.object_images[left],
        iou_threshold,
    )
    return _Choice(right, left[other[other >= 0]], rest[other >= 0], rest[other < 0])


def _take(
    boxes: Tensor, key: Tensor, objects: Tensor, object_key: Tensor, iou_threshold: float
) -> Tensor:
    """The object of its key that each detection takes by COCO's rule, (D,) int64; -1 for none."""
    overlaps = find_overlaps(boxes, key, objects, object_key, least=iou_threshold)
    matches = match_coco(overlaps, [iou_threshold], torch.ones_like(object_key, dtype=torch.bool))
    taken = torch.full_like(key, -1)
    taken[matches.rows] = matches.objects
    return taken
