# SPDX-License-Identifier: BSD-3-Clause
"""Suppression other than greedy NMS by IoU, in plain PyTorch: what `ssd_fast.ops.detect` offers.

As in `boxes`, the order of the operations is part of the definition.
"""

import torch
from torch import Tensor

from ssd_fast.boxes import greedy_nms, overlaps_of, round_down

__all__ = ["NMS", "distance_overlaps", "soft_nms", "suppress"]

NMS = {"hard": 0, "soft-linear": 1, "soft-gaussian": 2, "diou": 3}
"""The words for ``nms`` and the numbers that stand for them in schemas."""


def suppress(
    nms: int,
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    iou_threshold: float,
    sigma: float,
    score_threshold: float,
    most: int,
) -> tuple[Tensor, Tensor]:
    """The best ``most`` boxes of an image that suppression class by class keeps.

    Args:
        nms: a number of `NMS`.
        boxes: (N, 4) corners, sorted by label, then prior.
        scores: (N,) of the dtype of ``boxes``.
        labels: (N,) int64.
        iou_threshold: see `ssd_fast.ops.detect`, as the next two.
        sigma: see there.
        score_threshold: see there.
        most: how many at most.

    Returns:
        (kept,) int64 indices, best first, and their scores.
    """
    if nms in (NMS["soft-linear"], NMS["soft-gaussian"]):
        width = sigma if nms == NMS["soft-gaussian"] else None
        return soft_nms(boxes, scores, labels, iou_threshold, width, score_threshold, most)
    overlaps = distance_overlaps if nms == NMS["diou"] else overlaps_of
    keep = greedy_nms(boxes, scores, iou_threshold, labels, overlaps=overlaps)[:most]
    return keep, scores[keep]


def distance_overlaps(box: Tensor, others: Tensor) -> Tensor:
    """Distance-IoU of one box with others (Zheng et al., 2020, arXiv:1911.08287, equation 7).

    Args:
        box: (4,) corners.
        others: (n, 4) corners.

    Returns:
        (n,) IoU less d^2 / c^2, d the distance of the centres, c the diagonal of the box around
        both; where c is 0 nothing is taken off.
    """
    offset = (box[:2] + box[2:]) * 0.5 - (others[:, :2] + others[:, 2:]) * 0.5
    extent = torch.maximum(box[2:], others[:, 2:]) - torch.minimum(box[:2], others[:, :2])
    dx, dy = (offset * offset).unbind(-1)
    width, height = (extent * extent).unbind(-1)
    diagonal = width + height
    penalty = torch.where(diagonal == 0, torch.zeros_like(dx), (dx + dy) / diagonal)
    return overlaps_of(box, others) - penalty


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    iou_threshold: float,
    sigma: float | None,
    score_threshold: float,
    most: int,
) -> tuple[Tensor, Tensor]:
    """Soft-NMS class by class (Bodla et al., 2017, arXiv:1704.04503, figure 2).

    Takes the box of the best score, lowers the scores of its class by how much they overlap it,
    and so on; a box whose score falls to ``score_threshold`` or below is gone. Boxes that are not
    finite are never taken. An overlap of 0 / 0 lowers nothing.

    Args:
        boxes: (N, 4) corners; of equal scores the earlier is better.
        scores: (N,) of the dtype of ``boxes``.
        labels: (N,) class of each box.
        iou_threshold: linear: where IoU exceeds it, scores are multiplied by 1 - IoU.
        sigma: gaussian: scores are multiplied by exp(-IoU^2 / sigma). None for linear.
        score_threshold: what a score must exceed.
        most: how many boxes to take.

    Returns:
        (kept,) int64 indices, best first, and their lowered scores.
    """
    threshold = round_down(iou_threshold, boxes.dtype)
    waiting = boxes.isfinite().all(dim=-1) & scores.isfinite()
    scores = scores.clone()
    kept: list[int] = []
    while len(kept) < most and bool(waiting.any()):
        # torch.argmax does not promise the first of equals on every device.
        best_score = scores[waiting].max()
        best = int((waiting & (scores == best_score)).nonzero()[0])
        kept.append(best)
        waiting[best] = False
        iou = overlaps_of(boxes[best], boxes)
        if sigma is None:
            lowered, factor = iou > threshold, (1 - iou).clamp(min=0)
        else:
            lowered, factor = iou > 0, (-(iou * iou) / sigma).exp()
        lowered &= waiting & (labels == labels[best])
        scores = torch.where(lowered, scores * factor, scores)
        waiting &= ~lowered | (scores > score_threshold)
    keep = torch.tensor(kept, dtype=torch.int64, device=boxes.device)
    return keep, scores[keep]
