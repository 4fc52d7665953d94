# SPDX-License-Identifier: BSD-3-Clause
"""Box arithmetic in plain PyTorch: the definitions that every kernel is held to.

Boxes are corners ``(x1, y1, x2, y2)``. The order of the operations is part of the definition: the
kernels repeat it operation by operation, so that their float32 results are equal bit for bit.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = [
    "MAX_LOG_SCALE",
    "box_area",
    "box_iof",
    "box_iou",
    "decode_boxes",
    "encode_boxes",
    "four_variances",
    "greedy_nms",
    "overlaps_of",
    "round_down",
]

MAX_LOG_SCALE = math.log(1000 / 16)
"""Largest log-scale that decoding lets through, as in torchvision's ``BoxCoder``."""


def box_area(boxes: Tensor) -> Tensor:
    """Areas of boxes, negative or NaN where the corners say so.

    Args:
        boxes: (..., 4) corners.

    Returns:
        (...) areas, ``(x2 - x1) * (y2 - y1)``.
    """
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 - x1) * (y2 - y1)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (jaccard overlap) of every box of ``a`` with every box of ``b``.

    ``inter / (area_a + area_b - inter)`` without an epsilon, as in amdegroot/ssd.pytorch,
    torchvision and Caffe; pairs that do not overlap have 0, even where the areas would give 0 / 0.

    Args:
        a: (P, 4) corners.
        b: (N, 4) corners.

    Returns:
        (P, N) overlaps.
    """
    inter = _intersection(a, b)
    union = box_area(a).unsqueeze(-1) + box_area(b).unsqueeze(-2) - inter
    return torch.where(inter > 0, inter / union, torch.zeros_like(inter))


def box_iof(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over foreground: the share of every box of ``a`` inside every box of ``b``.

    ``inter / area_a``, with the intersection of `box_iou`: what COCO's evaluation compares with
    crowds (pycocotools, ``iou`` with ``iscrowd``); pairs that do not overlap have 0.

    Args:
        a: (P, 4) corners.
        b: (N, 4) corners.

    Returns:
        (P, N) shares.
    """
    inter = _intersection(a, b)
    share = inter / box_area(a).unsqueeze(-1)
    return torch.where(inter > 0, share, torch.zeros_like(inter))


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    """Area that every box of ``a`` (P, 4) shares with every box of ``b`` (N, 4), (P, N)."""
    ax1, ay1, ax2, ay2 = a.unsqueeze(-2).unbind(-1)
    bx1, by1, bx2, by2 = b.unsqueeze(-3).unbind(-1)
    width = torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)
    height = torch.minimum(ay2, by2) - torch.maximum(ay1, by1)
    return width.clamp(min=0) * height.clamp(min=0)


def four_variances(variances: Sequence[float]) -> tuple[float, float, float, float]:
    """Spells out variances: ``(center, size)`` becomes ``(center, center, size, size)``.

    Args:
        variances: 2 or 4 positive numbers.

    Raises:
        ValueError: for another count, or a number that is not positive and finite.
    """
    try:
        values = tuple(float(v) for v in variances)
    except (TypeError, ValueError, OverflowError):  # one number, words, None
        values = ()
    if len(values) not in (2, 4) or not all(0 < v < math.inf for v in values):
        raise ValueError(
            f"variances: expected 2 or 4 positive finite numbers, (center, size) or (x, y, w, h), "
            f"got {variances!r}"
        )
    if len(values) == 2:
        return values[0], values[0], values[1], values[1]
    return values[0], values[1], values[2], values[3]


def encode_boxes(boxes: Tensor, priors: Tensor, variances: Sequence[float]) -> Tensor:
    """Offsets that lead from priors to boxes (SSD paper, section 2.2, with Caffe's variances).

    ``((center - prior_center) / prior_size / variance, log(size / prior_size) / variance)``.

    Args:
        boxes: (..., 4) corners.
        priors: (..., 4) corners, broadcast against ``boxes``.
        variances: 2 or 4 numbers.

    Returns:
        (..., 4) offsets ``(x, y, w, h)``.
    """
    vx, vy, vw, vh = four_variances(variances)
    x1, y1, x2, y2 = boxes.unbind(-1)
    px1, py1, px2, py2 = priors.unbind(-1)
    pw, ph = px2 - px1, py2 - py1
    # Difference first, then half: subtracting centers of nearby boxes would cancel digits.
    dx = ((x1 - px1) + (x2 - px2)) * 0.5 / (pw * vx)
    dy = ((y1 - py1) + (y2 - py2)) * 0.5 / (ph * vy)
    dw = ((x2 - x1) / pw).log() / vw
    dh = ((y2 - y1) / ph).log() / vh
    return torch.stack((dx, dy, dw, dh), dim=-1)


