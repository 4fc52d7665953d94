# SPDX-License-Identifier: BSD-3-Clause
"""Which object each detection answers for, by COCO's rule, at many thresholds for many images.

The rule is `evaluateImg` of `cocoeval.py` in pycocotools: in the order of their scores, each of the
detections of an image and class takes the object it overlaps most, of those that are free and that
it overlaps enough: objects that have to be found first, then those that need not be, for which it
counts as neither true nor false. A crowd is one of the latter and never taken: what a detection
overlaps of it is the share of its own area that lies inside.

Only pairs that overlap at all are looked at, those of all images and classes together: in turn r,
the r-th detection of each image and class chooses, at every threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ssd_fast.engine.box_overlap import iou, share_inside
from ssd_fast.engine.equal_keys import candidate_rounds, rank
from ssd_fast.engine.joined_images import JoinedImages

__all__ = ["COCOTable", "Matches", "Overlaps", "find_overlaps", "judge_coco", "match_coco"]

_DETECTIONS = 100  # of an image and class
_LARGEST = 1 - 1e-10  # of the thresholds, as in cocoeval.py: a box overlaps itself by 1 or so


class Overlaps(NamedTuple):
    """Pairs of a detection and an object of its key: by turn, by row, then by ascending overlap."""

    rows: Tensor  # (P,) int64, of the detection
    objects: Tensor  # (P,) int64; those of equal overlap ascend
    overlaps: Tensor  # (P,) float64
    turns: tuple[int, ...]  # where each turn begins, and P


class Matches(NamedTuple):
    """Detections and the objects that they answer for."""

    thresholds: Tensor  # (M,) int64, which of the thresholds
    rows: Tensor  # (M,) int64, of the detection
    objects: Tensor  # (M,) int64


class COCOTable(NamedTuple):
    """All images at once, as COCO's rule sees them."""

    scores: Tensor  # (D,) float64
    labels: Tensor  # (D,) int64, ascending
    areas: Tensor  # (D,) float64
    ranks: Tensor  # (D,) int64, by score among those of its image and class
    object_labels: Tensor  # (N,) int64
    object_areas: Tensor  # (N,) float64
    crowd: Tensor  # (N,) bool
    overlaps: Overlaps
    num_classes: int

    @classmethod
    def of(cls, images: JoinedImages, least: float) -> COCOTable:
        """Makes the table, whose rows are those of the joined detections.

        Args:
            images: from `join_images`.
            least: the least of the thresholds at which it will be asked.

        Returns:
            The table. Detections whose corners are not finite or inverted have no area.
        """
        found, there = images.found, images.there
        boxes = _upright(found["boxes"])
        ranks = rank(found["key"])
        by_key = there["key"].argsort(stable=True)
        crowd = (there["ignore"] | there["difficult"])[by_key]
        counted = (ranks < _DETECTIONS).nonzero().squeeze(1)
        overlaps = find_overlaps(
            boxes[counted],
            found["key"][counted],
            there["boxes"][by_key],
            there["key"][by_key],
            least=least,
            crowd=crowd,
        )
        return cls(
            scores=found["scores"],
            labels=found["labels"],
            areas=(boxes[:, 2:] - boxes[:, :2]).prod(1),
            ranks=ranks,
            object_labels=there["labels"][by_key],
            object_areas=there["areas"][by_key],
            crowd=crowd,
            overlaps=overlaps._replace(rows=counted[overlaps.rows]),
            num_classes=images.num_classes,
        )

    def required(self, area_range: tuple[float, float] | None) -> Tensor:
        """The objects of an area that have to be found, (N,) bool."""
        return ~self.crowd & _within(self.object_areas, area_range)


