# SPDX-License-Identifier: BSD-3-Clause
"""Box losses of rows in Triton, and their gradients by the deltas: smooth-L1, GIoU, DIoU, CIoU.

Contract: ssd_fast/box_losses.py. Each IoU loss is one text that computes the loss and its four
derivatives; a kernel that uses only the first pays only for that.
"""

import triton
import triton.language as tl

from ssd_fast.kernels.boxes import encode_box, load_box
from ssd_fast.kernels.elementary import atan, exp

# Values of the operators' argument.
SMOOTH_L1, GIOU, DIOU, CIOU = (tl.constexpr(i) for i in range(4))
EPSILON = tl.constexpr(1e-7)
MAX_LOG_SCALE = tl.constexpr(4.135166556742356)  # log(1000 / 16), as in ssd_fast/boxes.py


@triton.jit
def four_columns(x, y, w, h):
    """Four values of each row, (BLOCK_R,), side by side, (BLOCK_R, 4)."""
    k = tl.arange(0, 4)[None, :]
    columns = tl.where(k == 0, x[:, None], y[:, None])
    columns = tl.where(k == 2, w[:, None], columns)
    return tl.where(k == 3, h[:, None], columns)


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
    dx, dy, dw, dh = encode_box(box, prior, vx, vy, vw, vh)
    target = four_columns(dx, dy, dw, dh)
    k = tl.arange(0, 4)[None, :]
    pointers = deltas_ptr + delta_offset[:, None] + k * delta_channel
    delta = tl.load(pointers, positive[:, None], other=0.0).to(tl.float32)
    return tl.where(positive[:, None], delta - target, 0.0)


@triton.jit
def decode_side(offset, log_scale, size):
    """Centre and half of a decoded side, relative to where the prior's side begins.

    Small numbers wherever the prior lies: coordinates of the image would cost digits.
    """
    log_scale = tl.where(log_scale > MAX_LOG_SCALE, MAX_LOG_SCALE, log_scale)  # keeps NaN
    return offset * size + 0.5 * size, exp(log_scale) * size * 0.5


@triton.jit
def compare_sides(centre, half, low, high):
    """Lengths that a decoded side shares with an object's side and spans together with it.

    Returns:
        Both lengths, NaN for a NaN centre; then whether the low and the high end lie above the
        object's: 1, 0, or 1/2 for equal ends, as the gradients of PyTorch's extrema have it.
    """
    begin = centre - half
    end = centre + half
    low_above = tl.where(begin > low, 1.0, tl.where(begin == low, 0.5, 0.0))
    high_above = tl.where(end > high, 1.0, tl.where(end == high, 0.5, 0.0))
    shared = tl.where(end > high, high, end) - tl.where(begin < low, low, begin)
    spanned = tl.where(end < high, high, end) - tl.where(begin > low, low, begin)
    return shared, spanned, low_above, high_above


@triton.jit
def side_gradient(half, low_above, high_above, by_shared, by_spanned, by_centre, by_log_size):
    """Derivatives by a decoded side's centre and log-size, from those by what depends on it."""
    low = by_spanned * (1.0 - low_above) + by_shared * low_above
    high = by_spanned * high_above + by_shared * (1.0 - high_above)
    return high - low + by_centre, (high + low) * half + by_log_size


@triton.jit
def iou_loss(
    delta,  # four offsets
    prior,  # corners
    box,  # corners of the object
    vx,
    vy,
    vw,
    vh,
    BOX_LOSS: tl.constexpr,
):
    """GIoU, DIoU or CIoU loss of the decoded box, and its derivatives by the four deltas."""
    dx, dy, dw, dh = delta
    px1, py1, px2, py2 = prior
    pw = px2 - px1
    ph = py2 - py1
    x1, y1, x2, y2 = box[0] - px1, box[1] - py1, box[2] - px1, box[3] - py1
    cx, half_w = decode_side(dx * vx, dw * vw, pw)
    cy, half_h = decode_side(dy * vy, dh * vh, ph)
    shared_w, spanned_w, left_above, right_above = compare_sides(cx, half_w, x1, x2)
    shared_h, spanned_h, top_above, bottom_above = compare_sides(cy, half_h, y1, y2)
    width = 2.0 * half_w
    height = 2.0 * half_h
    object_w = box[2] - box[0]
    object_h = box[3] - box[1]

    overlap = (shared_w > 0) & (shared_h > 0)
    inter = tl.where(overlap, shared_w * shared_h, 0.0)
    area = width * height
    union = area + object_w * object_h - inter
    per_union = 1.0 / (union + EPSILON)
    iou = inter * per_union
    by_inter = -(1.0 + iou) * per_union
    by_area = iou * per_union
    if BOX_LOSS == GIOU:
        hull = spanned_w * spanned_h
        per_hull = 1.0 / (hull + EPSILON)
        empty = (hull - union) * per_hull
        loss = 1.0 - iou + empty
        by_inter += per_hull
        by_area -= per_hull
        by_hull = (1.0 - empty) * per_hull
        by_spanned_w = by_hull * spanned_h
        by_spanned_h = by_hull * spanned_w
        by_cx = tl.zeros_like(cx)
        by_cy = tl.zeros_like(cy)
        tilt = tl.zeros_like(cx)
    else:
        per_diagonal = 1.0 / (spanned_w * spanned_w + spanned_h * spanned_h + EPSILON)
        between_x = cx - 0.5 * (x1 + x2)
        between_y = cy - 0.5 * (y1 + y2)
        distance = (between_x * between_x + between_y * between_y) * per_diagonal
        loss = 1.0 - iou + distance
        by_spanned_w = -2.0 * distance * spanned_w * per_diagonal
        by_spanned_h = -2.0 * distance * spanned_h * per_diagonal
        by_cx = 2.0 * between_x * per_diagonal
        by_cy = 2.0 * between_y * per_diagonal
        tilt = tl.zeros_like(cx)
    if BOX_LOSS == CIOU:
        aspect = width / height
        angle = atan(object_w / object_h) - atan(aspect)
        ratio = 0.405284734569351 * angle * angle  # 4 / pi^2
        alpha = ratio / (1.0 - iou + ratio + EPSILON)  # without a gradient
        loss += alpha * ratio
        tilt = -0.810569469138702 * alpha * angle * (aspect / (1.0 + aspect * aspect))

    by_shared_w = tl.where(overlap, by_inter * shared_h, 0.0)
    by_shared_h = tl.where(overlap, by_inter * shared_w, 0.0)
    by_log_area = by_area * area
    by_cx, by_log_w = side_gradient(
        half_w, left_above, right_above, by_shared_w, by_spanned_w, by_cx, by_log_area + tilt
    )
    by_cy, by_log_h = side_gradient(
        half_h, top_above, bottom_above, by_shared_h, by_spanned_h, by_cy, by_log_area - tilt
    )
    by_log_w = tl.where(dw * vw <= MAX_LOG_SCALE, by_log_w, 0.0)  # nothing passes a NaN either
    by_log_h = tl.where(dh * vh <= MAX_LOG_SCALE, by_log_h, 0.0)
    return loss, by_cx * pw * vx, by_cy * ph * vy, by_log_w * vw, by_log_h * vh


