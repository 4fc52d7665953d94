# SPDX-License-Identifier: BSD-3-Clause
"""Levels of the heads' outputs as rows, for the references: kernels read levels in place."""

import torch
from torch import Tensor

__all__ = ["join_levels", "split_rows"]


def join_levels(deltas: list[Tensor], logits: list[Tensor]) -> tuple[Tensor, Tensor]:
    """All rows of a batch in (level, y, x, anchor) order.

    Args:
        deltas: one a level, (B, P, 4) or (B, A * 4, H, W).
        logits: one a level, (B, P, C) or (B, A * C, H, W).

    Returns:
        (B, P, 4) and (B, P, C), float64 where they were float64, else float32.
    """
    rows: tuple[list[Tensor], list[Tensor]] = ([], [])
    for delta, logit in zip(deltas, logits, strict=True):
        anchors = delta.size(1) // 4 if delta.dim() == 4 else 1
        for level, joined in ((delta, rows[0]), (logit, rows[1])):
            if level.dim() == 4:
                batch, channels, height, width = level.shape
                level = level.permute(0, 2, 3, 1).reshape(
                    batch, height * width * anchors, channels // anchors
                )
            joined.append(level if level.dtype == torch.float64 else level.float())
    return torch.cat(rows[0], dim=1), torch.cat(rows[1], dim=1)


def split_rows(rows: Tensor, levels: list[Tensor]) -> list[Tensor]:
    """Takes rows apart again: the inverse of `join_levels` for one of its lists.

    Args:
        rows: (B, P, K), rows in (level, y, x, anchor) order.
        levels: what the rows came from.

    Returns:
        The rows as levels, in the layout, memory format and dtype of `levels`.
    """
    parts = []
    begin = 0
    for level in levels:
        out = torch.empty_like(level)
        count = level[0].numel() // rows.size(2) if level.size(0) else 0
        part = rows[:, begin : begin + count]
        if level.dim() == 4:
            part = part.reshape(level.size(0), *level.shape[2:], level.size(1)).permute(0, 3, 1, 2)
        parts.append(out.copy_(part))
        begin += count
    return parts
