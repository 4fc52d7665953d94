# SPDX-License-Identifier: BSD-3-Clause
"""Triton kernels of ssd_fast::focal_loss. Contract: ssd_fast/ops/focal_loss.py.

Match (two launches, one where matches are given), one pass over the logits, and two sums. Every
sum has a fixed order, so repeated runs are equal bit for bit.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_fast.kernels.box_losses import sum_box_losses
from ssd_fast.kernels.focal_terms import class_factors, focal_terms, whole_power
from ssd_fast.kernels.given_matches import launch_given_matches
from ssd_fast.kernels.levels import count_blocks, level_views, locate, pick
from ssd_fast.kernels.loss_rows import (
    DELTAS,
    LOGITS,
    ROWS_PER_PROGRAM,
    class_block,
    class_pointers,
    count_classes,
)
from ssd_fast.kernels.loss_sums import launch_loss_sums, no_rows
from ssd_fast.kernels.match import launch_match
from ssd_fast.kernels.objects import image_rows

__all__ = ["launch_focal_loss"]

BLOCK_S = 256  # blocks of rows whose sums are added at a time


@triton.jit(do_not_specialize=["N", "BLOCKS"])
def _focal_rows_kernel(
    levels,
    priors_ptr,  # (P, 4) float32, contiguous
    boxes_ptr,  # (N, 4) float32, contiguous
    labels_ptr,  # (N,) int64, contiguous
    offsets_ptr,  # (B + 1,) int64, contiguous
    code_ptr,  # (B, P) int32, as matched
    box_ptr,  # (B, BLOCKS) float32, out: box losses of the block's positives
    class_ptr,  # (B, BLOCKS) float32, out: class losses of the block's rows
    count_ptr,  # (B, BLOCKS) int32, out: the block's positives
    P,
    N,
    BLOCKS,
    of_positive,  # factors of the class losses
    of_negative,
    gamma,
    beta,
    vx,
    vy,
    vw,
    vh,
    C: tl.constexpr,
    INNER: tl.constexpr,
    BOX_LOSS: tl.constexpr,
    POWER: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The pass over the logits: one block of rows of one image."""
    image = (tl.program_id(0) // BLOCKS).to(tl.int64)
    block = tl.program_id(0) % BLOCKS
    level, p, ok, base, offset, channel, delta_base, delta_offset, delta_channel = locate(
        image, block, levels, BLOCK_R, INNER
    )
    begin, _ = image_rows(offsets_ptr, image, N)
    code = tl.load(code_ptr + image * P + p, ok, other=-2)
    positive = code >= 0
    n = begin + code
    target = tl.load(labels_ptr + n, positive, other=-1).to(tl.int32)

    logits_ptr = pick(levels, level, LOGITS) + base
    sums = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        mask = (code >= -1)[:, None] & (c < C)[None, :]
        pointers = class_pointers(logits_ptr, offset, channel, c, INNER)
        x = tl.load(pointers, mask, other=0.0).to(tl.float32)
        own = c[None, :] == target[:, None]
        loss, _slope = focal_terms(x, own, of_positive, of_negative, gamma, POWER)
        sums += tl.where(mask, loss, 0.0)

    box_loss = tl.zeros((), tl.float32)
    if tl.max(code, axis=0) >= 0:
        deltas_ptr = pick(levels, level, DELTAS) + delta_base
        box_loss = sum_box_losses(
            deltas_ptr, delta_offset, delta_channel, boxes_ptr, priors_ptr, n, p, positive,
            beta, vx, vy, vw, vh, BOX_LOSS,
        )  # fmt: skip
    row = image * BLOCKS + block
    tl.store(box_ptr + row, box_loss)
    tl.store(class_ptr + row, tl.sum(tl.sum(sums, axis=1), axis=0))
    tl.store(count_ptr + row, tl.sum(positive.to(tl.int32), axis=0))


@triton.jit(do_not_specialize=["BLOCKS"])
def _focal_images_kernel(
    box_ptr,  # (B, BLOCKS) float32
    class_ptr,  # (B, BLOCKS) float32
    count_ptr,  # (B, BLOCKS) int32
    image_loss_ptr,  # (B, 2) float32, out: box and class loss
    num_positives_ptr,  # (B,) int64, out
    BLOCKS,
    BLOCK_S: tl.constexpr,
):
    """One image: the sums over its blocks of rows."""
    image = tl.program_id(0).to(tl.int64)
    row = image * BLOCKS
    box = tl.zeros((BLOCK_S,), tl.float32)
    classes = tl.zeros((BLOCK_S,), tl.float32)
    count = tl.zeros((BLOCK_S,), tl.int32)
    first = BLOCKS * 0
    while first < BLOCKS:
        s = first + tl.arange(0, BLOCK_S)
        box += tl.load(box_ptr + row + s, s < BLOCKS, other=0.0)
        classes += tl.load(class_ptr + row + s, s < BLOCKS, other=0.0)
        count += tl.load(count_ptr + row + s, s < BLOCKS, other=0)
        first += BLOCK_S
    tl.store(image_loss_ptr + 2 * image, tl.sum(box, axis=0))
    tl.store(image_loss_ptr + 2 * image + 1, tl.sum(classes, axis=0))
    tl.store(num_positives_ptr + image, tl.sum(count, axis=0).to(tl.int64))


def launch_focal_loss(
    deltas: list[Tensor],
    logits: list[Tensor],
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    matches: Tensor | None,
    iou_threshold: float,
    low_threshold: float | None,
    strict: bool,
    assign: int,
    ignore_threshold: float | None,
    box_loss: int,
    beta: float,
    variances: Sequence[float],
    alpha: float,
    gamma: float,
    background_index: int,
    normalizer: int,
    block: int | None = None,
    match_block: int = 256,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses, positives and codes: five launches, six with bipartite claims, four with matches.

    Args and results are those of ``ssd_fast::focal_loss``; ``block`` and ``match_block`` are rows
    a program.
    """
    levels, inner = level_views(deltas, logits)
    B, P = deltas[0].size(0), priors.size(0)
    C = count_classes(deltas, logits)
    if B == 0 or P == 0:
        return no_rows(priors, B)
    priors, boxes, labels, offsets = (x.contiguous() for x in (priors, boxes, labels, offsets))
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
    block = block or ROWS_PER_PROGRAM[inner]
    blocks = count_blocks(levels, block)
    box_sums, class_sums = priors.new_empty((B, blocks)), priors.new_empty((B, blocks))
    counts = code.new_empty((B, blocks))
    _focal_rows_kernel[(B * blocks,)](
        levels,
        priors,
        boxes,
        labels,
        offsets,
        code,
        box_sums,
        class_sums,
        counts,
        P,
        boxes.size(0),
        blocks,
        *class_factors(alpha),
        float(gamma),
        float(beta),
        *map(float, variances),
        C=C,
        INNER=inner,
        BOX_LOSS=box_loss,
        POWER=whole_power(gamma),
        BLOCK_R=block,
        BLOCK_C=class_block(C),
        enable_fp_fusion=True,
    )
    image_loss = priors.new_empty((B, 2))
    num_positives = priors.new_empty((B,), dtype=torch.int64)
    _focal_images_kernel[(B,)](
        box_sums,
        class_sums,
        counts,
        image_loss,
        num_positives,
        blocks,
        BLOCK_S=BLOCK_S,
        enable_fp_fusion=True,
    )
    box_sum, class_sum = launch_loss_sums(image_loss, num_positives, normalizer)
    return box_sum, class_sum, num_positives, code