@triton.jit
def row_iou_loss(
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
    BOX_LOSS: tl.constexpr,
):
    """`iou_loss` of a block of rows; of anything in rows that are not positive."""
    box = load_box(boxes_ptr, n, positive)
    prior = load_box(priors_ptr, p, positive)
    pointers = deltas_ptr + delta_offset
    dx = tl.load(pointers, positive, other=0.0).to(tl.float32)
    dy = tl.load(pointers + delta_channel, positive, other=0.0).to(tl.float32)
    dw = tl.load(pointers + 2 * delta_channel, positive, other=0.0).to(tl.float32)
    dh = tl.load(pointers + 3 * delta_channel, positive, other=0.0).to(tl.float32)
    return iou_loss((dx, dy, dw, dh), prior, box, vx, vy, vw, vh, BOX_LOSS)


@triton.jit
def sum_box_losses(
    deltas_ptr,
    delta_offset,
    delta_channel,
    boxes_ptr,  # (N, 4) float32
    priors_ptr,  # (P, 4) float32
    n,
    p,
    positive,
    beta,
    vx,
    vy,
    vw,
    vh,
    BOX_LOSS: tl.constexpr,
):
    """The losses of a block's positives, summed."""
    if BOX_LOSS == SMOOTH_L1:
        residual = residuals(
            deltas_ptr, delta_offset, delta_channel, boxes_ptr, priors_ptr, n, p, positive,
            vx, vy, vw, vh,
        )  # fmt: skip
        size = tl.abs(residual)
        smooth = tl.where(size < beta, 0.5 * residual * residual / beta, size - 0.5 * beta)
        total = tl.sum(tl.sum(tl.where(positive[:, None], smooth, 0.0), axis=1), axis=0)
    else:
        loss, _, _, _, _ = row_iou_loss(
            deltas_ptr, delta_offset, delta_channel, boxes_ptr, priors_ptr, n, p, positive,
            vx, vy, vw, vh, BOX_LOSS,
        )  # fmt: skip
        total = tl.sum(tl.where(positive, loss, 0.0), axis=0)
    return total


@triton.jit
def box_slopes(
    deltas_ptr,
    delta_offset,
    delta_channel,
    boxes_ptr,  # (N, 4) float32
    priors_ptr,  # (P, 4) float32
    n,
    p,
    positive,
    beta,
    vx,
    vy,
    vw,
    vh,
    BOX_LOSS: tl.constexpr,
):
    """Derivatives (BLOCK_R, 4) of the losses by the deltas; of anything in other rows."""
    if BOX_LOSS == SMOOTH_L1:
        residual = residuals(
            deltas_ptr, delta_offset, delta_channel, boxes_ptr, priors_ptr, n, p, positive,
            vx, vy, vw, vh,
        )  # fmt: skip
        sign = tl.where(residual > 0, 1.0, 0.0) - tl.where(residual < 0, 1.0, 0.0)
        slope = tl.where(tl.abs(residual) < beta, residual / beta, sign)
        slope = tl.where(residual == residual, slope, residual)  # NaN stays NaN
    else:
        _, x, y, w, h = row_iou_loss(
            deltas_ptr, delta_offset, delta_channel, boxes_ptr, priors_ptr, n, p, positive,
            vx, vy, vw, vh, BOX_LOSS,
        )  # fmt: skip
        slope = four_columns(x, y, w, h)
    return slope
