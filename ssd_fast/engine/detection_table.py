# SPDX-License-Identifier: BSD-3-Clause
"""The detections and objects of all images in one table, in which rows of equal key may match.

The table looks at all images together, so that to match its rows takes a few tensor operations for
each object that a key has at most.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssd_fast.engine.box_overlap import share_inside
from ssd_fast.engine.equal_keys import candidate_rounds
from ssd_fast.engine.joined_images import JoinedImages

__all__ = ["DetectionTable", "share_in_region", "tabulate"]


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


def share_in_region(table: DetectionTable) -> Tensor:
    """How much of each detection lies inside one region of its key, (D,) float64."""
    share = torch.zeros_like(table.scores)
    for rows, region in candidate_rounds(table.key, table.region_key):
        inside = share_inside(table.boxes[rows], table.region_boxes[region])
        share[rows] = share[rows].fmax(inside)  # NaN, of a box without area, is no share
    return share
