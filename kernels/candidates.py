# SPDX-License-Identifier: BSD-3-Clause
"""Candidates of ssd_fast::detect: scores of rows, their keys, and the best of an image by ranges.

A candidate's key is a 64-bit integer that orders all candidates of an image: by score, best first,
then by the lower label, then by the lower prior. No two are equal, so whatever collects them in
whatever order, sorted keys are always the same.
"""

import triton
import triton.language as tl

from ssd_fast.kernels.elementary import exp
from ssd_fast.kernels.levels import locate_logits

BINS = tl.constexpr(256)  # ranges of keys that are counted in one pass
BLOCK_P = tl.constexpr(1024)  # rows whose best score is looked at at a time


@triton.jit
def candidate_key(score, label, p, P):
    """Orders candidates, the best is the largest; ``score`` >= 0, ``label * P + p`` < 2^32."""
    index = label.to(tl.int64) * P + p
    return (score.to(tl.int32, bitcast=True).to(tl.int64) << 32) | (0xFFFFFFFF - index)


@triton.jit
def load_classes(
    pointers,  # (BLOCK_R,) to the rows' first logits
    channels,  # stride over the channels, or (BLOCK_R,) of them
    ok,
    first,
    C: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Logits (BLOCK_R, BLOCK_C) of a block of classes, and the classes (1, BLOCK_C)."""
    c = (first + tl.arange(0, BLOCK_C))[None, :]
    offsets = tl.zeros(pointers.shape, tl.int32)[:, None] + c
    if INNER != 0:
        offsets = c * (tl.zeros(pointers.shape, tl.int32) + channels)[:, None]
    x = tl.load(pointers[:, None] + offsets, ok[:, None] & (c < C), other=float("-inf"))
    return x.to(tl.float32), c


@triton.jit
def row_peaks(
    pointers,
    channels,
    ok,
    background,
    C: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SIGMOID: tl.constexpr,
):
    """The largest logit of each row, and the largest that is not the background's.

    For sigmoids the first is not looked for, and a NaN, which is no score, hides no other logit.
    """
    # Compared class by class and reduced once: less to shuffle, and Triton 3.6 fails to move the
    # reductions of two accumulators out of a loop by itself.
    width: tl.constexpr = pointers.shape[0]
    peaks = tl.full((width, BLOCK_C), float("-inf"), tl.float32)
    leads = tl.full((width, BLOCK_C), float("-inf"), tl.float32)
    for first in range(0, C, BLOCK_C):
        x, c = load_classes(pointers, channels, ok, first, C, INNER, BLOCK_C)
        if SIGMOID:
            x = tl.where(x != x, float("-inf"), x)
        else:
            peaks = tl.maximum(peaks, x)
        leads = tl.maximum(leads, tl.where(c == background, float("-inf"), x))
    return tl.max(peaks, axis=1), tl.max(leads, axis=1)


@triton.jit
def row_totals(
    pointers,
    channels,
    peak,
    ok,
    C: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums of exponentials relative to the peak; NaN for rows with a NaN or +inf logit."""
    total = tl.zeros(pointers.shape, tl.float32)
    for first in range(0, C, BLOCK_C):
        x, _ = load_classes(pointers, channels, ok, first, C, INNER, BLOCK_C)
        total += tl.sum(exp(x - peak[:, None]), axis=1)
    return total


@triton.jit
def score_classes(
    pointers,
    channels,
    peak,
    total,
    ok,
    first,
    background,
    threshold,
    C: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SIGMOID: tl.constexpr,
):
    """Scores of a block of classes, the classes, and which scores make a candidate."""
    x, c = load_classes(pointers, channels, ok, first, C, INNER, BLOCK_C)
    one = tl.full(x.shape, 1.0, tl.float32)
    if SIGMOID:
        score = tl.math.div_rn(one, one + exp(0.0 - x))
    else:
        score = tl.math.div_rn(exp(x - peak[:, None]), one * total[:, None])
    return score, c, ok[:, None] & (c < C) & (c != background) & (score > threshold)


@triton.jit
def places(hit):
    """The rank of each hit of a block, and how many there are."""
    hit = hit.to(tl.int32)
    each = tl.sum(hit, axis=1)
    before = tl.cumsum(each, axis=0) - each
    return before[:, None] + tl.cumsum(hit, axis=1) - hit, tl.sum(each, axis=0)


@triton.jit
def append_keys(
    keys_ptr,  # (CAPACITY,) int64
    count_ptr,  # () int32
    keys,
    hit,
    CAPACITY: tl.constexpr,
):
    """Adds keys to a list that other programs add to; a list that is full is only counted on."""
    # The atomic's result reaches all warps of the program, which must take the same branch; what a
    # load finds, while others add, may differ from warp to warp.
    n = tl.sum(tl.sum(hit.to(tl.int32), axis=1), axis=0)
    begin = tl.atomic_add(count_ptr, n, sem="relaxed")
    if begin < CAPACITY:
        place, _ = places(hit)
        place += begin
        tl.store(keys_ptr + place, keys, hit & (place < CAPACITY))


@triton.jit
def bin_width(low, high):
    """Binary logarithm of the width at which BINS ranges span the keys in [low, high)."""
    shift = tl.full((), 0, tl.int64)
    while ((high - low - 1) >> shift) >= BINS:
        shift += 1
    return shift


@triton.jit
def narrow(
    bins,  # (BINS,) int32
    n,  # their sum
    limit,
    low,
    high,
    shift,
):
    """The widest upper part of [low, high) with at most ``limit`` keys, by whole bins.

    Where the best bin alone holds more, that bin, above which there is nothing.
    """
    b = tl.arange(0, BINS)
    from_here = n - tl.cumsum(bins, axis=0) + bins
    best = tl.max(tl.where(bins > 0, b, 0), axis=0)
    lowest = tl.min(tl.where(from_here <= limit, b, BINS), axis=0)
    crowded = lowest > best
    part = tl.where(crowded, best, lowest).to(tl.int64)
    top = tl.where(crowded, low + ((part + 1) << shift), high)
    return low + (part << shift), tl.minimum(top, high)


@triton.jit
def guess_low(
    best_ptr,  # (P,) float32
    limit,
    low,
    high,
    P,
):
    """A bound so that about ``limit`` rows have their best score between it and ``high``."""
    shift = bin_width(low, high)
    bins = tl.zeros((BINS,), tl.int32)
    first = P * 0
    while first < P:
        p = first + tl.arange(0, BLOCK_P)
        best = tl.load(best_ptr + p, p < P, other=-1.0)
        key = best.to(tl.int32, bitcast=True).to(tl.int64) << 32  # its lower half is missing
        bin = ((tl.maximum(key, low) - low) >> shift).to(tl.int32)
        bins += tl.histogram(bin, BINS, mask=(best >= 0.0) & (key < high))
        first += BLOCK_P
    low, _ = narrow(bins, tl.sum(bins, axis=0), limit, low, high, shift)
    return low


@triton.jit
def list_rows(
    best_ptr,  # (P,) float32
    rows_ptr,  # (P,) int32, out
    score,
    P,
):
    """Lists the rows whose best score reaches ``score``, and counts them."""
    count = P * 0
    first = P * 0
    while first < P:
        p = first + tl.arange(0, BLOCK_P)
        best = tl.load(best_ptr + p, p < P, other=-1.0)
        hit = ((best >= score) & (best >= 0.0)).to(tl.int32)
        tl.store(rows_ptr + count + tl.cumsum(hit, axis=0) - hit, p, hit > 0)
        count += tl.sum(hit, axis=0)
        first += BLOCK_P
    return count


@triton.jit
def collect_range(
    levels,
    image,
    total_ptr,  # (P,) float32
    best_ptr,  # (P,) float32
    seen_ptr,  # (C,) int32
    rows_ptr,  # (P,) int32, scratch
    keys_ptr,  # (CAPACITY,) int64, out
    low,
    high,
    shift,
    binned,
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
    """Lists the candidates with low <= key < high, as many as fit, and counts all of them.

    Classes of which ``top_k`` were seen have no more candidates. Where ``binned``, also counts
    bins of width 2^shift.
    """
    tl.debug_barrier()
    rows = list_rows(best_ptr, rows_ptr, (low >> 32).to(tl.int32).to(tl.float32, bitcast=True), P)
    tl.debug_barrier()
    bins = tl.zeros((BINS,), tl.int32)
    count = P * 0
    begin = P * 0
    while begin < rows:
        r = begin + tl.arange(0, BLOCK_R)
        ok = r < rows
        p = tl.load(rows_ptr + r, ok, other=0)
        pointers, channels = locate_logits(image, p, levels)
        peak = tl.zeros((BLOCK_R,), tl.float32)
        total = tl.zeros((BLOCK_R,), tl.float32)
        if not SIGMOID:
            total = tl.load(total_ptr + p, ok, other=1.0)
            peak, _ = row_peaks(pointers, channels, ok, background, C, INNER, BLOCK_C, SIGMOID)
        for first in range(0, C, BLOCK_C):
            score, c, hit = score_classes(
                pointers, channels, peak, total, ok, first, background, threshold,
                C, INNER, BLOCK_C, SIGMOID,
            )  # fmt: skip
            keys = candidate_key(score, c, p[:, None], P)
            hit = hit & (keys >= low) & (keys < high)
            hit = hit & (tl.load(seen_ptr + c, c < C, other=0) < top_k)
            place, n = places(hit)
            place += count
            tl.store(keys_ptr + place, keys, hit & (place < CAPACITY))
            count += n
            if binned > 0:
                bin = ((keys - low) >> shift).to(tl.int32).reshape(BLOCK_R * BLOCK_C)
                bins += tl.histogram(bin, BINS, mask=hit.reshape(BLOCK_R * BLOCK_C))
        begin += BLOCK_R
    tl.debug_barrier()
    return count, bins


@triton.jit
def sort_keys(
    keys_ptr,  # (CAPACITY,) int64
    sorted_ptr,  # (CAPACITY,) int64, out
    n,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Sorts the first ``n`` keys, largest first: each by counting the keys above it.

    For the some hundred keys of an image that is faster than a sorting network for the capacity.
    """
    tl.debug_barrier()
    first = n * 0
    while first < n:
        j = first + tl.arange(0, BLOCK_J)
        key = tl.load(keys_ptr + j, j < n, other=-1)
        above = tl.zeros((BLOCK_I, BLOCK_J), tl.int32)
        begin = n * 0
        while begin < n:
            i = begin + tl.arange(0, BLOCK_I)
            other = tl.load(keys_ptr + i, i < n, other=-1)
            above += (other[:, None] > key[None, :]).to(tl.int32)
            begin += BLOCK_I
        tl.store(sorted_ptr + tl.sum(above, axis=0), key, j < n)
        first += BLOCK_J
    tl.debug_barrier()
