# SPDX-License-Identifier: BSD-3-Clause
"""Triton kernels of ssd_fast::encode and ssd_fast::decode. Contract: ssd_fast/ops/decode.py.

One launch each. Rows of four numbers are read and written whole, 16 bytes at a time.
"""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_fast.boxes import four_variances
from ssd_fast.kernels.boxes import decode_box, encode_box
from ssd_fast.ops._arguments import LOGIT_DTYPES, describe

__all__ = ["launch_decode", "launch_encode"]

BLOCK_R = 256  # rows a program: two 16-byte rows a thread are in flight


@triton.jit
def load_row(
    rows_ptr,  # (n, 4), contiguous
    r,
    ok,
    BLOCK_R: tl.constexpr,
):
    """The four columns of rows ``r``, as float32."""
    pointers = rows_ptr + r[:, None] * 4 + tl.arange(0, 4)[None, :]
    rows = tl.load(pointers, ok[:, None], other=0.0).to(tl.float32)
    even, odd = tl.split(rows.reshape(BLOCK_R, 2, 2))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def store_row(
    rows_ptr,  # (n, 4) float32, contiguous
    r,
    ok,
    first,
    second,
    third,
    fourth,
    BLOCK_R: tl.constexpr,
):
    """Writes four columns to rows ``r``."""
    rows = tl.join(tl.join(first, third), tl.join(second, fourth)).reshape(BLOCK_R, 4)
    tl.store(rows_ptr + r[:, None] * 4 + tl.arange(0, 4)[None, :], rows, ok[:, None])


@triton.jit(do_not_specialize=["R"])
def _decode_kernel(
    deltas_ptr,  # (R, 4), contiguous; R is a multiple of P
    priors_ptr,  # (P, 4) float32, contiguous
    boxes_ptr,  # (R, 4) float32, out
    R,
    P,
    vx,
    vy,
    vw,
    vh,
    max_log_scale,
    BLOCK_R: tl.constexpr,
):
    """Boxes of one block of rows; row r belongs to prior r % P."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    ok = r < R
    delta = load_row(deltas_ptr, r, ok, BLOCK_R)
    prior = load_row(priors_ptr, r % P, ok, BLOCK_R)
    x1, y1, x2, y2 = decode_box(delta, prior, vx, vy, vw, vh, max_log_scale)
    store_row(boxes_ptr, r, ok, x1, y1, x2, y2, BLOCK_R)


@triton.jit(do_not_specialize=["R"])
def _encode_kernel(
    boxes_ptr,  # (R, 4), contiguous; R is a multiple of P
    priors_ptr,  # (P, 4) float32, contiguous
    offsets_ptr,  # (R, 4) float32, out
    R,
    P,
    vx,
    vy,
    vw,
    vh,
    BLOCK_R: tl.constexpr,
):
    """Offsets of one block of rows; row r belongs to prior r % P."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    ok = r < R
    box = load_row(boxes_ptr, r, ok, BLOCK_R)
    prior = load_row(priors_ptr, r % P, ok, BLOCK_R)
    dx, dy, dw, dh = encode_box(box, prior, vx, vy, vw, vh)
    store_row(offsets_ptr, r, ok, dx, dy, dw, dh, BLOCK_R)


def launch_decode(
    deltas: Tensor,
    priors: Tensor,
    variances: Sequence[float],
    max_log_scale: float | None,
    block: int = BLOCK_R,
) -> Tensor:
    """Decodes rows: one launch.

    Args:
        deltas: (..., P, 4) float32, float16 or bfloat16.
        priors: (P, 4) float32.
        variances: 2 or 4 numbers.
        max_log_scale: largest log-scale, None for no clamp.
        block: rows a program.

    Returns:
        (..., P, 4) float32.
    """
    _check("deltas", deltas, priors, LOGIT_DTYPES)
    limit = math.inf if max_log_scale is None else max_log_scale
    boxes = deltas.new_empty(deltas.shape, dtype=torch.float32)
    if boxes.numel() > 0:
        _decode_kernel[(triton.cdiv(boxes.numel() // 4, block),)](
            deltas.contiguous(),
            priors.contiguous(),
            boxes,
            boxes.numel() // 4,
            priors.size(0),
            *four_variances(variances),
            float(limit),
            BLOCK_R=block,
            enable_fp_fusion=False,
        )
    return boxes


def launch_encode(
    boxes: Tensor, priors: Tensor, variances: Sequence[float], block: int = BLOCK_R
) -> Tensor:
    """Encodes rows: one launch.

    Args:
        boxes: (..., P, 4) float32.
        priors: (P, 4) float32.
        variances: 2 or 4 numbers.
        block: rows a program.

    Returns:
        (..., P, 4) float32.
    """
    _check("boxes", boxes, priors, (torch.float32,))
    offsets = boxes.new_empty(boxes.shape)
    if offsets.numel() > 0:
        _encode_kernel[(triton.cdiv(offsets.numel() // 4, block),)](
            boxes.contiguous(),
            priors.contiguous(),
            offsets,
            offsets.numel() // 4,
            priors.size(0),
            *four_variances(variances),
            BLOCK_R=block,
            enable_fp_fusion=False,
        )
    return offsets


def _check(name: str, rows: Tensor, priors: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raises ValueError where the kernels would read out of bounds or misread."""
    if priors.dim() != 2 or priors.size(1) != 4 or priors.dtype != torch.float32:
        raise ValueError(f"priors: expected (P, 4) float32, got {describe(priors)}")
    if rows.dim() < 2 or rows.shape[-2:] != priors.shape or rows.dtype not in dtypes:
        raise ValueError(
            f"{name}: expected (..., {priors.size(0)}, 4) of {' or '.join(map(str, dtypes))}, "
            f"got {describe(rows)}"
        )
