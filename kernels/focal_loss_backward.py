# SPDX-License-Identifier: BSD-3-Clause
"""Triton kernel of ssd_fast::focal_loss_backward. Contract: ssd_fast/ops/focal_loss.py.

One launch reads each logit of a row that counts once, and writes each gradient once.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_fast.kernels.box_losses import box_slopes
from ssd_fast.kernels.focal_terms import class_factors, focal_terms, whole_power
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
)
from ssd_fast.kernels.objects import image_rows

__all__ = ["launch_focal_loss_backward"]


@triton.jit(do_not_specialize=["N", "B", "BLOCKS"])
def _focal_backward_kernel(
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
    P,
    N,
    B,
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
    NORMALIZER: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Writes the gradients of one block of rows of one image."""
    image = (tl.program_id(0) // BLOCKS).to(tl.int64)
    block = tl.program_id(0) % BLOCKS
    level, p, ok, base, offset, channel, delta_base, delta_offset, delta_channel = locate(
        image, block, levels, BLOCK_R, INNER
    )
    begin, end = image_rows(offsets_ptr, image, N)
    code = tl.load(code_ptr + image * P + p, ok, other=-2)
    n = begin + code
    # A code that fits no object, which only targets changed since can give, is passed over.
    positive = (code >= 0) & (n < end)
    label = tl.load(labels_ptr + n, positive, other=-1)
    positive = positive & (label >= 0) & (label < C)
    counts = positive | (code == -1)
    target = tl.where(positive, label, -1).to(tl.int32)
    divisor = tl.full((), 1, tl.int64)
    if NORMALIZER == 0:
        divisor = batch_positives(num_positives_ptr, B, BLOCK_B)
    if NORMALIZER == 1:
        divisor = tl.maximum(tl.load(num_positives_ptr + image), 1) * B
    box_scale = tl.load(grad_box_ptr) / divisor.to(tl.float32)
    class_scale = tl.load(grad_class_ptr) / divisor.to(tl.float32)

    grad_deltas_ptr = pick(gradients, level, DELTAS) + delta_base
    delta_pointers = (
        grad_deltas_ptr + delta_offset[:, None] + tl.arange(0, 4)[None, :] * delta_channel
    )
    # Each branch stores: Triton 3.6 fails to compile a block of values that an `if` yields.
    if tl.max(positive.to(tl.int32), axis=0) == 0:
        tl.store(delta_pointers, tl.zeros((BLOCK_R, 4), tl.float32), ok[:, None])
    else:
        deltas_ptr = pick(levels, level, DELTAS) + delta_base
        slope = box_slopes(
            deltas_ptr, delta_offset, delta_channel, boxes_ptr, priors_ptr, n, p, positive,
            beta, vx, vy, vw, vh, BOX_LOSS,
        )  # fmt: skip
        slope = tl.where(positive[:, None], slope * box_scale, 0.0)
        tl.store(delta_pointers, slope, ok[:, None])

    logits_ptr = pick(levels, level, LOGITS) + base
    grad_logits_ptr = pick(gradients, level, LOGITS) + base
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        mask = counts[:, None] & (c < C)[None, :]
        pointers = class_pointers(logits_ptr, offset, channel, c, INNER)
        x = tl.load(pointers, mask, other=0.0).to(tl.float32)
        own = c[None, :] == target[:, None]
        _loss, gradient = focal_terms(x, own, of_positive, of_negative, gamma, POWER)
        gradient = tl.where(counts[:, None], gradient * class_scale, 0.0)
        pointers = class_pointers(grad_logits_ptr, offset, channel, c, INNER)
        tl.store(pointers, gradient, ok[:, None] & (c < C)[None, :])


def launch_focal_loss_backward(
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
    box_loss: int,
    beta: float,
    variances: Sequence[float],
    alpha: float,
    gamma: float,
    background_index: int,
    normalizer: int,
    block: int | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of the levels: one launch, and a copy of those that the kernel cannot write.

    Args and results are those of ``ssd_fast::focal_loss_backward``; ``block`` is rows a program.
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
    _focal_backward_kernel[(B * blocks,)](
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
        P,
        boxes.size(0),
        B,
        blocks,
        *class_factors(alpha),
        float(gamma),
        float(beta),
        *map(float, variances),
        C=C,
        INNER=inner,
        BOX_LOSS=box_loss,
        POWER=whole_power(gamma),
        NORMALIZER=normalizer,
        BLOCK_R=block,
        BLOCK_C=class_block(C),
        BLOCK_B=IMAGES,
        enable_fp_fusion=True,
    )
    fill_gradients(grad_deltas + grad_logits, out_deltas + out_logits)
    return grad_deltas, grad_logits
