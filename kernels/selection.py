# SPDX-License-Identifier: BSD-3-Clause
"""Selection of the k largest of the candidates of one image: a search on bits, not a sort."""

import triton
import triton.language as tl

# Priors that one program keeps in registers; more are read again in blocks at each step.
RESIDENT = 16384
STREAM_BLOCK = 4096
LARGEST_P = 1 << 21  # three counts are packed into one 64-bit sum


@triton.jit
def candidate_order(
    loss_ptr,  # (P,) float32
    match_ptr,  # (P,) int32
    p,
    P,
    OVERFLOW: tl.constexpr,
):
    """uint32 that orders the candidates of an image: -0.0 equals 0.0, NaN is largest.

    0, below them all, for priors that are no candidates. With OVERFLOW a loss below 0 stands for
    one of +inf.
    """
    loss = tl.load(loss_ptr + p, p < P, other=0.0)
    if OVERFLOW:
        loss = tl.where(loss < 0.0, float("inf"), loss)
    match = tl.load(match_ptr + p, p < P, other=0)
    bits = tl.where(loss == 0.0, 0.0, loss).to(tl.int32, bitcast=True)
    signed = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    signed = tl.where(loss != loss, 0x7FFFFFFF, signed)
    order = signed.to(tl.uint32, bitcast=True) ^ 0x80000000
    return tl.where(match == -1, order, 0)


@triton.jit
def packed_counts(order, low, middle, high):
    """How many reach each of three thresholds, 21 bits each."""
    reach = (order >= low).to(tl.int64) + ((order >= middle).to(tl.int64) << 21)
    return reach + ((order >= high).to(tl.int64) << 42)


@triton.jit
def negatives_wanted(positives, candidates, ratio, min_negatives):
    """``ceil(float32(ratio) * float32(positives))``, at least the minimum, at most all."""
    # Compared as floats first: the share may be beyond every integer.
    share = tl.minimum(ratio * positives.to(tl.float32), candidates.to(tl.float32))
    whole = share.to(tl.int32)
    share = whole + (whole.to(tl.float32) < share).to(tl.int32)  # tl.ceil flushes tiny shares to 0
    return tl.minimum(tl.maximum(share, min_negatives), candidates)


@triton.jit
def count_matches(
    match_ptr,  # (P,) int32
    P,
    BLOCK_P: tl.constexpr,
):
    """Positives and candidates of an image."""
    positives = tl.zeros((BLOCK_P,), tl.int32)
    candidates = tl.zeros((BLOCK_P,), tl.int32)
    first = P * 0
    while first < P:
        p = first + tl.arange(0, BLOCK_P)
        match = tl.load(match_ptr + p, p < P, other=-2)
        positives += (match >= 0).to(tl.int32)
        candidates += (match == -1).to(tl.int32)
        first += BLOCK_P
    return tl.sum(positives, axis=0), tl.sum(candidates, axis=0)


@triton.jit
def kth_largest(
    loss_ptr,  # (P,) float32
    match_ptr,  # (P,) int32
    k,
    P,
    BLOCK_P: tl.constexpr,
    STREAM: tl.constexpr,
    OVERFLOW: tl.constexpr,
):
    """Order of the k-th largest candidate, and how many candidates lie above it.

    For k = 0 the largest order there is, and nothing above.
    """
    order = candidate_order(loss_ptr, match_ptr, tl.arange(0, BLOCK_P), P, OVERFLOW)
    prefix = tl.full((), 0, tl.uint32)
    step = tl.full((), 1 << 30, tl.uint32)
    above = k * 0
    # Two bits a step: the largest prefix that k candidates reach.
    for _ in range(16):
        low = prefix | step
        middle = prefix | (step << 1)
        high = low | middle
        if STREAM:
            sums = tl.zeros((BLOCK_P,), tl.int64)
            first = P * 0
            while first < P:
                p = first + tl.arange(0, BLOCK_P)
                block = candidate_order(loss_ptr, match_ptr, p, P, OVERFLOW)
                sums += packed_counts(block, low, middle, high)
                first += BLOCK_P
            counts = tl.sum(sums, axis=0)
        else:
            counts = tl.sum(packed_counts(order, low, middle, high), axis=0)
        reach_low = (counts & 0x1FFFFF).to(tl.int32)
        reach_middle = ((counts >> 21) & 0x1FFFFF).to(tl.int32)
        reach_high = (counts >> 42).to(tl.int32)
        # Those that reach the next higher prefix, which k do not reach, lie above.
        above = tl.where(reach_low < k, reach_low, above)
        above = tl.where((reach_low >= k) & (reach_middle < k), reach_middle, above)
        above = tl.where((reach_middle >= k) & (reach_high < k), reach_high, above)
        prefix = tl.where(reach_low >= k, low, prefix)
        prefix = tl.where(reach_middle >= k, middle, prefix)
        prefix = tl.where(reach_high >= k, high, prefix)
        step = step >> 2
    return prefix, above


@triton.jit
def take(order, threshold, ties):
    """Which of a block are among the k largest, given how many ties earlier blocks left.

    Returns:
        The mask, and the ties that are left for later blocks.
    """
    tie = order == threshold
    rank = tl.cumsum(tie.to(tl.int32), axis=0)
    chosen = (order > threshold) | (tie & (rank <= ties))
    return chosen, ties - tl.sum(tie.to(tl.int32), axis=0)


def selection_blocks(P: int, block: int | None = None) -> dict[str, int | bool]:
    """Launch options of a selection among P: how many are held, read at a time, and warps."""
    if P >= LARGEST_P:
        raise ValueError(f"priors: the GPU kernels select among fewer than {LARGEST_P}, got {P}")
    if block is None:
        block = STREAM_BLOCK if P > RESIDENT else max(1024, triton.next_power_of_2(P))
    warps = min(16, max(4, block // 512))
    return {
        "BLOCK_P": block,
        "BLOCK_S": min(block, 64 * warps),
        "STREAM": block < P,
        "num_warps": warps,
    }
