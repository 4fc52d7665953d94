# SPDX-License-Identifier: BSD-3-Clause
"""encode and decode: from boxes to the offsets that a head learns, and back.

CPU csrc/cpu/decode.cpp   GPU kernels/decode.py   definitions ssd_fast/boxes.py
test tests/ops/test_decode.py   benchmark benchmarks/bench_decode.py
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from ssd_fast.boxes import MAX_LOG_SCALE, decode_boxes, encode_boxes, four_variances
from ssd_fast.ops._arguments import LOGIT_DTYPES, check_device, check_max_log_scale, describe
from ssd_fast.ops._library import register

__all__ = ["decode", "decode_reference", "encode", "encode_reference"]


def encode(boxes: Tensor, priors: Tensor, variances: Sequence[float] = (0.1, 0.2)) -> Tensor:
    """Offsets that lead from priors to boxes, what an SSD head learns.

    ``((center - prior_center) / prior_size / variance, log(size / prior_size) / variance)`` for x
    and y (SSD paper, section 2.2, with Caffe's variances; torchvision's ``BoxCoder`` with weights
    1 / variance). Differentiable, also twice. A box without area gives -inf or NaN.

    Args:
        boxes: (..., P, 4) corners; float16 and bfloat16 are raised to float32.
        priors: (P, 4) float32 corners in the unit of ``boxes``; more leading dimensions broadcast.
        variances: 2 numbers (center, size) or 4 (x, y, w, h).

    Returns:
        (..., P, 4) float32 offsets ``(x, y, w, h)``.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
    """
    _check("boxes", boxes, priors)
    four = four_variances(variances)
    rows, priors, shape = _as_rows("boxes", boxes.float(), priors)
    apply = _apply_encode if _is_traced(rows, priors) else _encode
    offsets: Tensor = apply(rows, priors, four)
    return offsets if shape is None else offsets.reshape(shape)


def decode(
    deltas: Tensor,
    priors: Tensor,
    variances: Sequence[float] = (0.1, 0.2),
    max_log_scale: float | None = MAX_LOG_SCALE,
) -> Tensor:
    """Boxes that a head's offsets lead to from the priors: the inverse of `encode`.

    Differentiable, also twice; gradients have the dtype of ``deltas``, and none passes a clamped
    size. Boxes are not clipped.

    Args:
        deltas: (..., P, 4) float32, float16 or bfloat16 offsets ``(x, y, w, h)``.
        priors: (P, 4) float32 corners; more leading dimensions broadcast.
        variances: 2 numbers (center, size) or 4 (x, y, w, h).
        max_log_scale: largest ``offset * variance`` of a size before the exponential
            (torchvision's ``bbox_xform_clip``: log(1000 / 16)), None for no clamp.

    Returns:
        (..., P, 4) float32 corners in the unit of ``priors``.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
    """
    _check("deltas", deltas, priors)
    four = four_variances(variances)
    check_max_log_scale(max_log_scale)
    rows, priors, shape = _as_rows("deltas", deltas, priors)
    apply = _apply_decode if _is_traced(rows, priors) else _decode
    boxes: Tensor = apply(rows, priors, four, max_log_scale)
    return boxes if shape is None else boxes.reshape(shape)


def encode_reference(
    boxes: Tensor, priors: Tensor, variances: Sequence[float] = (0.1, 0.2)
) -> Tensor:
    """The definition of `encode`, in plain PyTorch; float64 too."""
    return encode_boxes(boxes, priors, variances)


def decode_reference(
    deltas: Tensor,
    priors: Tensor,
    variances: Sequence[float] = (0.1, 0.2),
    max_log_scale: float | None = MAX_LOG_SCALE,
) -> Tensor:
    """The definition of `decode`, in plain PyTorch; float64 too."""
    return decode_boxes(deltas.to(priors.dtype), priors, variances, max_log_scale)


def encode_backward(
    grad: Tensor, boxes: Tensor, priors: Tensor, variances: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Gradients of `encode` with respect to boxes and priors, both (..., P, 4)."""
    four = four_variances(variances)
    d_boxes: list[Tensor] = []
    d_priors: list[Tensor] = []
    for i in range(2):  # x, y
        low, high = boxes[..., i], boxes[..., i + 2]
        prior_low, prior_high = priors[..., i], priors[..., i + 2]
        size, prior_size = high - low, prior_high - prior_low
        offset = (low + high) * 0.5 - (prior_low + prior_high) * 0.5
        d_center = grad[..., i] / (prior_size * four[i])
        d_log = grad[..., i + 2] / four[i + 2]
        d_boxes += _corner_gradients(d_center, d_log / size)
        d_priors += _corner_gradients(-d_center, -(d_center * offset + d_log) / prior_size)
    return _stack_corners(d_boxes), _stack_corners(d_priors)


def decode_backward(
    grad: Tensor,
    deltas: Tensor,
    priors: Tensor,
    variances: Sequence[float],
    max_log_scale: float | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of `decode` with respect to deltas and priors, both (..., P, 4)."""
    four = four_variances(variances)
    d_offsets: list[Tensor] = []
    d_logs: list[Tensor] = []
    d_priors: list[Tensor] = []
    for i in range(2):  # x, y
        d_low, d_high = grad[..., i], grad[..., i + 2]
        prior_size = priors[..., i + 2] - priors[..., i]
        log = deltas[..., i + 2] * four[i + 2]
        d_center, d_half = d_low + d_high, d_high - d_low
        clamped = log if max_log_scale is None else log.clamp(max=max_log_scale)
        scale = clamped.exp()
        d_log = d_half * scale * prior_size * (0.5 * four[i + 2])
        if max_log_scale is not None:  # as torch.clamp: none where it clamps
            d_log = torch.where(log <= max_log_scale, d_log, torch.zeros_like(d_log))
        d_offsets.append(d_center * prior_size * four[i])
        d_logs.append(d_log)
        d_size = d_center * (deltas[..., i] * four[i]) + d_half * scale * 0.5
        d_priors += _corner_gradients(d_center, d_size)
    return torch.stack((*d_offsets, *d_logs), dim=-1), _stack_corners(d_priors)


class _Encode(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        boxes: Tensor, priors: Tensor, variances: tuple[float, float, float, float]
    ) -> Tensor:
        offsets: Tensor = _encode(boxes, priors, variances)
        return offsets

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        boxes, priors, ctx.variances = inputs
        ctx.save_for_backward(boxes, priors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        boxes, priors = ctx.saved_tensors
        d_boxes, d_priors = encode_backward(grads[0], boxes, priors, ctx.variances)
        return d_boxes, _sum_leading(d_priors), None


class _Decode(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        deltas: Tensor,
        priors: Tensor,
        variances: tuple[float, float, float, float],
        max_log_scale: float | None,
    ) -> Tensor:
        boxes: Tensor = _decode(deltas, priors, variances, max_log_scale)
        return boxes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        deltas, priors, ctx.variances, ctx.max_log_scale = inputs
        ctx.save_for_backward(deltas, priors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        deltas, priors = ctx.saved_tensors
        d_deltas, d_priors = decode_backward(
            grads[0], deltas.to(priors.dtype), priors, ctx.variances, ctx.max_log_scale
        )
        return d_deltas.to(deltas.dtype), _sum_leading(d_priors), None, None


# Typed names: `apply` has no annotations before torch 2.15.
_apply_encode: Callable[..., Tensor] = _Encode.apply
_apply_decode: Callable[..., Tensor] = _Decode.apply


def _is_traced(rows: Tensor, priors: Tensor) -> bool:
    """Whether autograd, a transform or torch.compile has to see a node; it takes as long as a call.

    Forward-mode differentiation ends in the node's error.
    """
    if torch.is_grad_enabled() and (rows.requires_grad or priors.requires_grad):
        return True
    transformed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    return transformed or is_compiling()


def _corner_gradients(d_center: Tensor, d_size: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the low and the high corner from those of center and size."""
    return d_center * 0.5 - d_size, d_center * 0.5 + d_size


def _stack_corners(columns: list[Tensor]) -> Tensor:
    """(x1, x2, y1, y2) columns as (..., 4) corners."""
    x1, x2, y1, y2 = columns
    return torch.stack((x1, y1, x2, y2), dim=-1)


def _sum_leading(grad: Tensor) -> Tensor:
    """Sums (..., P, 4) over what (P, 4) was broadcast along."""
    return grad.sum(dim=tuple(range(grad.dim() - 2))) if grad.dim() > 2 else grad


def _as_rows(name: str, rows: Tensor, priors: Tensor) -> tuple[Tensor, Tensor, torch.Size | None]:
    """Brings rows and priors to the operators' (..., P, 4) and (P, 4).

    Returns:
        rows, priors, and the shape of the result where it differs from that of the rows.
    """
    if priors.dim() == 2 and rows.dim() >= 2 and rows.shape[-2:] == priors.shape:
        return rows, priors, None
    try:
        shape = torch.broadcast_shapes(rows.shape, priors.shape)
    except RuntimeError as error:
        raise ValueError(
            f"{name}: expected (..., P, 4) with a row for each of the priors "
            f"{tuple(priors.shape)}, got {describe(rows)}"
        ) from error
    return rows.expand(shape).reshape(-1, 4), priors.expand(shape).reshape(-1, 4), shape


def _check(name: str, rows: Tensor, priors: Tensor) -> None:
    for argument, tensor in ((name, rows), ("priors", priors)):
        if not isinstance(tensor, Tensor) or tensor.dim() < 1 or tensor.size(-1) != 4:
            raise ValueError(f"{argument}: expected (..., 4), got {describe(tensor)}")
    if rows.dtype not in LOGIT_DTYPES:
        raise ValueError(
            f"{name}: expected float32, float16 or bfloat16, got {describe(rows)}; convert with "
            f"{name}.float(), or compute in float64 with the reference function of this operator"
        )
    if priors.dtype != torch.float32:
        raise ValueError(
            f"priors: expected float32, got {describe(priors)}; convert with priors.float()"
        )
    check_device(priors=priors, **{name: rows})


_encode = register(
    "encode",
    "(Tensor boxes, Tensor priors, float[] variances) -> Tensor",
    reference=encode_reference,
    fake=lambda boxes, priors, variances: boxes.new_empty(boxes.shape),
    cuda="decode.launch_encode",
)
_decode = register(
    "decode",
    "(Tensor deltas, Tensor priors, float[] variances, float? max_log_scale) -> Tensor",
    reference=decode_reference,
    fake=lambda deltas, priors, variances, max_log_scale: deltas.new_empty(
        deltas.shape, dtype=torch.float32
    ),
    cuda="decode.launch_decode",
)
