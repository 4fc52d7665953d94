# SPDX-License-Identifier: BSD-3-Clause
"""Triton kernels of ssd_fast::detect. Contract: ssd_fast/ops/detect.py.

One pass over the logits lists the candidates of each image; then one program an image visits them,
best first, until the image has all its detections. Classes never meet, so visiting all of them in
one order keeps what suppression class by class would keep, and few are visited however many
there are. Where an image has more candidates than its list holds, its program reads the rows with
the best scores again, a range of scores at a time.
"""

import ctypes
import math
import struct
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_fast.boxes import four_variances
from ssd_fast.kernels.boxes import load_box
from ssd_fast.kernels.candidate_boxes import (
    decode_block,
    next_range,
    pad_results,
    rank_block,
    score_floor,
    store_box,
)
from ssd_fast.kernels.candidates import (
    BLOCK_P,
    append_keys,
    candidate_key,
    row_peaks,
    row_totals,
    score_classes,
    sort_keys,
)
from ssd_fast.kernels.levels import Level, count_blocks, level_views, locate, pick
from ssd_fast.kernels.loss_rows import LOGITS, ROWS_PER_PROGRAM, class_block, count_classes
from ssd_fast.kernels.soft_detect import _soft_detect_kernel
from ssd_fast.kernels.suppression import as_columns, as_rows, overlap, settle, suppressed_by_kept

__all__ = ["launch_detect"]

CAPACITY = 1024  # candidates of an image that are listed, and of a range sorted, at a time
BLOCK_R = 32  # rows read again at a time
BLOCK_N = 64  # candidates visited at a time
IMAGE_WARPS = 8
SOFT_LINEAR, SOFT_GAUSSIAN, DIOU = 1, 2, 3  # numbers of suppression in the operator's schema
SIGMOID = 1  # number of the scores there
REGISTERS = 255  # named, or ptxas spills some to fit two programs on a multiprocessor


