# SPDX-License-Identifier: BSD-3-Clause
"""How much the boxes of two lists overlap, row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from ssd_fast.boxes import box_area

__all__ = ["iou", "share_inside"]


def iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of the rows of two (n, 4) lists of corners, (n,)."""
    inter = _intersection(a, b)
    return inter / (box_area(a) + box_area(b) - inter)


def share_inside(a: Tensor, b: Tensor) -> Tensor:
    """The share of each box of `a` that lies inside that of `b`, (n,)."""
    return _intersection(a, b) / box_area(a)


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    size = torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])
    return size.clamp(min=0).prod(1)
