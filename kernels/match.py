# SPDX-License-Identifier: BSD-3-Clause
"""Triton kernels of ssd_fast::match. Contract: ssd_fast/ops/match.py.

Object by object, then prior by prior: the overlaps are computed twice and stored never, there is no
atomic and nothing to clear, and each prior reads its objects' claims in order. The losses ask
for regions to ignore besides, with labels of -1.
"""

import ctypes
import math
import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_fast.kernels.boxes import box_iou, load_box
from ssd_fast.kernels.objects import image_rows, is_object, share_in_region

__all__ = ["LAST", "NONE", "launch_match", "round_to_float32"]

LAST, BIPARTITE, NONE = 0, 1, 2

# A claim packs IoU and prior so that the largest is the best: the IoU's bits, then the lowest
# prior. 0 is no claim.
SPLITS = 8  # programs an object: a few objects still fill the device
BLOCK_B = 128
BLOCK_N = 64
BIPARTITE_REGISTERS = 128  # named, or ptxas spills some to fit more programs than there are


@triton.jit
def pack_claim(iou, prior):
    """Orders claims by IoU, then by the lowest prior; 0 where there is no overlap."""
    key = (iou.to(tl.int32, bitcast=True).to(tl.int64) << 31) | (0x7FFFFFFF - prior.to(tl.int64))
    return tl.where(iou > 0, key, 0)


@triton.jit
def claimed_prior(key):
    """The prior of a claim; beyond every prior for no claim."""
    return 0x7FFFFFFF - (key & 0x7FFFFFFF)


@triton.jit
def best_claim(
    priors_ptr,  # (P, 4) float32
    taken_ptr,  # (P,) int32, not 0 where a prior is taken; None: all are free
    x1,
    y1,
    x2,
    y2,
    begin,
    end,
    BLOCK_P: tl.constexpr,
):
    """The best claim of one object on the priors from ``begin`` to ``end``."""
    best = tl.zeros((BLOCK_P,), tl.int64)
    while begin < end:
        p = begin + tl.arange(0, BLOCK_P)
        free = p < end
        if taken_ptr is not None:
            free = free & (tl.load(taken_ptr + p, free, other=1) == 0)
        px1, py1, px2, py2 = load_box(priors_ptr, p, free)
        key = pack_claim(box_iou(px1, py1, px2, py2, x1, y1, x2, y2), p)
        best = tl.maximum(best, tl.where(free, key, 0))
        begin += BLOCK_P
    return tl.max(best, axis=0)


