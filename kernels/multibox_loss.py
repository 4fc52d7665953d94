# SPDX-License-Identifier: BSD-3-Clause
"""Triton kernels of ssd_fast::multibox_loss. Contract: ssd_fast/ops/multibox_loss.py.

Match (two launches, one where matches are given), one pass over the logits, selection, and the
sum over the images. Every sum has a fixed order, so repeated runs are equal bit for bit.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_fast.kernels.box_losses import sum_box_losses
from ssd_fast.kernels.elementary import exp, log, log1p
from ssd_fast.kernels.given_matches import launch_given_matches
from ssd_fast.kernels.levels import count_blocks, level_views, locate, pick
from ssd_fast.kernels.loss_rows import (
    DELTAS,
    LOGITS,
    ROWS_PER_PROGRAM,
    class_block,
    count_classes,
    sum_exponentials,
    total_weight,
    weights_of,
)
from ssd_fast.kernels.loss_sums import launch_loss_sums, no_rows
from ssd_fast.kernels.match import launch_match
from ssd_fast.kernels.objects import image_rows
from ssd_fast.kernels.selection import (
    candidate_order,
    count_matches,
    kth_largest,
    negatives_wanted,
    selection_blocks,
    take,
)

__all__ = ["launch_multibox_loss"]


@triton.jit(do_not_specialize=["N", "BLOCKS", "background"])
def _rows_kernel(
    levels,
    priors_ptr,  # (P, 4) float32, contiguous
    boxes_ptr,  # (N, 4) float32, contiguous
    labels_ptr,  # (N,) int64, contiguous
    offsets_ptr,  # (B + 1,) int64, contiguous
    class_weights_ptr,  # (C,) float32, contiguous, or None: all are 1
    code_ptr,  # (B, P) int32, as matched
    key_ptr,  # (B, P) float32, out
    smooth_ptr,  # (B, P) float32, out: the smoothed part of each row's loss; None: there is none
    box_ptr,  # (B, BLOCKS) float32, out: losses of the block's positives
    P,
    N,
    BLOCKS,
    background,
    smoothing,
    beta,
    vx,
    vy,
    vw,
    vh,
    C: tl.constexpr,
    INNER: tl.constexpr,
    BOX_LOSS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The pass over the logits: one block of rows of one image.

    Into ``key`` goes the cross-entropy of a positive, and of another row the mining key; where that
    overflows, minus the row's background loss, so that selection finds both.
    """
    image = (tl.program_id(0) // BLOCKS).to(tl.int64)
    block = tl.program_id(0) % BLOCKS
    level, p, ok, base, offset, channel, delta_base, delta_offset, delta_channel = locate(
        image, block, levels, BLOCK_R, INNER
    )
    begin, _ = image_rows(offsets_ptr, image, N)
    code_ptr += image * P
    code = tl.load(code_ptr + p, ok, other=-2)
    positive = code >= 0
    n = begin + code
    target = tl.load(labels_ptr + n, positive, other=background).to(tl.int32)

    logits_ptr = pick(levels, level, LOGITS) + base
    x = tl.load(logits_ptr + offset + target * channel, ok, other=0.0).to(tl.float32)
    others, anchor, leads = sum_exponentials(
        logits_ptr, offset, channel, x, target, ok, class_weights_ptr,
        C, INNER, BLOCK_R, BLOCK_C, smooth_ptr is not None,
    )  # fmt: skip
    shift = anchor - x
    shifted = shift > 0.0
    loss = tl.where(shifted, shift + log(others + exp(-shift)), log1p(others))
    weighted = loss
    if class_weights_ptr is not None:
        weighted *= weights_of(class_weights_ptr, target, positive)
    if smooth_ptr is not None:
        # Over all classes the weighted sum of log-sum-exp minus logit.
        smooth = total_weight(class_weights_ptr, C, BLOCK_C) * loss - leads
        smooth *= smoothing / C
        tl.store(smooth_ptr + image * P + p, smooth, ok)
        weighted = (1.0 - smoothing) * weighted + smooth
    value = tl.where(positive, weighted, tl.where(shifted, -loss, others))
    key_ptr += image * P
    tl.store(key_ptr + p, value, ok)

    box_loss = tl.zeros((), tl.float32)
    if tl.max(code, axis=0) >= 0:
        deltas_ptr = pick(levels, level, DELTAS) + delta_base
        box_loss = sum_box_losses(
            deltas_ptr, delta_offset, delta_channel, boxes_ptr, priors_ptr, n, p, positive,
            beta, vx, vy, vw, vh, BOX_LOSS,
        )  # fmt: skip
    tl.store(box_ptr + image * BLOCKS + block, box_loss)


@triton.jit(do_not_specialize=["BLOCKS", "min_negatives", "background"])
def _select_kernel(
    class_weights_ptr,  # (C,) float32, contiguous, or None: all are 1
    code_ptr,  # (B, P) int32, in and out
    key_ptr,  # (B, P) float32
    smooth_ptr,  # (B, P) float32, or None
    box_ptr,  # (B, BLOCKS) float32
    image_loss_ptr,  # (B, 2) float32, out: box and class loss
    num_positives_ptr,  # (B,) int64, out
    P,
    BLOCKS,
    ratio,
    min_negatives,
    background,
    smoothing,
    BLOCK_P: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STREAM: tl.constexpr,
):
    """One image: mine the hardest negatives, mark them in ``code``, sum the losses."""
    image = tl.program_id(0).to(tl.int64)
    code_ptr += image * P
    key_ptr += image * P
    box_ptr += image * BLOCKS
    positives, candidates = count_matches(code_ptr, P, BLOCK_S)
    k = negatives_wanted(positives, candidates, ratio, min_negatives)
    threshold, above = kth_largest(key_ptr, code_ptr, k, P, BLOCK_P, STREAM, True)
    ties = k - above
    sums = tl.zeros((BLOCK_S,), tl.float32)
    first = P * 0
    while first < P:
        p = first + tl.arange(0, BLOCK_S)
        order = candidate_order(key_ptr, code_ptr, p, P, True)
        chosen, ties = take(order, threshold, ties)
        key = tl.load(key_ptr + p, p < P, other=0.0)
        code = tl.load(code_ptr + p, p < P, other=-2)
        sums += tl.where(code >= 0, key, 0.0)
        loss = tl.where(key < 0, -key, log1p(key))
        if class_weights_ptr is not None:
            loss *= tl.load(class_weights_ptr + background)
        if smooth_ptr is not None:
            smooth = tl.load(smooth_ptr + image * P + p, p < P, other=0.0)
            loss = (1.0 - smoothing) * loss + smooth
        sums += tl.where(chosen, loss, 0.0)
        tl.store(code_ptr + p, -3, (p < P) & chosen)
        first += BLOCK_S
    box_sums = tl.zeros((BLOCK_S,), tl.float32)
    first = P * 0
    while first < BLOCKS:
        s = first + tl.arange(0, BLOCK_S)
        box_sums += tl.load(box_ptr + s, s < BLOCKS, other=0.0)
        first += BLOCK_S
    tl.store(image_loss_ptr + 2 * image, tl.sum(box_sums, axis=0))
    tl.store(image_loss_ptr + 2 * image + 1, tl.sum(sums, axis=0))
    tl.store(num_positives_ptr + image, positives.to(tl.int64))


def launch_multibox_loss(
    deltas: list[Tensor],
    logits: list[Tensor],
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    matches: Tensor | None,
    class_weights: Tensor | None,
    iou_threshold: float,
    low_threshold: float | None,
    strict: bool,
    assign: int,
    ignore_threshold: float | None,
    ratio: float,
    min_negatives: int,
    box_loss: int,
    beta: float,
    variances: Sequence[float],
    label_smoothing: float,
    background_index: int,
    normalizer: int,
    block: int | None = None,
    selection_block: int | None = None,
    match_block: int = 256,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, positives and codes: five launches, six with bipartite claims, four with matches.

    Args and results are those of ``ssd_fast::multibox_loss``; ``block``, ``selection_block`` and
    ``match_block`` are rows a program.
    """
    levels, inner = level_views(deltas, logits)
    B, P = deltas[0].size(0), priors.size(0)
    C = count_classes(deltas, logits)
    if B == 0 or P == 0:
        return no_rows(priors, B)
    priors, boxes, labels, offsets = (x.contiguous() for x in (priors, boxes, labels, offsets))
    class_weights = None if class_weights is None else class_weights.contiguous()
    if matches is None:
        code = launch_match(
            priors, boxes, offsets, iou_threshold, low_threshold, strict, assign,
            labels, C, background_index, ignore_threshold, match_block,
        )  # fmt: skip
    else:
        code = launch_given_matches(
            matches, priors, boxes, labels, offsets, C, background_index, ignore_threshold,
            match_block,
        )  # fmt: skip
    smoothing = float(label_smoothing) or None
    smooth = None if smoothing is None else priors.new_empty((B, P))
    block = block or ROWS_PER_PROGRAM[inner]
    blocks = count_blocks(levels, block)
    key, box_sums = priors.new_empty((B, P)), priors.new_empty((B, blocks))
    _rows_kernel[(B * blocks,)](
        levels,
        priors,
        boxes,
        labels,
        offsets,
        class_weights,
        code,
        key,
        smooth,
        box_sums,
        P,
        boxes.size(0),
        blocks,
        background_index,
        smoothing,
        float(beta),
        *map(float, variances),
        C=C,
        INNER=inner,
        BOX_LOSS=box_loss,
        BLOCK_R=block,
        BLOCK_C=class_block(C),
        maxnreg=128,  # left to itself, ptxas may spill two registers to run one block more
        enable_fp_fusion=True,
    )
    num_positives = priors.new_empty((B,), dtype=torch.int64)
    image_loss = priors.new_empty((B, 2))
    _select_kernel[(B,)](
        class_weights,
        code,
        key,
        smooth,
        box_sums,
        image_loss,
        num_positives,
        P,
        blocks,
        float(ratio),
        min(min_negatives, P),
        background_index,
        smoothing,
        **selection_blocks(P, selection_block),
        enable_fp_fusion=True,
    )
    box_sum, class_sum = launch_loss_sums(image_loss, num_positives, normalizer)
    return box_sum, class_sum, num_positives, code
