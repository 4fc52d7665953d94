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
from ssd_fast.engine.joined_images import join_images

__all__ = ["Confusion", "confusion_matrix"]


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


@cpu_by_default
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
        iou_threshold: least IoU of a detection and its object.

    Returns:
        The counts.

    Raises:
        ValueError: as for `average_precision`.
    """
    kept = []
    for rows in detections:
        keep = rows["scores"] >= score_threshold
        kept.append({name: rows[name][keep] for name in ("boxes", "scores", "labels")})
    table = tabulate(join_images(kept, targets, num_classes), difficult_is_region=True)
    choice = _choose(table, iou_threshold)
    missed = torch.ones_like(table.optional)
    missed[choice.right] = False
    missed[choice.mistaken] = False
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    labels = table.object_labels
    for truth, predicted in (
        (labels[choice.right], labels[choice.right]),
        (labels[choice.mistaken], table.labels[choice.mistaking]),
        (labels[missed], torch.zeros_like(labels[missed])),
        (torch.zeros_like(choice.false), table.labels[choice.false]),
    ):
        counts.index_put_((truth, predicted), torch.ones_like(truth), accumulate=True)
    images = len(targets)
    return Confusion(
        counts,
        table.object_images[missed].bincount(minlength=images),
        table.images[choice.false].bincount(minlength=images),
        table.images[choice.mistaking].bincount(minlength=images),
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
