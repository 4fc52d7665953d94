# SPDX-License-Identifier: BSD-3-Clause
"""multibox_loss: SSD's training loss and its gradient, from raw head outputs and ragged targets.

CPU csrc/cpu/multibox_loss.cpp   GPU kernels/multibox_loss.py
test tests/ops/test_multibox_loss.py   benchmark benchmarks/bench_multibox_loss.py
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssd_fast.assignment import HARD_NEGATIVE, match_batch, mine_batch, valid_objects
from ssd_fast.boxes import encode_boxes, four_variances
from ssd_fast.cross_entropy import background_key, cross_entropy, relative_exponentials
from ssd_fast.ops._arguments import (
    as_levels,
    check_choice,
    check_device,
    check_levels,
    check_number,
    check_targets,
)
from ssd_fast.ops._levels import join_levels, split_rows
from ssd_fast.ops._library import register

__all__ = ["multibox_loss", "multibox_loss_reference"]

ASSIGN = {"last": 0, "bipartite": 1, "none": 2}
NORMALIZER = {"positives": 0, "image": 1, "none": 2}


def multibox_loss(
    deltas: Tensor | Sequence[Tensor],
    logits: Tensor | Sequence[Tensor],
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    *,
    iou_threshold: float = 0.5,
    low_threshold: float | None = None,
    strict: bool = False,
    assign: str = "last",
    ratio: float = 3.0,
    min_negatives: int = 0,
    beta: float = 1.0,
    variances: Sequence[float] = (0.1, 0.2),
    background_index: int = 0,
    normalizer: str = "positives",
) -> tuple[Tensor, Tensor, Tensor]:
    """The MultiBox loss (SSD paper, section 2.2, equations 1 to 3), fused and differentiable.

    Matches priors to objects as `match` does, encodes the matched boxes, takes smooth-L1 over the
    positives and softmax cross-entropy over the positives and the hardest negatives, which are
    mined as `mine` does by the sum over c != background of ``exp(x_c - x_background)``: for a
    negative, its log1p is the cross-entropy. Arithmetic is float32 or better whatever the dtype
    of the inputs. Objects without positive finite area, or with a label outside [0, C) or equal
    to the background, match nothing.

    Args:
        deltas: (B, P, 4), or one map a level, (B, A * 4, H, W) in any memory format; float32,
            float16 or bfloat16. Row order is (level, y, x, anchor), channel ``a * 4 + k``.
        logits: (B, P, C), or one map a level, (B, A * C, H, W); float32, float16 or bfloat16.
        priors: (P, 4) float32 corners.
        boxes: (N, 4) float32 corners of the objects of all images, in the unit of the priors.
        labels: (N,) int64 classes.
        offsets: (B + 1,) int64; image i owns rows ``offsets[i]:offsets[i + 1]``.
        iou_threshold: see `match`.
        low_threshold: see `match`; ignored priors are neither positive nor mined.
        strict: see `match`.
        assign: see `match`.
        ratio: negatives for each positive of an image, see `mine`.
        min_negatives: least number of negatives of an image; above 0, images without objects
            train.
        beta: where smooth-L1 turns from square to linear; 0 is L1.
        variances: 2 or 4 numbers that scale the encoded offsets.
        background_index: class index of the background, 0 in SSD.
        normalizer: what the sums are divided by. "positives": the positives of the batch, at
            least 1 (torchvision). "image": each image by its own positives, at least 1, then the
            mean over the batch (NVIDIA). "none": plain sums.

    Returns:
        box_loss () float32, class_loss () float32 and num_positives (B,) int64. Without any
        selected row the losses and their gradients are zero. A NaN or infinite logit in a
        selected row gives a loss that is not finite.

    Raises:
        ValueError: for arguments of a wrong shape, dtype, device or range.
    """
    delta_levels, logit_levels = as_levels(deltas), as_levels(logits)
    batch, _ = check_levels(delta_levels, logit_levels, priors, background_index)
    check_targets(boxes, offsets, labels, batch)
    check_device(priors=priors, boxes=boxes, labels=labels, offsets=offsets)
    check_number("iou_threshold", iou_threshold, low=0)
    if low_threshold is not None:
        check_number("low_threshold", low_threshold, low=0, high=iou_threshold)
    check_number("ratio", ratio, low=0, high=torch.finfo(torch.float32).max)
    check_number("min_negatives", min_negatives, low=0)
    check_number("beta", beta, low=0)
    options = (
        iou_threshold,
        low_threshold,
        strict,
        check_choice("assign", assign, ASSIGN),
        ratio,
        min_negatives,
        beta,
        four_variances(variances),
        background_index,
        check_choice("normalizer", normalizer, NORMALIZER),
    )
    box_loss, class_loss, num_positives, _ = _MultiBoxLoss.apply(
        options, len(delta_levels), priors, boxes, labels, offsets, *delta_levels, *logit_levels
    )
    return box_loss, class_loss, num_positives


class _MultiBoxLoss(torch.autograd.Function):
    """Ties the operator to its backward; levels are spelled out because autograd sees no lists."""

    @staticmethod
    def forward(
        options: tuple[Any, ...], levels: int, *tensors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.ssd_fast.multibox_loss.default(
            tensors[4 : 4 + levels], tensors[4 + levels :], *tensors[:4], *options
        )
        return result

    # Looked up at every call; without it `inspect` would work it out anew.
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        options, levels, *tensors = inputs
        _, _, num_positives, code = output
        ctx.mark_non_differentiable(num_positives, code)
        # Or backward would be given zeros for them, as large as they are.
        ctx.set_materialize_grads(False)
        ctx.levels = levels
        ctx.options = options[6:]  # beta, variances, background_index, normalizer
        ctx.save_for_backward(*tensors, code, num_positives)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_box: Tensor | None, grad_class: Tensor | None, *_: Any
    ) -> tuple[Any, ...]:
        priors, boxes, labels, offsets, *maps, code, num_positives = ctx.saved_tensors
        grad_deltas, grad_logits = torch.ops.ssd_fast.multibox_loss_backward.default(
            priors.new_zeros(()) if grad_box is None else grad_box,
            priors.new_zeros(()) if grad_class is None else grad_class,
            maps[: ctx.levels],
            maps[ctx.levels :],
            priors,
            boxes,
            labels,
            offsets,
            code,
            num_positives,
            *ctx.options,
        )
        return (*(None,) * 6, *grad_deltas, *grad_logits)


def multibox_loss_reference(
    deltas: Tensor | Sequence[Tensor],
    logits: Tensor | Sequence[Tensor],
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    *,
    iou_threshold: float = 0.5,
    low_threshold: float | None = None,
    strict: bool = False,
    assign: str = "last",
    ratio: float = 3.0,
    min_negatives: int = 0,
    beta: float = 1.0,
    variances: Sequence[float] = (0.1, 0.2),
    background_index: int = 0,
    normalizer: str = "positives",
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition of `multibox_loss`, in plain PyTorch under autograd; takes float64 too."""
    box_loss, class_loss, num_positives, _ = _forward_reference(
        as_levels(deltas),
        as_levels(logits),
        priors,
        boxes,
        labels,
        offsets,
        iou_threshold,
        low_threshold,
        strict,
        check_choice("assign", assign, ASSIGN),
        ratio,
        min_negatives,
        beta,
        variances,
        background_index,
        check_choice("normalizer", normalizer, NORMALIZER),
    )
    return box_loss, class_loss, num_positives