def decode_boxes(
    deltas: Tensor,
    priors: Tensor,
    variances: Sequence[float],
    max_log_scale: float | None = MAX_LOG_SCALE,
) -> Tensor:
    """Boxes that offsets lead to from priors: the inverse of `encode_boxes`.

    Args:
        deltas: (..., 4) offsets ``(x, y, w, h)``.
        priors: (..., 4) corners, broadcast against ``deltas``.
        variances: 2 or 4 numbers.
        max_log_scale: largest ``offset * variance`` of a size before the exponential
            (torchvision's ``bbox_xform_clip``), None for no clamp.

    Returns:
        (..., 4) corners.
    """
    vx, vy, vw, vh = four_variances(variances)
    dx, dy, dw, dh = deltas.unbind(-1)
    px1, py1, px2, py2 = priors.unbind(-1)
    pw, ph = px2 - px1, py2 - py1
    cx = (dx * vx) * pw + (px1 + px2) * 0.5
    cy = (dy * vy) * ph + (py1 + py2) * 0.5
    log_w, log_h = dw * vw, dh * vh
    if max_log_scale is not None:
        log_w, log_h = log_w.clamp(max=max_log_scale), log_h.clamp(max=max_log_scale)
    half_w, half_h = log_w.exp() * pw * 0.5, log_h.exp() * ph * 0.5
    return torch.stack((cx - half_w, cy - half_h, cx + half_w, cy + half_h), dim=-1)


def greedy_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    idxs: Tensor | None = None,
    *,
    overlaps: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Indices of the boxes that greedy non-maximum suppression keeps, best first.

    A box is kept if no better kept box of its class overlaps it by more than the threshold. Of
    equal scores the lower index is better; boxes and scores that are not finite are never kept.
    The overlap is that of torchvision's CPU kernel, ``inter / (area_a + area_b - inter)``, NaN
    where the areas make it 0 / 0; NaN suppresses nothing.

    Args:
        boxes: (N, 4) corners.
        scores: (N,) of the dtype of ``boxes``.
        iou_threshold: compared with overlaps as real numbers.
        idxs: (N,) class of each box, None for one class.
        overlaps: how much one box (4,) overlaps others (n, 4), instead of `overlaps_of`.

    Returns:
        (kept,) int64.
    """
    overlaps = overlaps or overlaps_of
    finite = boxes.isfinite().all(dim=-1) & scores.isfinite()
    order = finite.nonzero().squeeze(1)
    order = order[scores[order].sort(descending=True, stable=True).indices]
    boxes = boxes[order]
    classes = None if idxs is None else idxs[order]
    threshold = round_down(iou_threshold, boxes.dtype)
    keep = torch.ones_like(order, dtype=torch.bool)
    for i in range(order.numel()):
        if not keep[i]:
            continue
        over = overlaps(boxes[i], boxes[i + 1 :]) > threshold
        if classes is not None:
            over &= classes[i + 1 :] == classes[i]
        keep[i + 1 :] &= ~over
    return order[keep]


def overlaps_of(box: Tensor, others: Tensor) -> Tensor:
    """IoU of one box with others, in the arithmetic of torchvision's CPU kernel of NMS.

    Args:
        box: (4,) corners.
        others: (n, 4) corners.

    Returns:
        (n,) ``inter / (area_a + area_b - inter)``, NaN where the areas make it 0 / 0.
    """
    low, high = torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:], others[:, 2:])
    width, height = (high - low).clamp(min=0).unbind(-1)
    inter = width * height
    return inter / (box_area(box) + box_area(others) - inter)


def round_down(value: float, dtype: torch.dtype) -> float:
    """The largest number of ``dtype`` that is not above ``value``."""
    nearest = torch.tensor(value, dtype=dtype, device="cpu")
    if nearest.item() > value:
        nearest = nearest.nextafter(torch.full_like(nearest, -math.inf))
    return nearest.item()
