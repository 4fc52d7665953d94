# SPDX-License-Identifier: BSD-3-Clause
"""Boxes in Triton, operation by operation as ssd_fast/boxes.py defines them.

Launch with ``enable_fp_fusion=False``: each operation rounds once, so that results are equal bit
for bit on every device.
"""

import triton
import triton.language as tl

from ssd_fast.kernels.elementary import exp, log


@triton.jit
def load_box(
    boxes_ptr,  # (n, 4) float32, contiguous
    n,
    ok,
):
    """Corners of box ``n``; of anything where a mask ``ok`` is given and does not hold."""
    corner = boxes_ptr + n.to(tl.int64) * 4
    x1 = tl.load(corner, ok)
    y1 = tl.load(corner + 1, ok)
    x2 = tl.load(corner + 2, ok)
    y2 = tl.load(corner + 3, ok)
    return x1, y1, x2, y2


@triton.jit
def box_area(x1, y1, x2, y2):
    """``(x2 - x1) * (y2 - y1)``."""
    return (x2 - x1) * (y2 - y1)


@triton.jit
def box_iou(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2):
    """Intersection over union; 0 where boxes do not overlap, NaN corners included."""
    width = tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1)
    height = tl.minimum(ay2, by2) - tl.maximum(ay1, by1)
    inter = width * height
    union = box_area(ax1, ay1, ax2, ay2) + box_area(bx1, by1, bx2, by2) - inter
    # A NaN corner makes the union NaN. `/` would be div.full, off by two units in the last place.
    overlap = (width > 0) & (height > 0) & (inter > 0) & (union > 0)
    return tl.where(overlap, tl.math.div_rn(inter, tl.where(overlap, union, 1.0)), 0.0)


@triton.jit
def box_iof(ax1, ay1, ax2, ay2, bx1, by1, bx2, by2):
    """Share of the first box that lies inside the second; 0 where they do not overlap, or NaN."""
    width = tl.minimum(ax2, bx2) - tl.maximum(ax1, bx1)
    height = tl.minimum(ay2, by2) - tl.maximum(ay1, by1)
    inter = width * height
    area = box_area(ax1, ay1, ax2, ay2)
    # A NaN corner makes the area NaN, and may be none of the intersection's.
    overlap = (width > 0) & (height > 0) & (inter > 0) & (area > 0)
    return tl.where(overlap, tl.math.div_rn(inter, tl.where(overlap, area, 1.0)), 0.0)


@triton.jit
def encode_box(
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
def decode_box(
    delta,  # four offsets
    prior,  # corners
    vx,
    vy,
    vw,
    vh,
    max_log_scale,
):
    """Corners that offsets lead to from a prior; NaN stays NaN."""
    dx, dy, dw, dh = delta
    px1, py1, px2, py2 = prior
    pw = px2 - px1
    ph = py2 - py1
    cx = (dx * vx) * pw + (px1 + px2) * 0.5
    cy = (dy * vy) * ph + (py1 + py2) * 0.5
    log_w = dw * vw
    log_h = dh * vh
    half_w = exp(tl.where(log_w > max_log_scale, max_log_scale, log_w)) * pw * 0.5
    half_h = exp(tl.where(log_h > max_log_scale, max_log_scale, log_h)) * ph * 0.5
    return cx - half_w, cy - half_h, cx + half_w, cy + half_h


@triton.jit
def clamp(x, low, high):
    """As torch.clamp: NaN stays NaN, and a bound that is NaN makes NaN."""
    x = tl.where(x < low, low, x)
    x = tl.where(x > high, high, x)
    return tl.where((low == low) & (high == high), x, float("nan"))


@triton.jit
def is_finite(x):
    """Neither infinite nor NaN."""
    return tl.abs(x) < float("inf")