@triton.jit(do_not_specialize=["BLOCKS", "background"])
def _candidates_kernel(
    levels,
    total_ptr,  # (B, P) float32, out where best >= 0, of a softmax alone: the row's exponentials
    best_ptr,  # (B, P) float32, out: the row's best score, -1 where it has no candidate
    keys_ptr,  # (B, CAPACITY) int64, out
    count_ptr,  # (B,) int32, in: zeros; out: candidates, at least CAPACITY + 1 where they overflow
    P,
    BLOCKS,
    background,
    threshold,
    margin,
    C: tl.constexpr,
    INNER: tl.constexpr,
    CAPACITY: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SIGMOID: tl.constexpr,
):
    """The pass over the logits: one block of rows of one image.

    A class exceeds the threshold only where its logit exceeds the background's, or 0 where scores
    are sigmoids, by the margin, so most rows are done after one comparison, and most blocks without
    an exponential.
    """
    image = (tl.program_id(0) // BLOCKS).to(tl.int64)
    block = tl.program_id(0) % BLOCKS
    level, p, ok, base, offset, channel, _, _, _ = locate(image, block, levels, BLOCK_R, INNER)
    pointers = pick(levels, level, LOGITS) + base + offset
    peak, lead = row_peaks(pointers, channel, ok, background, C, INNER, BLOCK_C, SIGMOID)
    reference = tl.zeros((BLOCK_R,), tl.float32)
    if not SIGMOID:
        reference = tl.load(pointers + background * channel, ok, other=0.0).to(tl.float32)
    possible = ok & ((lead - reference > margin) | (margin == float("-inf")))
    best = tl.full((BLOCK_R,), -1.0, tl.float32)
    if tl.max(possible.to(tl.int32), axis=0) > 0:
        total = tl.zeros((BLOCK_R,), tl.float32)
        if not SIGMOID:
            total = row_totals(pointers, channel, peak, possible, C, INNER, BLOCK_C)
            tl.store(total_ptr + image * P + p, total, ok)
        for first in range(0, C, BLOCK_C):
            score, c, hit = score_classes(
                pointers, channel, peak, total, possible, first, background, threshold,
                C, INNER, BLOCK_C, SIGMOID,
            )  # fmt: skip
            row_best = tl.max(tl.where(hit, score, -1.0), axis=1)
            best = tl.maximum(best, row_best)
            if tl.max(row_best, axis=0) >= 0.0:
                keys = candidate_key(score, c, p[:, None], P)
                append_keys(keys_ptr + image * CAPACITY, count_ptr + image, keys, hit, CAPACITY)
    tl.store(best_ptr + image * P + p, best, ok)


@triton.jit
def visit_block(
    levels,
    image,
    priors_ptr,  # (P, 4) float32
    clip,  # four bounds
    keys_ptr,  # (CAPACITY,) int64, sorted
    seen_ptr,  # (C,) int32, in and out: candidates visited of each class
    boxes_ptr,  # (K, 4) float32, in and out
    scores_ptr,  # (K,) float32, out
    labels_ptr,  # (K,) int64, in and out
    first,
    n,
    count,
    P,
    K,
    top_k,
    iou_threshold,
    vx,
    vy,
    vw,
    vh,
    max_log_scale,
    DISTANCE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Visits a block of candidates; returns the detections there are after it, K or more if all."""
    key, label, p, alive = rank_block(keys_ptr, seen_ptr, first, n, P, top_k, BLOCK_N)
    if tl.max(alive.to(tl.int32), axis=0) > 0:
        x1, y1, x2, y2, alive = decode_block(
            levels, image, priors_ptr, clip, p, alive, vx, vy, vw, vh, max_log_scale
        )
        box = (x1, y1, x2, y2)
        beaten = suppressed_by_kept(
            boxes_ptr, labels_ptr, count, box, label, iou_threshold, DISTANCE, BLOCK_N
        )
        b = tl.arange(0, BLOCK_N)
        rivals = (label[:, None] == label[None, :]) & (b[:, None] < b[None, :])
        rivals = rivals & (overlap(as_columns(box), as_rows(box), DISTANCE) > iou_threshold)
        kept = settle(rivals, alive & (beaten == 0))
        place = count + tl.cumsum(kept, axis=0) - kept
        fits = (kept > 0) & (place < K)
        store_box(boxes_ptr, place, fits, x1, y1, x2, y2)
        tl.store(scores_ptr + place, (key >> 32).to(tl.int32).to(tl.float32, bitcast=True), fits)
        tl.store(labels_ptr + place, label.to(tl.int64), fits)
        count += tl.sum(kept, axis=0)
    tl.debug_barrier()
    return count


@triton.jit(do_not_specialize=["K", "background", "top_k"])
def _detect_kernel(
    levels,
    priors_ptr,  # (P, 4) float32, contiguous
    clip_ptr,  # (B, 4) float32, contiguous, or None: the four bounds below hold for all images
    low_x,
    low_y,
    high_x,
    high_y,
    total_ptr,  # (B, P) float32, of a softmax alone
    best_ptr,  # (B, P) float32
    keys_ptr,  # (B, CAPACITY) int64, in and out
    sorted_ptr,  # (B, CAPACITY) int64, scratch
    used_ptr,  # (B,) int32
    rows_ptr,  # (B, P) int32, scratch
    seen_ptr,  # (B, C) int32, scratch
    boxes_ptr,  # (B, K, 4) float32, out
    scores_ptr,  # (B, K) float32, out
    labels_ptr,  # (B, K) int64, out
    counts_ptr,  # (B,) int64, out
    P,
    K,
    background,
    threshold,
    top_k,
    iou_threshold,
    vx,
    vy,
    vw,
    vh,
    max_log_scale,
    C: tl.constexpr,
    INNER: tl.constexpr,
    CAPACITY: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DISTANCE: tl.constexpr,
    SIGMOID: tl.constexpr,
):
    """One image: its candidates, best first, until K are kept or none is left."""
    image = tl.program_id(0).to(tl.int64)
    total_ptr += image * P
    best_ptr += image * P
    rows_ptr += image * P
    keys_ptr += image * CAPACITY
    sorted_ptr += image * CAPACITY
    seen_ptr += image * C
    boxes_ptr += image * K * 4
    scores_ptr += image * K
    labels_ptr += image * K
    clip = (low_x, low_y, high_x, high_y)
    if clip_ptr is not None:
        clip = load_box(clip_ptr, image, None)
    for first in range(0, C, BLOCK_P):
        c = first + tl.arange(0, BLOCK_P)
        tl.store(seen_ptr + c, tl.zeros((BLOCK_P,), tl.int32), c < C)
    tl.debug_barrier()

    n = tl.load(used_ptr + image)
    overflow = n > CAPACITY
    floor = score_floor(threshold)
    low = floor
    high = tl.full((), 0x40000000, tl.int64) << 32  # a score of 2
    count = P * 0
    searching = (n > 0) & (K > 0)
    while searching:
        if overflow:
            n, low = next_range(
                levels, image, total_ptr, best_ptr, seen_ptr, rows_ptr, keys_ptr, floor, high,
                P, background, threshold, top_k, C, INNER, CAPACITY, BLOCK_R, BLOCK_C, SIGMOID,
            )  # fmt: skip
        sort_keys(keys_ptr, sorted_ptr, n, BLOCK_I=32, BLOCK_J=128)
        first = P * 0
        while (first < n) & (count < K):
            count = visit_block(
                levels, image, priors_ptr, clip, sorted_ptr, seen_ptr,
                boxes_ptr, scores_ptr, labels_ptr, first, n, count, P, K, top_k,
                iou_threshold, vx, vy, vw, vh, max_log_scale, DISTANCE, BLOCK_N,
            )  # fmt: skip
            first += BLOCK_N
        searching = overflow & (count < K) & (low > floor)
        high = low

    count = tl.minimum(count, K)
    tl.store(counts_ptr + image, count.to(tl.int64))
    pad_results(boxes_ptr, scores_ptr, labels_ptr, count, K, BLOCK_N)


def launch_detect(
    deltas: list[Tensor],
    logits: list[Tensor],
    priors: Tensor,
    score_threshold: float,
    top_k: int,
    iou_threshold: float,
    max_detections: int,
    variances: Sequence[float],
    background_index: int,
    clip: Sequence[float] | None,
    image_clip: Tensor | None,
    max_log_scale: float | None,
    nms: int = 0,
    sigma: float = 0.5,
    scores: int = 0,
    block: int | None = None,
    capacity: int = CAPACITY,
    visit: int = BLOCK_N,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Detections of a batch: two launches and the clearing of one counter an image.

    Args and results are those of ``ssd_fast::detect``; ``block`` is rows a program, ``capacity``
    the candidates of an image that are listed, ``visit`` those that are visited at a time.
    Soft-NMS takes 24 bytes of scratch for each of the C top_k candidates that may wait.
    """
    levels, inner = level_views(deltas, logits)
    B, P, C, K = deltas[0].size(0), priors.size(0), count_classes(deltas, logits), max_detections
    _check(levels, P, C, background_index, scores)
    boxes, found = priors.new_empty((B, K, 4)), priors.new_empty((B, K))
    labels = priors.new_empty((B, K), dtype=torch.int64)
    counts = priors.new_empty((B,), dtype=torch.int64)
    top_k = min(top_k, P)
    if B == 0 or top_k == 0 or (C == 1 and background_index == 0):
        return boxes.zero_(), found.zero_(), labels.zero_(), counts.zero_()
    capacity = _fitting_capacity(capacity, P, C, top_k)
    block = block or ROWS_PER_PROGRAM[inner]
    blocks = count_blocks(levels, block)
    total = priors.new_empty((0, 0) if scores == SIGMOID else (B, P))
    best = priors.new_empty((B, P))
    rows, seen = (priors.new_empty((B, n), dtype=torch.int32) for n in (P, C))
    keys, ordered = (priors.new_empty((B, capacity), dtype=torch.int64) for _ in range(2))
    used = priors.new_zeros((B,), dtype=torch.int32)
    threshold = ctypes.c_float(score_threshold).value
    options = {"C": C, "INNER": inner, "CAPACITY": capacity, "BLOCK_C": class_block(C)}
    options["SIGMOID"] = scores == SIGMOID
    _candidates_kernel[(B * blocks,)](
        levels,
        total,
        best,
        keys,
        used,
        P,
        blocks,
        background_index,
        threshold,
        _margin(threshold),
        BLOCK_R=block,
        **options,
        enable_fp_fusion=False,
    )
    bounds = (-math.inf, -math.inf, math.inf, math.inf) if clip is None else clip
    arguments: tuple[Any, ...] = (
        levels,
        priors.contiguous(),
        None if image_clip is None else image_clip.contiguous(),
        *(ctypes.c_float(bound).value for bound in bounds),
        total,
        best,
        keys,
        ordered,
        used,
        rows,
        seen,
        boxes,
        found,
        labels,
        counts,
        P,
        K,
        background_index,
        threshold,
        top_k,
        _round_down(iou_threshold),
        *four_variances(variances),
        math.inf if max_log_scale is None else float(max_log_scale),
    )
    if nms in (SOFT_LINEAR, SOFT_GAUSSIAN):
        kernel, kind = _soft_detect_kernel, {"GAUSSIAN": nms == SOFT_GAUSSIAN}
        waiting = priors.new_empty((B, C * top_k), dtype=torch.int64)
        corners = priors.new_empty((B, C * top_k, 4))
        arguments += (waiting, corners, ctypes.c_float(sigma).value)
    else:
        kernel, kind = _detect_kernel, {"DISTANCE": nms == DIOU}
    kernel[(B,)](
        *arguments,
        BLOCK_P=BLOCK_P.value,
        BLOCK_R=BLOCK_R,
        BLOCK_N=visit,
        **options,
        **kind,
        num_warps=IMAGE_WARPS,
        maxnreg=REGISTERS,
        enable_fp_fusion=False,
    )
    return boxes, found, labels, counts


def _check(levels: tuple[Level, ...], P: int, C: int, background: int, scores: int) -> None:
    """Raises ValueError where the kernels would read out of bounds."""
    rows = sum(level.groups * level.rows for level in levels)
    if rows != P:
        raise ValueError(f"priors: expected one for each of the {rows} rows of deltas, got {P}")
    lowest = -1 if scores == SIGMOID else 0
    if not lowest <= background < C:
        raise ValueError(f"background_index: expected from {lowest} to {C - 1}, got {background}")
    if P * C >= 2**31:  # candidates are counted in 32 bits
        raise ValueError(
            f"logits: the GPU kernels take fewer than 2**31 numbers an image, got {P * C}; detect "
            f"fewer classes or priors at a time"
        )


def _fitting_capacity(capacity: int, P: int, C: int, top_k: int) -> int:
    """The largest power of two so that scratch is at most 16 bytes x (P + C top_k) an image."""
    fits = (16 * (P + C * top_k) - 12 * P - 4 * C - 4) // 16
    return 1 << (max(1, min(capacity, fits)).bit_length() - 1)


def _margin(threshold: float) -> float:
    """How far a logit must exceed the background's, or 0, for a score above ``threshold``.

    Computed scores are off by some 1e-6 of themselves, so the bound is that of a threshold 1e-4
    lower; scores below float32's normal numbers are too coarse for one.
    """
    if not threshold > 1e-30:
        return -math.inf
    low = min(threshold, 1.0) * (1 - 1e-4)
    return math.log(low / (1 - low)) - 1e-4


def _round_down(value: float) -> float:
    """The largest float32 that is not above ``value``: exceeding either is the same."""
    nearest = ctypes.c_float(value).value
    if nearest <= value:
        return nearest
    (bits,) = struct.unpack("i", struct.pack("f", nearest))
    (below,) = struct.unpack("f", struct.pack("i", bits - 1 if bits > 0 else bits + 1))
    return float(below) if nearest else -(2.0**-149)
