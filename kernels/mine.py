# SPDX-License-Identifier: BSD-3-Clause
"""Triton kernel of ssd_fast::mine. Contract: ssd_fast/ops/mine.py."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_fast.kernels.selection import (
    candidate_order,
    count_matches,
    kth_largest,
    negatives_wanted,
    selection_blocks,
    take,
)

__all__ = ["launch_mine"]


@triton.jit(do_not_specialize=["min_negatives"])
def _mine_kernel(
    loss_ptr,  # (B, P) float32, contiguous
    match_ptr,  # (B, P) int32, contiguous
    selected_ptr,  # (B, P) uint8, out
    P,
    ratio,
    min_negatives,
    BLOCK_P: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STREAM: tl.constexpr,
):
    """One image: count, find the k-th largest loss, mark what reaches it."""
    row = tl.program_id(0).to(tl.int64) * P
    loss_ptr += row
    match_ptr += row
    positives, candidates = count_matches(match_ptr, P, BLOCK_S)
    k = negatives_wanted(positives, candidates, ratio, min_negatives)
    threshold, above = kth_largest(loss_ptr, match_ptr, k, P, BLOCK_P, STREAM, False)
    ties = k - above
    first = P * 0
    while first < P:
        p = first + tl.arange(0, BLOCK_S)
        order = candidate_order(loss_ptr, match_ptr, p, P, False)
        chosen, ties = take(order, threshold, ties)
        tl.store(selected_ptr + row + p, chosen.to(tl.uint8), p < P)
        first += BLOCK_S


def launch_mine(
    loss: Tensor, match: Tensor, ratio: float, min_negatives: int, block: int | None = None
) -> Tensor:
    """Selects the hardest negatives of each image: one launch, one program an image.

    Args:
        loss: (B, P) float32.
        match: (B, P) int32.
        ratio: negatives for each positive.
        min_negatives: least number for an image.
        block: priors that are held at a time, a power of two; None chooses.

    Returns:
        (B, P) bool.
    """
    loss, match = loss.contiguous(), match.contiguous()
    B, P = loss.shape
    selected = loss.new_empty((B, P), dtype=torch.bool)
    if B == 0 or P == 0:
        return selected
    _mine_kernel[(B,)](
        loss,
        match,
        selected.view(torch.uint8),
        P,
        float(ratio),
        min(min_negatives, P),
        **selection_blocks(P, block),
        enable_fp_fusion=False,
    )
    return selected
