# SPDX-License-Identifier: BSD-3-Clause
"""Boxes as centre and size, which other implementations keep their priors in."""

import torch
from torch import Tensor

__all__ = ["corners"]


def corners(boxes: Tensor) -> Tensor:
    """Corners of centre-size boxes, in the order of operations that all peers use.

    Args:
        boxes: (n, 4) as (x, y, width, height).

    Returns:
        (n, 4) as (x1, y1, x2, y2).
    """
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat([centre - half, centre + half], dim=1)
