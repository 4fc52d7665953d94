# SPDX-License-Identifier: BSD-3-Clause
"""Rows of the losses in Triton: exponentials of the logits, weights of the classes, counts.

What the forward and the backward passes of the losses share.
"""

import triton
import triton.language as tl
from torch import Tensor

from ssd_fast.kernels.elementary import exp
from ssd_fast.kernels.levels import CHANNELS, NEITHER, ROWS

LARGE = tl.constexpr(3.0e38)
LOGITS, DELTAS = tl.constexpr(0), tl.constexpr(1)  # of a Level, and of its gradients
IMAGES = 128  # whose counts are summed at a time
# Where channels are dense, each thread of a warp holds all rows of its warp: few rows, no spills.
ROWS_PER_PROGRAM = {CHANNELS: 32, ROWS: 64, NEITHER: 32}


@triton.jit
def weights_of(
    class_weights_ptr,  # (C,) float32, or None: all are 1
    c,
    ok,
):
    """Weights of classes, 0 where ``ok`` does not hold."""
    if class_weights_ptr is None:
        weights = tl.where(ok, 1.0, 0.0)
    else:
        weights = tl.load(class_weights_ptr + c, ok, other=0.0)
    return weights


@triton.jit
def total_weight(
    class_weights_ptr,  # (C,) float32, or None: all are 1
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sum of the weights of all classes."""
    sums = tl.zeros((BLOCK_C,), tl.float32)
    for first in range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        sums += weights_of(class_weights_ptr, c, c < C)
    return tl.sum(sums, axis=0)


@triton.jit
def class_pointers(
    logits_ptr,  # or gradients'
    offset,  # (BLOCK_R,) of the rows
    channel_stride,
    c,  # (BLOCK_C,) classes
    INNER: tl.constexpr,
):
    """Pointers (BLOCK_R, BLOCK_C) to the logits of rows; a stride of 1 is known to be 1."""
    if INNER == 0:
        pointers = logits_ptr + offset[:, None] + c[None, :]
    else:
        pointers = logits_ptr + offset[:, None] + c[None, :] * channel_stride
    return pointers


@triton.jit
def load_others(
    logits_ptr,
    offset,  # (BLOCK_R,) of the rows
    channel_stride,
    reference_class,  # (BLOCK_R,)
    ok,
    first,
    C: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Logits of a block of classes; -inf for the row's reference class."""
    c = first + tl.arange(0, BLOCK_C)
    pointers = class_pointers(logits_ptr, offset, channel_stride, c, INNER)
    other = (c[None, :] != reference_class[:, None]) & (c < C)[None, :]
    return tl.load(pointers, ok[:, None] & other, other=float("-inf")).to(tl.float32)


@triton.jit
def sum_exponentials(
    logits_ptr,
    offset,
    channel_stride,
    reference,  # (BLOCK_R,) logit of the reference class
    reference_class,
    ok,
    class_weights_ptr,  # (C,) float32, or None: all are 1
    C: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    LEADS: tl.constexpr,
):
    """Sums over the other classes of ``exp(x_c - anchor)``, and the anchors.

    With LEADS also the sums of ``weight_c * (x_c - reference)``, without it zeros.

    The anchor is the reference, which keeps all digits of small sums, unless that sum overflows:
    then the rows are read again, relative to their largest logit.
    """
    anchor = reference
    moved = tl.zeros((BLOCK_R,), tl.int1)
    others = tl.zeros((BLOCK_R,), tl.float32)
    leads = tl.zeros((BLOCK_R,), tl.float32)
    passes = 1
    while passes > 0:
        sums = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        largest = tl.full((BLOCK_R, BLOCK_C), float("-inf"), tl.float32)
        if LEADS:
            weighted = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        for first in range(0, C, BLOCK_C):
            x = load_others(
                logits_ptr, offset, channel_stride, reference_class, ok, first, C, INNER, BLOCK_C
            )
            c = first + tl.arange(0, BLOCK_C)
            other = (c[None, :] != reference_class[:, None]) & (c < C)[None, :]
            largest = tl.maximum(largest, x)
            sums += tl.where(other, exp(x - anchor[:, None]), 0.0)
            if LEADS:
                weight = weights_of(class_weights_ptr, c, c < C)[None, :]
                weighted += tl.where(other, weight * (x - reference[:, None]), 0.0)
        if LEADS:
            leads = tl.sum(weighted, axis=1)
        others = tl.sum(sums, axis=1)
        overflow = (others == float("inf")) & (moved == 0)
        anchor = tl.where(overflow, tl.minimum(tl.max(largest, axis=1), LARGE), anchor)
        moved = moved | overflow
        passes = tl.max(overflow.to(tl.int32), axis=0)
    return others, anchor, leads


@triton.jit
def batch_positives(
    num_positives_ptr,  # (B,) int64
    B,
    BLOCK_B: tl.constexpr,
):
    """The positives of the batch, at least 1."""
    sums = tl.zeros((BLOCK_B,), tl.int64)
    first = B * 0
    while first < B:
        b = first + tl.arange(0, BLOCK_B)
        sums += tl.load(num_positives_ptr + b, b < B, other=0)
        first += BLOCK_B
    return tl.maximum(tl.sum(sums, axis=0), 1)


def count_classes(deltas: list[Tensor], logits: list[Tensor]) -> int:
    """C."""
    return (
        logits[0].size(-1) if logits[0].dim() == 3 else 4 * logits[0].size(1) // deltas[0].size(1)
    )


def class_block(C: int) -> int:
    """Classes held at a time: more would leave more lanes idle behind the last class.

    Not one, which Triton 3.6 fails to compile in detection.
    """
    return max(2, min(32, int(triton.next_power_of_2(C))))
