# SPDX-License-Identifier: BSD-3-Clause
"""Rows of the loss in Triton: residuals to the matched boxes, exponentials of the logits.

What the forward and the backward pass of ssd_fast::multibox_loss share.
"""

import triton
import triton.language as tl
from torch import Tensor

from ssd_fast.kernels.elementary import exp, log
from ssd_fast.kernels.geometry import load_box
from ssd_fast.kernels.levels import CHANNELS, NEITHER, ROWS

LARGE = tl.constexpr(3.0e38)
LOGITS, DELTAS = tl.constexpr(0), tl.constexpr(1)  # of a Level, and of its gradients
IMAGES = 128  # whose counts are summed at a time
# Where channels are dense, each thread of a warp holds all rows of its warp: few rows, no spills.
ROWS_PER_PROGRAM = {CHANNELS: 32, ROWS: 64, NEITHER: 32}


@triton.jit
def encode(
    box,  # corners
    prior,  # corners
    vx,
    vy,
    vw,
    vh,
):
    """Offsets from priors to boxes, as encode_boxes in ssd_fast/boxes.py."""
    x1, y1, x2, y2 = box
    px1, py1, px2, py2 = prior
    pw = px2 - px1
    ph = py2 - py1
    dx = ((x1 - px1) + (x2 - px2)) * 0.5 / (pw * vx)
    dy = ((y1 - py1) + (y2 - py2)) * 0.5 / (ph * vy)
    return dx, dy, log((x2 - x1) / pw) / vw, log((y2 - y1) / ph) / vh


@triton.jit
def residuals(
    deltas_ptr,
    delta_offset,
    delta_channel,
    boxes_ptr,  # (N, 4) float32
    priors_ptr,  # (P, 4) float32
    n,
    p,
    positive,
    vx,
    vy,
    vw,
    vh,
):
    """Differences (BLOCK_R, 4) of deltas to the boxes their rows are matched to."""
    box = load_box(boxes_ptr, n, positive)
    prior = load_box(priors_ptr, p, positive)
    dx, dy, dw, dh = encode(box, prior, vx, vy, vw, vh)
    k = tl.arange(0, 4)[None, :]
    target = tl.where(k == 0, dx[:, None], dy[:, None])
    target = tl.where(k == 2, dw[:, None], target)
    target = tl.where(k == 3, dh[:, None], target)
    pointers = deltas_ptr + delta_offset[:, None] + k * delta_channel
    delta = tl.load(pointers, positive[:, None], other=0.0).to(tl.float32)
    return tl.where(positive[:, None], delta - target, 0.0)


@triton.jit
def load_differences(
    logits_ptr,
    offset,  # (BLOCK_R,) of the rows
    channel_stride,
    reference,  # (BLOCK_R,) logit of the reference class
    reference_class,  # (BLOCK_R,)
    ok,
    first,
    C: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Logits of a block of classes relative to the row's reference; -inf for that class itself."""
    c = first + tl.arange(0, BLOCK_C)
    if INNER == 0:
        pointers = logits_ptr + offset[:, None] + c[None, :]
    else:
        pointers = logits_ptr + offset[:, None] + c[None, :] * channel_stride
    x = tl.load(pointers, ok[:, None] & (c < C)[None, :], other=float("-inf")).to(tl.float32)
    # A row that does not exist, or is not asked for, has the reference 0.
    other = (c[None, :] != reference_class[:, None]) & (c < C)[None, :]
    return tl.where(other, x - reference[:, None], float("-inf"))


@triton.jit
def sum_exponentials(
    logits_ptr,
    offset,
    channel_stride,
    reference,
    reference_class,
    ok,
    C: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums over the other classes of ``exp(x_c - x_reference - shift)``, and the shifts.

    The shift is 0, which keeps all digits of small sums, unless that sum overflows: then the rows
    are read again, relative to their largest logit.
    """
    shift = tl.zeros((BLOCK_R,), tl.float32)
    others = tl.zeros((BLOCK_R,), tl.float32)
    passes = 1
    while passes > 0:
        sums = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        largest = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        for first in range(0, C, BLOCK_C):
            x = load_differences(
                logits_ptr, offset, channel_stride, reference, reference_class, ok, first,
                C, INNER, BLOCK_C,
            )  # fmt: skip
            largest = tl.maximum(largest, x)
            sums += exp(x - shift[:, None])
        others = tl.sum(sums, axis=1)
        overflow = (others == float("inf")) & (shift == 0.0)
        shift = tl.where(overflow, tl.minimum(tl.max(largest, axis=1), LARGE), shift)
        passes = tl.max(overflow.to(tl.int32), axis=0)
    return others, shift


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
    """Classes held at a time: more would leave more lanes idle behind the last class."""
    return min(32, int(triton.next_power_of_2(C)))
