# SPDX-License-Identifier: BSD-3-Clause
"""What the kernels of ssd_fast::detect share beside the candidates' keys: their ranks and boxes."""

import triton
import triton.language as tl

from ssd_fast.kernels.boxes import clamp, decode_box, is_finite, load_box
from ssd_fast.kernels.candidates import bin_width, collect_range, guess_low, narrow
from ssd_fast.kernels.levels import load_deltas


@triton.jit
def score_floor(threshold):
    """The key that those of all candidates reach."""
    return tl.where(threshold > 0.0, threshold, 0.0).to(tl.int32, bitcast=True).to(tl.int64) << 32


@triton.jit
def next_range(
    levels,
    image,
    total_ptr,  # (P,) float32
    best_ptr,  # (P,) float32
    seen_ptr,  # (C,) int32
    rows_ptr,  # (P,) int32, scratch
    keys_ptr,  # (CAPACITY,) int64, out
    floor,
    high,
    P,
    background,
    threshold,
    top_k,
    C: tl.constexpr,
    INNER: tl.constexpr,
    CAPACITY: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SIGMOID: tl.constexpr,
):
    """Lists the best candidates below ``high``; returns their number and the least key listed."""
    low = guess_low(best_ptr, CAPACITY // 2, floor, high, P)
    # Mostly the guess is good; bins are counted only once it was not.
    binned = P * 0
    n = P * 0 + CAPACITY + 1
    while n > CAPACITY:
        shift = bin_width(low, high)
        n, bins = collect_range(
            levels, image, total_ptr, best_ptr, seen_ptr, rows_ptr, keys_ptr,
            low, high, shift, binned, P, background, threshold, top_k,
            C, INNER, CAPACITY, BLOCK_R, BLOCK_C, SIGMOID,
        )  # fmt: skip
        if (n > CAPACITY) & (binned > 0):
            low, high = narrow(bins, n, CAPACITY, low, high, shift)
        binned = binned * 0 + 1
    return n, low


@triton.jit
def rank_block(
    keys_ptr,  # (CAPACITY,) int64, sorted
    seen_ptr,  # (C,) int32, in and out: candidates visited of each class
    first,
    n,
    P,
    top_k,
    BLOCK_N: tl.constexpr,
):
    """Keys, labels and priors of a block of candidates, and which are among their class's top_k."""
    b = tl.arange(0, BLOCK_N)
    ok = first + b < n
    key = tl.load(keys_ptr + first + b, ok, other=0)
    index = 0xFFFFFFFF - (key & 0xFFFFFFFF)
    label = tl.where(ok, index // P, -1).to(tl.int32)
    p = tl.where(ok, index % P, 0).to(tl.int32)
    same = label[:, None] == label[None, :]
    rank = tl.sum((same & (b[:, None] < b[None, :])).to(tl.int32), axis=0)
    rank += tl.load(seen_ptr + label, ok, other=0)
    later = tl.max((same & (b[:, None] > b[None, :])).to(tl.int32), axis=0)
    tl.debug_barrier()
    tl.store(seen_ptr + label, rank + 1, ok & (later == 0))
    return key, label, p, ok & (rank < top_k)


@triton.jit
def decode_block(
    levels,
    image,
    priors_ptr,  # (P, 4) float32
    clip,  # four bounds
    p,
    ok,
    vx,
    vy,
    vw,
    vh,
    max_log_scale,
):
    """The boxes of a block of candidates, and which of them are finite."""
    delta = load_deltas(image, p, ok, levels)
    prior = load_box(priors_ptr, p, ok)
    x1, y1, x2, y2 = decode_box(delta, prior, vx, vy, vw, vh, max_log_scale)
    low_x, low_y, high_x, high_y = clip
    x1 = clamp(x1, low_x, high_x)
    y1 = clamp(y1, low_y, high_y)
    x2 = clamp(x2, low_x, high_x)
    y2 = clamp(y2, low_y, high_y)
    finite = ok & is_finite(x1) & is_finite(y1) & is_finite(x2) & is_finite(y2)
    return x1, y1, x2, y2, finite


@triton.jit
def store_box(
    boxes_ptr,  # (n, 4) float32
    n,
    ok,
    x1,
    y1,
    x2,
    y2,
):
    """Writes corners of box ``n`` where ``ok`` holds."""
    corner = boxes_ptr + n.to(tl.int64) * 4
    tl.store(corner, x1, ok)
    tl.store(corner + 1, y1, ok)
    tl.store(corner + 2, x2, ok)
    tl.store(corner + 3, y2, ok)


@triton.jit
def pad_results(
    boxes_ptr,  # (K, 4) float32, out
    scores_ptr,  # (K,) float32, out
    labels_ptr,  # (K,) int64, out
    count,
    K,
    BLOCK_N: tl.constexpr,
):
    """Zeros behind the first ``count`` detections."""
    while count < K:
        i = count + tl.arange(0, BLOCK_N)
        zero = tl.zeros((BLOCK_N,), tl.float32)
        store_box(boxes_ptr, i, i < K, zero, zero, zero, zero)
        tl.store(scores_ptr + i, zero, i < K)
        tl.store(labels_ptr + i, zero.to(tl.int64), i < K)
        count += BLOCK_N
