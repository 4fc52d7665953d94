# SPDX-License-Identifier: BSD-3-Clause
"""Objects in Triton: the rows of an image's, and which may match as ssd_fast/assignment.py says."""

import triton
import triton.language as tl

from ssd_fast.kernels.boxes import box_area, box_iof, load_box


@triton.jit
def image_rows(
    offsets_ptr,  # (B + 1,) int64
    image,
    N,
):
    """First and end row of an image's objects, clamped to [0, N] whatever the offsets hold."""
    begin = tl.load(offsets_ptr + image)
    end = tl.load(offsets_ptr + image + 1)
    begin = tl.minimum(tl.maximum(begin, 0), N)
    end = tl.minimum(tl.maximum(end, 0), N)
    return begin, end


@triton.jit
def is_valid(x1, y1, x2, y2):
    """Whether an object may match: its area is positive and finite."""
    area = box_area(x1, y1, x2, y2)
    return (area > 0) & (area < float("inf"))


@triton.jit
def is_class(label, C, background):
    """Whether a label is a class that an object may have."""
    return (label >= 0) & (label < C) & (label != background)


@triton.jit
def is_object(
    boxes_ptr,  # (N, 4) float32, contiguous
    labels_ptr,  # (N,) int64, or None: any label will do
    n,
    C,
    background,
):
    """Corners of object ``n`` and whether it may match: positive finite area, a class's label."""
    x1, y1, x2, y2 = load_box(boxes_ptr, n, None)
    valid = is_valid(x1, y1, x2, y2)
    if labels_ptr is not None:
        valid = valid & is_class(tl.load(labels_ptr + n), C, background)
    return x1, y1, x2, y2, valid


@triton.jit
def share_in_region(
    share,  # of priors, so far
    prior,  # corners
    region,  # corners of object ``n``
    labels_ptr,  # (N,) int64
    n,
):
    """The larger of ``share`` and what lies in object ``n``, if that is a region to ignore: -1."""
    px1, py1, px2, py2 = prior
    x1, y1, x2, y2 = region
    if (tl.load(labels_ptr + n) == -1) & is_valid(x1, y1, x2, y2):
        share = tl.maximum(share, box_iof(px1, py1, px2, py2, x1, y1, x2, y2))
    return share
