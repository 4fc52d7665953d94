# SPDX-License-Identifier: BSD-3-Clause
"""Triton kernel of ssd_fast::multibox_loss_backward. Contract: ssd_fast/ops/multibox_loss.py.

One launch writes each row of the gradients once: zeros, or recomputed from the row's code.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_fast.kernels.box_losses import box_slopes
from ssd_fast.kernels.elementary import exp
from ssd_fast.kernels.levels import (
    count_blocks,
    fill_gradients,
    level_views,
    locate,
    pick,
    writable_gradients,
)
from ssd_fast.kernels.loss_rows import (
    DELTAS,
    IMAGES,
    LOGITS,
    ROWS_PER_PROGRAM,
    batch_positives,
    class_block,
    class_pointers,
    count_classes,
    load_others,
    sum_exponentials,
    total_weight,
    weights_of,
)
from ssd_fast.kernels.objects import image_rows

__all__ = ["launch_multibox_loss_backward"]


@triton.jit(do_not_specialize=["N", "B", "BLOCKS", "background"])
def _backward_kernel(
    levels,
    gradients,  # of each level: logits and deltas, out
    grad_box_ptr,  # () float32
    grad_class_ptr,  # () float32
    priors_ptr,  # (P, 4) float32, contiguous
    boxes_ptr,  # (N, 4) float32, contiguous
    labels_ptr,  # (N,) int64, contiguous
    offsets_ptr,  # (B + 1,) int64, contiguous
    code_ptr,  # (B, P) int32, contiguous
    num_positives_ptr,  # (B,) int64, contiguous
    class_weights_ptr,  # (C,) float32, contiguous, or None: all are 1
    P,
    N,
    B,
    BLOCKS,
    background,
    smoothing,  # None: there is none
    beta,
    vx,
    vy,
    vw,
    vh,
    C: tl.constexpr,
    INNER: tl.constexpr,
    BOX_LOSS: tl.constexpr,
    NORMALIZER: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Writes the gradients of one block of rows of one image; reads only the selected rows."""
    image = (tl.program_id(0) // BLOCKS).to(tl.int64)
    block = tl.program_id(0) % BLOCKS
    level, p, ok, base, offset, channel, delta_base, delta_offset, delta_channel = locate(
        image, block, levels, BLOCK_R, INNER
    )
    begin, end = image_rows(offsets_ptr, image, N)
    code_ptr += image * P
    code = tl.load(code_ptr + p, ok, other=-2)
    n = begin + code
    # A code that fits no object, which only targets changed since can give, is passed over.
    positive = (code >= 0) & (n < end)
    label = tl.load(labels_ptr + n, positive, other=0)
    positive = positive & (label >= 0) & (label < C)
    selected = positive | (code == -3)
    target = tl.where(positive, label, background).to(tl.int32)
    grad_logits_ptr = pick(gradients, level, LOGITS) + base
    grad_deltas_ptr = pick(gradients, level, DELTAS) + delta_base
    delta_pointers = (
        grad_deltas_ptr + delta_offset[:, None] + tl.arange(0, 4)[None, :] * delta_channel
    )

    if tl.max(selected.to(tl.int32), axis=0) == 0:
        tl.store(delta_pointers, tl.zeros((BLOCK_R, 4), tl.float32), ok[:, None])
        for first in range(0, C, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)
            pointers = class_pointers(grad_logits_ptr, offset, channel, c, INNER)
            zero = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
            tl.store(pointers, zero, ok[:, None] & (c < C)[None, :])
    else:
        divisor = tl.full((), 1, tl.int64)
        if NORMALIZER == 0:
            divisor = batch_positives(num_positives_ptr, B, BLOCK_B)
        if NORMALIZER == 1:
            divisor = tl.maximum(tl.load(num_positives_ptr + image), 1) * B
        box_scale = tl.load(grad_box_ptr) / divisor.to(tl.float32)
        class_scale = tl.load(grad_class_ptr) / divisor.to(tl.float32)

        deltas_ptr = pick(levels, level, DELTAS) + delta_base
        slope = box_slopes(
            deltas_ptr, delta_offset, delta_channel, boxes_ptr, priors_ptr, n, p, positive,
            beta, vx, vy, vw, vh, BOX_LOSS,
        )  # fmt: skip
        slope = tl.where(positive[:, None], slope * box_scale, 0.0)
        tl.store(delta_pointers, slope, ok[:, None])

        logits_ptr = pick(levels, level, LOGITS) + base
        x = tl.load(logits_ptr + offset + target * channel, selected, other=0.0).to(tl.float32)
        others, anchor, _ = sum_exponentials(
            logits_ptr, offset, channel, x, target, selected, class_weights_ptr,
            C, INNER, BLOCK_R, BLOCK_C, False,
        )  # fmt: skip
        reference = tl.where(x == anchor, 1.0, exp(x - anchor))  # inf is its own anchor
        factor = class_scale / (others + reference)
        weight = weights_of(class_weights_ptr, target, selected)
        if smoothing is not None:
            share = smoothing / C
            total = total_weight(class_weights_ptr, C, BLOCK_C)
            factor *= (1.0 - smoothing) * weight + share * total
        elif class_weights_ptr is not None:
            factor *= weight
        for first in range(0, C, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)
            other = load_others(
                logits_ptr, offset, channel, target, selected, first, C, INNER, BLOCK_C
            )
            ratio = exp(other - anchor[:, None])
            # softmax - one_hot, with the target's entry from the others: 1 - p would cancel.
            ratio = tl.where(c[None, :] == target[:, None], -others[:, None], ratio)
            gradient = ratio * factor[:, None]
            if smoothing is not None:
                weights = weights_of(class_weights_ptr, c, c < C)[None, :]
                own = tl.where(c[None, :] == target[:, None], total, 0.0)
                gradient += class_scale * share * (own - weights)
            gradient = tl.where(selected[:, None], gradient, 0.0)
            pointers = class_pointers(grad_logits_ptr, offset, channel, c, INNER)
            tl.store(pointers, gradient, ok[:, None] & (c < C)[None, :])


def launch_multibox_loss_backward(
    grad_box_loss: Tensor,
    grad_class_loss: Tensor,
    deltas: list[Tensor],
    logits: list[Tensor],
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    code: Tensor,
    num_positives: Tensor,
    class_weights: Tensor | None,
    box_loss: int,
    beta: float,
    variances: Sequence[float],
    label_smoothing: float,
    background_index: int,
    normalizer: int,
    block: int | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of the levels: one launch, and a copy of those that the kernel cannot write.

    Args and results are those of ``ssd_fast::multibox_loss_backward``; ``block`` is rows a program.
    """
    grad_deltas = [torch.empty_like(x) for x in deltas]
    grad_logits = [torch.empty_like(x) for x in logits]
    B, P, C = deltas[0].size(0), priors.size(0), count_classes(deltas, logits)
    if B == 0 or P == 0:
        return grad_deltas, grad_logits
    out_deltas, out_logits = writable_gradients(grad_deltas), writable_gradients(grad_logits)
    levels, inner = level_views(deltas, logits, out_deltas, out_logits)
    block = block or ROWS_PER_PROGRAM[inner]
    blocks = count_blocks(levels, block)
    _backward_kernel[(B * blocks,)](
        levels,
        tuple(zip(out_logits, out_deltas, strict=True)),
        grad_box_loss,
        grad_class_loss,
        priors.contiguous(),
        boxes.contiguous(),
        labels.contiguous(),
        offsets.contiguous(),
        code.contiguous(),
        num_positives.contiguous(),
        None if class_weights is None else class_weights.contiguous(),
        P,
        boxes.size(0),
        B,
        blocks,
        background_index,
        float(label_smoothing) or None,
        float(beta),
        *map(float, variances),
        C=C,
        INNER=inner,
        BOX_LOSS=box_loss,
        NORMALIZER=normalizer,
        BLOCK_R=block,
        BLOCK_C=class_block(C),
        BLOCK_B=IMAGES,
        enable_fp_fusion=True,
        maxnreg=168,  # left to itself, ptxas may spill two registers to run one block more
    )
    fill_gradients(grad_deltas + grad_logits, out_deltas + out_logits)
    return grad_deltas, grad_logits