def find_overlaps(
    boxes: Tensor,
    key: Tensor,
    objects: Tensor,
    object_key: Tensor,
    *,
    least: float,
    crowd: Tensor | None = None,
) -> Overlaps:
    """Pairs of equal key that overlap enough.

    Args:
        boxes: (D, 4) float64 corners of detections, those of equal key in descending score.
        key: (D,) int64.
        objects: (N, 4) float64 corners.
        object_key: (N,) int64, ascending.
        least: overlap of a pair.
        crowd: (N,) bool, objects of which a detection overlaps its own share inside; None for none.

    Returns:
        The pairs.
    """
    least = min(least, _LARGEST)
    pairs = [(torch.zeros(0).long(), torch.zeros(0).long(), torch.zeros(0).double())]
    for rows, candidate in candidate_rounds(key, object_key):
        overlap = iou(boxes[rows], objects[candidate])
        if crowd is not None:
            many = crowd[candidate].nonzero().squeeze(1)
            overlap[many] = share_inside(boxes[rows[many]], objects[candidate[many]])
        near = (overlap >= least).nonzero().squeeze(1)
        pairs.append((rows[near], candidate[near], overlap[near]))
    row, candidate, overlap = (torch.cat(column) for column in zip(*pairs, strict=True))
    # A detection below every threshold takes nothing, so the others need not wait for it.
    waiting, at = row.unique(return_inverse=True)
    turn = rank(key[waiting])[at]
    order = overlap.argsort(stable=True)
    order = order[(turn * key.numel() + row)[order].argsort(stable=True)]
    turns = turn.bincount().cumsum(0).tolist()
    return Overlaps(row[order], candidate[order], overlap[order], (0, *turns))


def match_coco(
    overlaps: Overlaps,
    thresholds: Sequence[float],
    required: Tensor,
    crowd: Tensor | None = None,
) -> Matches:
    """Lets detections take objects, the better-scored first.

    Args:
        overlaps: of detections and objects.
        thresholds: T least overlaps.
        required: (N,) bool, objects that are preferred to the others, however little they overlap.
        crowd: (N,) bool, objects that are never taken; None for none.

    Returns:
        The matches, at most one a threshold and detection.
    """
    least = torch.tensor(thresholds, dtype=torch.float64).clamp(max=_LARGEST).unsqueeze(1)
    free = torch.ones(len(thresholds), required.numel(), dtype=torch.bool)
    nothing = torch.zeros(0, dtype=torch.int64)
    taken = [(nothing, nothing, nothing)]
    for start, stop in zip(overlaps.turns[:-1], overlaps.turns[1:], strict=True):
        candidate = overlaps.objects[start:stop]
        rows, detection = overlaps.rows[start:stop].unique_consecutive(return_inverse=True)
        # Of a detection's pairs, the later the better; 0 is none.
        worth = torch.arange(1, stop - start + 1) + (stop - start) * required[candidate]
        open_ = free[:, candidate] & (overlaps.overlaps[start:stop] >= least)
        best = torch.zeros(len(thresholds), rows.numel(), dtype=torch.int64)
        best.scatter_reduce_(1, detection.expand_as(open_), torch.where(open_, worth, 0), "amax")
        threshold, chooser = best.nonzero(as_tuple=True)
        chosen = candidate[(best[threshold, chooser] - 1) % (stop - start)]
        free[threshold, chosen] = False if crowd is None else crowd[chosen]
        taken.append((threshold, rows[chooser], chosen))
    return Matches(*(torch.cat(column) for column in zip(*taken, strict=True)))


def judge_coco(
    table: COCOTable, thresholds: Sequence[float], area_range: tuple[float, float] | None = None
) -> tuple[Tensor, Tensor]:
    """Which detections are true, and which count.

    Args:
        table: from `COCOTable.of`.
        thresholds: T least IoUs.
        area_range: least and largest area of the objects that have to be found, and of the
            detections that count although they answer for nothing; None for all.

    Returns:
        true (T, D) bool; counted (T, D) bool: true or false, and not neither.
    """
    required = table.required(area_range)
    matches = match_coco(table.overlaps, thresholds, required, table.crowd)
    right = required[matches.objects]
    true = torch.zeros(len(thresholds), table.scores.numel(), dtype=torch.bool)
    true[matches.thresholds, matches.rows] = right
    alone = (table.ranks < _DETECTIONS) & _within(table.areas, area_range)
    counted = alone.repeat(len(thresholds), 1)
    counted[matches.thresholds, matches.rows] = right
    return true, counted


def _upright(boxes: Tensor) -> Tensor:
    """Boxes with an area, or none."""
    boxes = torch.where(boxes.isfinite().all(1, keepdim=True), boxes, 0.0)
    return torch.cat([boxes[:, :2], torch.maximum(boxes[:, :2], boxes[:, 2:])], 1)


def _within(areas: Tensor, area_range: tuple[float, float] | None) -> Tensor:
    """Where an area is in a range, ends included."""
    if area_range is None:
        return torch.ones_like(areas, dtype=torch.bool)
    return ~((areas < area_range[0]) | (areas > area_range[1]))