@triton.jit(do_not_specialize=["B", "C", "background"])
def _claim_kernel(
    priors_ptr,  # (P, 4) float32, contiguous
    boxes_ptr,  # (N, 4) float32, contiguous
    labels_ptr,  # (N,) int64, contiguous, or None
    offsets_ptr,  # (B + 1,) int64, contiguous
    claims_ptr,  # (N, SPLITS) int64, out
    P,
    B,
    C,
    background,
    SPLITS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Each object's best prior within one of SPLITS parts of the priors."""
    n = tl.program_id(0) // SPLITS
    split = tl.program_id(0) % SPLITS
    used = tl.full((BLOCK_B,), 0, tl.int64)
    first = B * 0
    while first <= B:
        b = first + tl.arange(0, BLOCK_B)
        used = tl.maximum(used, tl.load(offsets_ptr + b, b <= B, other=0))
        first += BLOCK_B
    # Rows of the capacity that no image owns cost nothing.
    if n < tl.max(used, axis=0):
        x1, y1, x2, y2, valid = is_object(boxes_ptr, labels_ptr, n, C, background)
        part = tl.cdiv(P, SPLITS)
        begin = split * part
        end = tl.where(valid, tl.minimum(begin + part, P), begin)
        claim = best_claim(priors_ptr, None, x1, y1, x2, y2, begin, end, BLOCK_P)
        tl.store(claims_ptr + n.to(tl.int64) * SPLITS + split, claim)


@triton.jit(do_not_specialize=["N"])
def _bipartite_kernel(
    priors_ptr,  # (P, 4) float32, contiguous
    boxes_ptr,  # (N, 4) float32, contiguous
    offsets_ptr,  # (B + 1,) int64, contiguous
    claims_ptr,  # (N, SPLITS) int64, in and out: at most one claim an object, on a prior of its own
    taken_ptr,  # (B, P) int32, scratch
    P,
    N,
    SPLITS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Gives the objects of one image priors of their own, greedily by the globally best pair.

    A claim on a prior that was taken since still bounds what its object can get, so only the best
    claim of all is looked at: it is granted, or its object searches the free priors again.
    """
    image = tl.program_id(0)
    taken_ptr += image.to(tl.int64) * P
    begin, end = image_rows(offsets_ptr, image, N)
    s = tl.arange(0, SPLITS)
    p0 = P * 0
    while p0 < P:
        p = p0 + tl.arange(0, BLOCK_P)
        tl.store(taken_ptr + p, tl.zeros((BLOCK_P,), tl.int32), p < P)
        p0 += BLOCK_P
    tl.debug_barrier()

    searching = begin < end
    while searching:
        best = tl.full((), 0, tl.int64)
        winner = begin
        first = begin
        while first < end:
            n = first + tl.arange(0, BLOCK_N)
            ok = (n < end)[:, None]
            keys = tl.max(tl.load(claims_ptr + n[:, None] * SPLITS + s[None, :], ok, other=0), 1)
            block_best = tl.max(keys, axis=0)
            lowest = tl.min(tl.where(keys == block_best, n, N), axis=0)
            better = block_best > best
            winner = tl.where(better, lowest, winner)
            best = tl.where(better, block_best, best)
            first += BLOCK_N
        searching = best > 0
        if searching:
            prior = claimed_prior(best)
            granted = -best  # negative, so that it is not looked at again
            free = tl.load(taken_ptr + prior) == 0
            tl.debug_barrier()  # every warp reads it, before one writes: all take the same branch
            if free:
                tl.store(taken_ptr + prior, 1)
            else:
                x1, y1, x2, y2 = load_box(boxes_ptr, winner, None)
                granted = best_claim(priors_ptr, taken_ptr, x1, y1, x2, y2, image * 0, P, BLOCK_P)
            tl.store(claims_ptr + winner * SPLITS + s, tl.where(s == 0, granted, 0))
        tl.debug_barrier()

    while begin < end:
        n = begin + tl.arange(0, BLOCK_N)
        granted = tl.load(claims_ptr + n * SPLITS, n < end, other=0)
        tl.store(claims_ptr + n * SPLITS, -granted, n < end)
        begin += BLOCK_N


@triton.jit(do_not_specialize=["N", "C", "background"])
def _match_kernel(
    priors_ptr,  # (P, 4) float32, contiguous
    boxes_ptr,  # (N, 4) float32, contiguous
    labels_ptr,  # (N,) int64, contiguous, or None
    offsets_ptr,  # (B + 1,) int64, contiguous
    claims_ptr,  # (N, SPLITS) int64, or None: objects claim nothing
    matched_ptr,  # (B, P) int32, out
    P,
    N,
    C,
    background,
    threshold,  # least IoU of a match
    low_threshold,  # least IoU of an ignored prior, +inf for none
    ignore_threshold,  # least share of a prior inside a region to ignore, None: there are none
    SPLITS: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """The object of each prior of one block of one image."""
    blocks = tl.cdiv(P, BLOCK_P)
    image = tl.program_id(0) // blocks
    p = (tl.program_id(0) % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    p_ok = p < P
    px1, py1, px2, py2 = load_box(priors_ptr, p, p_ok)
    best = tl.full((BLOCK_P,), -1.0, tl.float32)
    best_object = tl.full((BLOCK_P,), -1, tl.int32)
    claimant = tl.full((BLOCK_P,), -1, tl.int32)
    if ignore_threshold is not None:
        inside = tl.full((BLOCK_P,), -1.0, tl.float32)
    begin, end = image_rows(offsets_ptr, image, N)
    n = begin
    while n < end:
        x1, y1, x2, y2, valid = is_object(boxes_ptr, labels_ptr, n, C, background)
        index = (n - begin).to(tl.int32)
        if valid:
            iou = box_iou(px1, py1, px2, py2, x1, y1, x2, y2)
            better = iou > best  # strict: the first of equal objects stays
            best = tl.where(better, iou, best)
            best_object = tl.where(better, index, best_object)
        if claims_ptr is not None:
            # Of several objects that claim one prior the last wins. No claim is on no prior.
            claim = tl.max(tl.load(claims_ptr + n * SPLITS + tl.arange(0, SPLITS)), axis=0)
            claimant = tl.where(p == claimed_prior(claim), index, claimant)
        if ignore_threshold is not None:
            region = x1, y1, x2, y2
            inside = share_in_region(inside, (px1, py1, px2, py2), region, labels_ptr, n)
        n += 1
    matched = tl.where(best >= low_threshold, -2, -1)
    matched = tl.where(best >= threshold, best_object, matched)
    matched = tl.where(claimant >= 0, claimant, matched)
    if ignore_threshold is not None:
        matched = tl.where((matched == -1) & (inside >= ignore_threshold), -2, matched)
    tl.store(matched_ptr + image.to(tl.int64) * P + p, matched, p_ok)


def launch_match(
    priors: Tensor,
    boxes: Tensor,
    offsets: Tensor,
    iou_threshold: float,
    low_threshold: float | None,
    strict: bool,
    assign: int,
    labels: Tensor | None = None,
    classes: int = 0,
    background: int = 0,
    ignore_threshold: float | None = None,
    block: int = 256,
) -> Tensor:
    """Matches the priors of each image: two launches, three for bipartite claims.

    Args:
        priors: (P, 4) float32.
        boxes: (N, 4) float32.
        offsets: (B + 1,) int64.
        iou_threshold: least IoU of a match.
        low_threshold: least IoU of an ignored prior.
        strict: a match needs more than the threshold.
        assign: LAST, BIPARTITE or NONE.
        labels: (N,) int64; objects with labels outside [0, classes), or ``background``, match
            nothing. None: labels do not matter.
        classes: C.
        background: class index of the background.
        ignore_threshold: least share of a background prior inside one region (an object of
            label -1) at which it is ignored. None: there are no regions.
        block: priors a program.

    Returns:
        (B, P) int32.
    """
    priors, boxes, offsets = priors.contiguous(), boxes.contiguous(), offsets.contiguous()
    labels = None if labels is None else labels.contiguous()
    P, N, B = priors.size(0), boxes.size(0), offsets.size(0) - 1
    matched = priors.new_empty((B, P), dtype=torch.int32)
    if B == 0 or P == 0:
        return matched
    claims = None
    if assign != NONE and N > 0:
        claims = priors.new_empty((N, SPLITS), dtype=torch.int64)
        _claim_kernel[(N * SPLITS,)](
            priors,
            boxes,
            labels,
            offsets,
            claims,
            P,
            B,
            classes,
            background,
            SPLITS=SPLITS,
            BLOCK_P=block,
            BLOCK_B=BLOCK_B,
            enable_fp_fusion=False,
        )
        if assign == BIPARTITE:
            _bipartite_kernel[(B,)](
                priors,
                boxes,
                offsets,
                claims,
                matched,
                P,
                N,
                SPLITS=SPLITS,
                BLOCK_P=4 * block,
                BLOCK_N=BLOCK_N,
                enable_fp_fusion=False,
                num_warps=8,
                maxnreg=BIPARTITE_REGISTERS,
            )
    threshold = round_to_float32(iou_threshold)
    _match_kernel[(B * triton.cdiv(P, block),)](
        priors,
        boxes,
        labels,
        offsets,
        claims,
        matched,
        P,
        N,
        classes,
        background,
        _next_float32(threshold) if strict else threshold,
        math.inf if low_threshold is None else round_to_float32(low_threshold),
        None if ignore_threshold is None or labels is None else round_to_float32(ignore_threshold),
        SPLITS=SPLITS,
        BLOCK_P=block,
        enable_fp_fusion=False,
    )
    return matched


def round_to_float32(value: float) -> float:
    """The nearest float32; thresholds are compared in the precision of the boxes."""
    return ctypes.c_float(value).value


def _next_float32(value: float) -> float:
    """The next float32 above one that is not negative: ``x > t`` is ``x >= next(t)``."""
    if math.isinf(value):
        return value
    (bits,) = struct.unpack("I", struct.pack("f", value))
    (above,) = struct.unpack("f", struct.pack("I", bits + 1))
    return float(above)
