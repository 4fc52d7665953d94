# SPDX-License-Identifier: BSD-3-Clause
"""Losses of a predicted box against its object's box, in plain PyTorch: the definitions.

The formulas, epsilons and branches of torchvision's losses of the same names.
"""

import math

import torch
from torch import Tensor

from ssd_fast.boxes import box_area

__all__ = [
    "EPSILON",
    "complete_box_iou_loss",
    "distance_box_iou_loss",
    "generalized_box_iou_loss",
]

EPSILON = 1e-7
"""Added to every divisor, an area or a squared length in the unit of the boxes."""


def generalized_box_iou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - GIoU (Rezatofighi et al., 2019, arXiv:1902.09630, algorithm 1).

    Args:
        boxes: (n, 4) predicted corners.
        targets: (n, 4) corners of the objects.

    Returns:
        (n,) losses, from 0 to 2.
    """
    inter, union = _inter_union(boxes, targets)
    width, height = _enclosing_size(boxes, targets)
    area = width * height
    return 1 - (inter / (union + EPSILON) - (area - union) / (area + EPSILON))


def distance_box_iou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """1 - IoU and the squared distance of the centers (Zheng et al., 2020, arXiv:1911.08287).

    The distance counts in squared diagonals of the smallest enclosing box (equation 7).

    Args:
        boxes: (n, 4) predicted corners.
        targets: (n, 4) corners of the objects.

    Returns:
        (n,) losses, from 0 to 2.
    """
    inter, union = _inter_union(boxes, targets)
    width, height = _enclosing_size(boxes, targets)
    between = (boxes[:, :2] + boxes[:, 2:]) / 2 - (targets[:, :2] + targets[:, 2:]) / 2
    distance = between.square().sum(dim=1)
    return 1 - inter / (union + EPSILON) + distance / (width**2 + height**2 + EPSILON)


def complete_box_iou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """`distance_box_iou_loss` and the difference of the aspect ratios (equations 8 to 11 there).

    Their trade-off, alpha, carries no gradient.

    Args:
        boxes: (n, 4) predicted corners.
        targets: (n, 4) corners of the objects.

    Returns:
        (n,) losses.
    """
    inter, union = _inter_union(boxes, targets)
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    target_width, target_height = (targets[:, 2:] - targets[:, :2]).unbind(1)
    angle = torch.atan(target_width / target_height) - torch.atan(width / height)
    ratio = 4 / math.pi**2 * angle**2
    with torch.no_grad():
        alpha = ratio / (1 - inter / (union + EPSILON) + ratio + EPSILON)
    return distance_box_iou_loss(boxes, targets) + alpha * ratio


def _inter_union(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of intersection and union of each pair, (n,) both."""
    low = torch.maximum(boxes[:, :2], targets[:, :2])
    high = torch.minimum(boxes[:, 2:], targets[:, 2:])
    width, height = (high - low).unbind(1)
    inter = torch.where((width > 0) & (height > 0), width * height, 0)
    return inter, box_area(boxes) + box_area(targets) - inter


def _enclosing_size(boxes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Width and height of the smallest box around each pair, (n,) both."""
    low = torch.minimum(boxes[:, :2], targets[:, :2])
    high = torch.maximum(boxes[:, 2:], targets[:, 2:])
    width, height = (high - low).unbind(1)
    return width, height
