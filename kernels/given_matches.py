# SPDX-License-Identifier: BSD-3-Clause
"""Triton kernel that takes over matches made elsewhere, for the losses that accept them.

Contract: checked_matches and ignore_regions in ssd_fast/assignment.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_fast.kernels.boxes import load_box
from ssd_fast.kernels.match import round_to_float32
from ssd_fast.kernels.objects import image_rows, is_class, is_valid, share_in_region

__all__ = ["launch_given_matches"]


@triton.jit(do_not_specialize=["N", "C", "background"])
def _given_matches_kernel(
    matches_ptr,  # (B, P) int32 or int64, contiguous
    priors_ptr,  # (P, 4) float32, contiguous
    boxes_ptr,  # (N, 4) float32, contiguous
    labels_ptr,  # (N,) int64, contiguous
    offsets_ptr,  # (B + 1,) int64, contiguous
    matched_ptr,  # (B, P) int32, out
    P,
    N,
    C,
    background,
    ignore_threshold,  # least share of a prior inside a region to ignore, None: there are none
    BLOCK_P: tl.constexpr,
):
    """Matches made elsewhere: what fits no valid object of its image is ignored."""
    blocks = tl.cdiv(P, BLOCK_P)
    image = tl.program_id(0) // blocks
    p = (tl.program_id(0) % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    p_ok = p < P
    begin, end = image_rows(offsets_ptr, image, N)
    row = image.to(tl.int64) * P
    match = tl.load(matches_ptr + row + p, p_ok, other=-2).to(tl.int64)
    n = begin + match
    fits = (match >= 0) & (match < end - begin)
    x1, y1, x2, y2 = load_box(boxes_ptr, n, fits)
    label = tl.load(labels_ptr + n, fits, other=background)
    fits = fits & is_valid(x1, y1, x2, y2) & is_class(label, C, background)
    matched = tl.where(fits | (match == -1), match, -2).to(tl.int32)
    if ignore_threshold is not None:
        prior = load_box(priors_ptr, p, p_ok)
        inside = tl.full((BLOCK_P,), -1.0, tl.float32)
        while begin < end:
            region = load_box(boxes_ptr, begin, None)
            inside = share_in_region(inside, prior, region, labels_ptr, begin)
            begin += 1
        matched = tl.where((matched == -1) & (inside >= ignore_threshold), -2, matched)
    tl.store(matched_ptr + row + p, matched, p_ok)


def launch_given_matches(
    matches: Tensor,
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    classes: int,
    background: int,
    ignore_threshold: float | None,
    block: int = 256,
) -> Tensor:
    """Takes over matches made elsewhere, as far as they fit the objects: one launch.

    Args:
        matches: (B, P) int32 or int64.
        priors: (P, 4) float32.
        boxes: (N, 4) float32.
        labels: (N,) int64.
        offsets: (B + 1,) int64.
        classes: C.
        background: class index of the background.
        ignore_threshold: see `launch_match`.
        block: priors a program.

    Returns:
        (B, P) int32.
    """
    B, P = matches.shape
    matched = priors.new_empty((B, P), dtype=torch.int32)
    _given_matches_kernel[(B * triton.cdiv(P, block),)](
        matches.contiguous(),
        priors.contiguous(),
        boxes.contiguous(),
        labels.contiguous(),
        offsets.contiguous(),
        matched,
        P,
        boxes.size(0),
        classes,
        background,
        None if ignore_threshold is None else round_to_float32(ignore_threshold),
        BLOCK_P=block,
        enable_fp_fusion=False,
    )
    return matched
