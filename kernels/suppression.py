# SPDX-License-Identifier: BSD-3-Clause
"""Greedy non-maximum suppression of one image in Triton: a block of sorted candidates at a time.

A block meets the detections kept before it, then itself. Within the block the greedy answer is a
fixed point: kept is what no earlier kept candidate suppresses. Iterated from any start, the first
n candidates are right after n steps; in practice it settles after two or three, and there is no
walk from candidate to candidate.
"""

import triton
import triton.language as tl

from ssd_fast.kernels.boxes import box_area, load_box


@triton.jit
def overlap(a, b, DISTANCE: tl.constexpr):
    """IoU as overlaps_of in ssd_fast/boxes.py: NaN where it is 0 / 0, which exceeds nothing.

    With DISTANCE as distance_overlaps in ssd_fast/suppression.py.
    """
    ax1, ay1, ax2, ay2 = a
    bx1, by1, bx2, by2 = b
    width = tl.maximum(tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1), 0.0)
    height = tl.maximum(tl.minimum(ay2, by2) - tl.maximum(ay1, by1), 0.0)
    inter = width * height
    iou = tl.math.div_rn(inter, box_area(ax1, ay1, ax2, ay2) + box_area(bx1, by1, bx2, by2) - inter)
    if DISTANCE:
        dx = (ax1 + ax2) * 0.5 - (bx1 + bx2) * 0.5
        dy = (ay1 + ay2) * 0.5 - (by1 + by2) * 0.5
        width = tl.maximum(ax2, bx2) - tl.minimum(ax1, bx1)
        height = tl.maximum(ay2, by2) - tl.minimum(ay1, by1)
        diagonal = width * width + height * height
        distance = tl.math.div_rn(dx * dx + dy * dy, tl.where(diagonal == 0.0, 1.0, diagonal))
        iou -= tl.where(diagonal == 0.0, 0.0, distance)
    return iou


@triton.jit
def as_columns(box):
    """Corners (n,) as (n, 1)."""
    x1, y1, x2, y2 = box
    return x1[:, None], y1[:, None], x2[:, None], y2[:, None]


@triton.jit
def as_rows(box):
    """Corners (n,) as (1, n)."""
    x1, y1, x2, y2 = box
    return x1[None, :], y1[None, :], x2[None, :], y2[None, :]


@triton.jit
def suppressed_by_kept(
    boxes_ptr,  # (K, 4) float32
    labels_ptr,  # (K,) int64
    count,
    box,
    label,
    iou_threshold,
    DISTANCE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Which of a block of boxes overlap one of the first ``count`` detections of their class."""
    suppressed = tl.zeros((BLOCK_N,), tl.int32)
    first = count * 0
    while first < count:
        i = first + tl.arange(0, BLOCK_N)
        ok = i < count
        kept = load_box(boxes_ptr, i, ok)
        kept_label = tl.load(labels_ptr + i, ok, other=-1).to(tl.int32)
        over = overlap(as_columns(kept), as_rows(box), DISTANCE) > iou_threshold
        over = over & ok[:, None] & (kept_label[:, None] == label[None, :])
        suppressed = tl.maximum(suppressed, tl.max(over.to(tl.int32), axis=0))
        first += BLOCK_N
    return suppressed > 0


@triton.jit
def settle(
    rivals,  # (n, n): whether candidate i, if kept, suppresses j; i < j
    alive,  # (n,)
):
    """Which of the block are kept: the fixed point of "alive, and no kept rival"."""
    kept = alive.to(tl.int32)
    changed = tl.max(kept, axis=0)
    while changed > 0:
        beaten = tl.max(tl.where(rivals, kept[:, None], 0), axis=0)
        now = tl.where(alive & (beaten == 0), 1, 0)
        changed = tl.max(tl.where(now != kept, 1, 0), axis=0)
        kept = now
    return kept