def _forward_reference(
    deltas: list[Tensor],
    logits: list[Tensor],
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    iou_threshold: float,
    low_threshold: float | None,
    strict: bool,
    assign: int,
    ratio: float,
    min_negatives: int,
    beta: float,
    variances: Sequence[float],
    background_index: int,
    normalizer: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    delta_rows, logit_rows = join_levels(deltas, logits)
    in_range = (labels >= 0) & (labels < logit_rows.size(2)) & (labels != background_index)
    matched = match_batch(
        priors,
        boxes,
        offsets,
        valid_objects(boxes) & in_range,
        iou_threshold=iou_threshold,
        low_threshold=low_threshold,
        strict=strict,
        assign=list(ASSIGN)[assign],
    )
    key = background_key(logit_rows.detach(), background_index)
    hard = mine_batch(key, matched, ratio=ratio, min_negatives=min_negatives)
    code = matched.masked_fill(hard, HARD_NEGATIVE)

    num_positives = (code >= 0).sum(dim=1)
    weight = _image_weights(num_positives, normalizer)
    image, residual = _box_residuals(delta_rows, priors, boxes, offsets, code, variances)
    box_rows = torch.nn.functional.smooth_l1_loss(
        residual, torch.zeros_like(residual), reduction="none", beta=beta
    ).sum(dim=1)
    box_loss = (box_rows * weight.to(box_rows.dtype)[image]).sum()
    selected, target = _class_targets(code, offsets, labels, background_index)
    class_rows = cross_entropy(logit_rows[selected], target)
    class_weight = weight.to(class_rows.dtype)[selected.nonzero()[:, 0]]
    return box_loss, (class_rows * class_weight).sum(), num_positives, code


def _backward_reference(
    grad_box_loss: Tensor,
    grad_class_loss: Tensor,
    deltas: list[Tensor],
    logits: list[Tensor],
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    code: Tensor,
    num_positives: Tensor,
    beta: float,
    variances: Sequence[float],
    background_index: int,
    normalizer: int,
) -> tuple[list[Tensor], list[Tensor]]:
    delta_rows, logit_rows = join_levels(deltas, logits)
    weight = _image_weights(num_positives, normalizer).to(logit_rows.dtype)
    image, residual = _box_residuals(delta_rows, priors, boxes, offsets, code, variances)
    slope = (residual / beta).clamp(-1, 1) if beta > 0 else residual.sign()
    grad_deltas = torch.zeros_like(delta_rows)
    grad_deltas[code >= 0] = slope * (grad_box_loss * weight[image]).unsqueeze(1)

    selected, target = _class_targets(code, offsets, labels, background_index)
    ratios, shift = relative_exponentials(logit_rows[selected], target)
    others = ratios.sum(dim=1, keepdim=True)
    total = others + (-shift).exp()
    # softmax - one_hot, with the target's entry taken from the others: 1 - p would cancel.
    slope = (ratios / total).scatter(1, target.unsqueeze(1), -others / total)
    grad_logits = torch.zeros_like(logit_rows)
    class_weight = weight[selected.nonzero()[:, 0]]
    grad_logits[selected] = slope * (grad_class_loss * class_weight).unsqueeze(1)
    return split_rows(grad_deltas, deltas), split_rows(grad_logits, logits)


def _image_weights(num_positives: Tensor, normalizer: int) -> Tensor:
    """What the rows of each image are multiplied by, (B,) float64."""
    counts = num_positives.double()
    if normalizer == NORMALIZER["positives"]:
        return counts.sum().clamp(min=1).reciprocal().expand_as(counts)
    if normalizer == NORMALIZER["image"]:
        return (counts.clamp(min=1) * max(counts.numel(), 1)).reciprocal()
    return torch.ones_like(counts)


def _box_residuals(
    deltas: Tensor,
    priors: Tensor,
    boxes: Tensor,
    offsets: Tensor,
    code: Tensor,
    variances: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Image (n,) and difference to the encoded box (n, 4) of each positive."""
    image, prior, row = _positive_rows(code, offsets)
    return image, deltas[image, prior] - encode_boxes(boxes[row], priors[prior], variances)


def _positive_rows(code: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Image, prior and row of ``boxes`` of each positive."""
    image, prior = (code >= 0).nonzero(as_tuple=True)
    return image, prior, offsets.clamp(min=0)[image] + code[image, prior]


def _class_targets(
    code: Tensor, offsets: Tensor, labels: Tensor, background_index: int
) -> tuple[Tensor, Tensor]:
    """Which rows enter the class loss, (B, P) bool, and the class each of them should have."""
    image, prior, row = _positive_rows(code, offsets)
    target = torch.full_like(code, background_index, dtype=torch.int64)
    target[image, prior] = labels[row]
    selected = (code >= 0) | (code == HARD_NEGATIVE)
    return selected, target[selected]


def _fake(
    deltas: list[Tensor],
    logits: list[Tensor],
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = deltas[0].size(0)
    return (
        priors.new_empty(()),
        priors.new_empty(()),
        priors.new_empty((batch,), dtype=torch.int64),
        priors.new_empty((batch, priors.size(0)), dtype=torch.int32),
    )


def _backward_fake(
    grad_box_loss: Tensor,
    grad_class_loss: Tensor,
    deltas: list[Tensor],
    logits: list[Tensor],
    *rest: Any,
) -> tuple[list[Tensor], list[Tensor]]:
    return [torch.empty_like(x) for x in deltas], [torch.empty_like(x) for x in logits]


register(
    "multibox_loss",
    "(Tensor[] deltas, Tensor[] logits, Tensor priors, Tensor boxes, Tensor labels, "
    "Tensor offsets, float iou_threshold, float? low_threshold, bool strict, int assign, "
    "float ratio, int min_negatives, float beta, float[] variances, int background_index, "
    "int normalizer) -> (Tensor box_loss, Tensor class_loss, Tensor num_positives, Tensor code)",
    reference=_forward_reference,
    fake=_fake,
    cuda="multibox_loss.launch_multibox_loss",
)
register(
    "multibox_loss_backward",
    "(Tensor grad_box_loss, Tensor grad_class_loss, Tensor[] deltas, Tensor[] logits, "
    "Tensor priors, Tensor boxes, Tensor labels, Tensor offsets, Tensor code, "
    "Tensor num_positives, float beta, float[] variances, int background_index, "
    "int normalizer) -> (Tensor[] grad_deltas, Tensor[] grad_logits)",
    reference=_backward_reference,
    fake=_backward_fake,
    cuda="multibox_loss_backward.launch_multibox_loss_backward",
)
