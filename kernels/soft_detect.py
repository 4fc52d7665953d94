# SPDX-License-Identifier: BSD-3-Clause
"""Triton kernel of ssd_fast::detect with Soft-NMS. Contract: ssd_fast/ops/detect.py.

One program an image, on the candidates that kernels/detect.py lists. Candidates wait with their
scores; the best is taken, then one pass over those that wait lowers the scores of its class and
finds the next. What is not read yet has lower scores, so it is read only once none that waits is
better.
"""

import triton
import triton.language as tl

from ssd_fast.kernels.boxes import load_box
from ssd_fast.kernels.candidate_boxes import (
    decode_block,
    next_range,
    pad_results,
    rank_block,
    score_floor,
    store_box,
)
from ssd_fast.kernels.candidates import candidate_key, sort_keys
from ssd_fast.kernels.elementary import exp
from ssd_fast.kernels.suppression import overlap

BLOCK_W = tl.constexpr(1024)  # waiting candidates that are looked at at a time


@triton.jit
def score_of(key):
    """The score in a candidate's key."""
    return (key >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def lower(score, iou, iou_threshold, sigma, GAUSSIAN: tl.constexpr):
    """What a kept box leaves of the scores of others, as soft_nms in ssd_fast/suppression.py."""
    if GAUSSIAN:
        over = iou > 0.0
        square = tl.where(over, iou * iou, 0.0)
        factor = exp(0.0 - tl.math.div_rn(square, tl.zeros(square.shape, tl.float32) + sigma))
    else:
        over = iou > iou_threshold
        factor = tl.maximum(1.0 - iou, 0.0)  # an IoU may round to above 1
    return tl.where(over, score * factor, score)


@triton.jit
def admit_block(
    levels,
    image,
    priors_ptr,  # (P, 4) float32
    clip,  # four bounds
    keys_ptr,  # (CAPACITY,) int64, sorted
    seen_ptr,  # (C,) int32, in and out: candidates visited of each class
    waiting_ptr,  # (C * top_k,) int64, in and out: keys, -1 once taken or gone
    corners_ptr,  # (C * top_k, 4) float32, in and out: their boxes
    boxes_ptr,  # (K, 4) float32
    labels_ptr,  # (K,) int64
    first,
    n,
    waiting,
    count,
    P,
    threshold,
    top_k,
    iou_threshold,
    sigma,
    vx,
    vy,
    vw,
    vh,
    max_log_scale,
    GAUSSIAN: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Lets a block of candidates wait, lowered by all detections; returns how many wait then."""
    key, label, p, alive = rank_block(keys_ptr, seen_ptr, first, n, P, top_k, BLOCK_N)
    if tl.max(alive.to(tl.int32), axis=0) > 0:
        x1, y1, x2, y2, alive = decode_block(
            levels, image, priors_ptr, clip, p, alive, vx, vy, vw, vh, max_log_scale
        )
        score = score_of(key)
        k = count * 0
        while k < count:
            kept = load_box(boxes_ptr, k, None)
            iou = overlap(kept, (x1, y1, x2, y2), False)
            now = lower(score, iou, iou_threshold, sigma, GAUSSIAN)
            score = tl.where(label == tl.load(labels_ptr + k).to(tl.int32), now, score)
            k += 1
        alive = alive & (score > threshold)
        place = waiting + tl.cumsum(alive.to(tl.int32), axis=0) - alive.to(tl.int32)
        tl.store(waiting_ptr + place, candidate_key(score, label, p, P), alive)
        store_box(corners_ptr, place, alive, x1, y1, x2, y2)
        waiting += tl.sum(alive.to(tl.int32), axis=0)
    tl.debug_barrier()
    return waiting


@triton.jit
def lower_waiting(
    waiting_ptr,  # (C * top_k,) int64, in and out
    corners_ptr,  # (C * top_k, 4) float32
    waiting,
    label,  # int64, of the box that was kept; -1 for none
    kept,  # its corners
    P,
    threshold,
    iou_threshold,
    sigma,
    GAUSSIAN: tl.constexpr,
):
    """Lowers the scores of a class; returns the best key that waits, -1 for none, and its place."""
    best = tl.full((), -1, tl.int64)
    where = waiting * 0
    first = waiting * 0
    while first < waiting:
        i = first + tl.arange(0, BLOCK_W)
        key = tl.load(waiting_ptr + i, i < waiting, other=-1)
        low = key & 0xFFFFFFFF
        behind = 0xFFFFFFFF - label * P  # what ends the keys of the class's first prior
        hit = (key >= 0) & (low <= behind) & (low > behind - P)
        if tl.max(hit.to(tl.int32), axis=0) > 0:
            iou = overlap(kept, load_box(corners_ptr, i, hit), False)
            score = lower(score_of(key), iou, iou_threshold, sigma, GAUSSIAN)
            lowered = (score.to(tl.int32, bitcast=True).to(tl.int64) << 32) | low
            key = tl.where(hit, tl.where(score > threshold, lowered, -1), key)
            tl.store(waiting_ptr + i, key, hit)
        top = tl.max(key, axis=0)
        if top > best:
            where = tl.min(tl.where(key == top, i, 0x7FFFFFFF), axis=0)
            best = top
        first += BLOCK_W
    return best, where


@triton.jit(do_not_specialize=["K", "background", "top_k"])
def _soft_detect_kernel(
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
    waiting_ptr,  # (B, C * top_k) int64, scratch
    corners_ptr,  # (B, C * top_k, 4) float32, scratch
    sigma,
    C: tl.constexpr,
    INNER: tl.constexpr,
    CAPACITY: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    SIGMOID: tl.constexpr,
):
    """One image: the best candidate that waits is detected, until there are K or none is left."""
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
    waiting_ptr += image * C * top_k
    corners_ptr += image * C * top_k * 4
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
    waiting = P * 0
    searching = (n > 0) & (K > 0)
    while searching:
        if overflow:
            n, low = next_range(
                levels, image, total_ptr, best_ptr, seen_ptr, rows_ptr, keys_ptr, floor, high,
                P, background, threshold, top_k, C, INNER, CAPACITY, BLOCK_R, BLOCK_C, SIGMOID,
            )  # fmt: skip
        sort_keys(keys_ptr, sorted_ptr, n, BLOCK_I=32, BLOCK_J=128)
        first = P * 0
        while first < n:
            waiting = admit_block(
                levels, image, priors_ptr, clip, sorted_ptr, seen_ptr, waiting_ptr, corners_ptr,
                boxes_ptr, labels_ptr, first, n, waiting, count, P, threshold, top_k,
                iou_threshold, sigma, vx, vy, vw, vh, max_log_scale, GAUSSIAN, BLOCK_N,
            )  # fmt: skip
            first += BLOCK_N
        searching = overflow & (low > floor)
        limit = tl.where(searching, low, 0)  # no candidate that is not read yet reaches it
        high = low

        zero = sigma * 0.0
        key, place = lower_waiting(
            waiting_ptr, corners_ptr, waiting, tl.full((), -1, tl.int64), (zero, zero, zero, zero),
            P, threshold, iou_threshold, sigma, GAUSSIAN,
        )  # fmt: skip
        while (count < K) & (key >= limit):
            label = (0xFFFFFFFF - (key & 0xFFFFFFFF)) // P
            x1, y1, x2, y2 = load_box(corners_ptr, place, None)
            store_box(boxes_ptr, count, None, x1, y1, x2, y2)
            tl.store(scores_ptr + count, score_of(key))
            tl.store(labels_ptr + count, label)
            tl.debug_barrier()
            tl.store(waiting_ptr + place, tl.full((), -1, tl.int64))
            tl.debug_barrier()
            count += 1
            key, place = lower_waiting(
                waiting_ptr, corners_ptr, waiting, label, (x1, y1, x2, y2),
                P, threshold, iou_threshold, sigma, GAUSSIAN,
            )  # fmt: skip
        searching = searching & (count < K)
        tl.debug_barrier()

    tl.store(counts_ptr + image, count.to(tl.int64))
    pad_results(boxes_ptr, scores_ptr, labels_ptr, count, K, BLOCK_N)
