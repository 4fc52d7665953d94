# SPDX-License-Identifier: BSD-3-Clause
"""The definition of the MultiBox loss, which the operators that end in it share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ssd_fast.assignment import (
    HARD_NEGATIVE,
    IGNORE_LABEL,
    checked_matches,
    ignore_regions,
    match_batch,
    mine_batch,
    valid_objects,
)
from ssd_fast.box_losses import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)
from ssd_fast.boxes import decode_boxes, encode_boxes
from ssd_fast.cross_entropy import background_key, cross_entropy, cross_entropy_gradient
from ssd_fast.ops._arguments import as_levels
from ssd_fast.ops._levels import join_levels, split_rows
from ssd_fast.ops._loss_arguments import ASSIGN, BOX_LOSS, NORMALIZER, loss_options

__all__ = [
    "assigned_rows",
    "backward_reference",
    "box_losses",
    "box_slopes",
    "fake_backward",
    "fake_forward",
    "forward_reference",
    "image_weights",
    "loss_reference",
    "positive_rows",
]

_IOU_LOSSES: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
    BOX_LOSS["giou"]: generalized_box_iou_loss,
    BOX_LOSS["diou"]: distance_box_iou_loss,
    BOX_LOSS["ciou"]: complete_box_iou_loss,
}


def loss_reference(
    deltas: Tensor | Sequence[Tensor],
    logits: Tensor | Sequence[Tensor],
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    *,
    matches: Tensor | None = None,
    class_weights: Tensor | None = None,
    background_index: int = 0,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """`multibox_loss` in plain PyTorch under autograd; takes float64 too."""
    maps = as_levels(deltas), as_levels(logits)
    if background_index < 0:
        background_index += join_levels(*maps)[1].size(2)
    return forward_reference(
        *maps,
        priors,
        boxes,
        labels,
        offsets,
        matches,
        class_weights,
        *loss_options(**options, background_index=background_index),
    )[:3]


def forward_reference(
    deltas: list[Tensor],
    logits: list[Tensor],
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    matches: Tensor | None,
    class_weights: Tensor | None,
    iou_threshold: float,
    low_threshold: float | None,
    strict: bool,
    assign: int,
    ignore_threshold: float | None,
    ratio: float,
    min_negatives: int,
    box_loss: int,
    beta: float,
    variances: Sequence[float],
    label_smoothing: float,
    background_index: int,
    normalizer: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``ssd_fast::multibox_loss`` in plain PyTorch, under autograd."""
    delta_rows, logit_rows = join_levels(deltas, logits)
    in_range = (labels >= 0) & (labels < logit_rows.size(2)) & (labels != background_index)
    matched = assigned_rows(
        priors, boxes, labels, offsets, matches, in_range,
        iou_threshold, low_threshold, strict, assign, ignore_threshold,
    )  # fmt: skip
    key = background_key(logit_rows.detach(), background_index)
    hard = mine_batch(key, matched, ratio=ratio, min_negatives=min_negatives)
    code = matched.masked_fill(hard, HARD_NEGATIVE)

    num_positives = (code >= 0).sum(dim=1)
    weight = image_weights(num_positives, normalizer)
    image, prior, row = positive_rows(code, offsets)
    box_rows = box_losses(
        delta_rows[image, prior], priors[prior], boxes[row], box_loss, beta, variances
    )
    box_sum = (box_rows * weight.to(box_rows.dtype)[image]).sum()
    selected, target = _class_targets(code, offsets, labels, background_index)
    class_rows = cross_entropy(logit_rows[selected], target, class_weights, label_smoothing)
    class_weight = weight.to(class_rows.dtype)[selected.nonzero()[:, 0]]
    return box_sum, (class_rows * class_weight).sum(), num_positives, code


def backward_reference(
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
    class_weights: Tensor | None,
    box_loss: int,
    beta: float,
    variances: Sequence[float],
    label_smoothing: float,
    background_index: int,
    normalizer: int,
) -> tuple[list[Tensor], list[Tensor]]:
    """``ssd_fast::multibox_loss_backward`` in plain PyTorch."""
    delta_rows, logit_rows = join_levels(deltas, logits)
    weight = image_weights(num_positives, normalizer).to(logit_rows.dtype)
    image, prior, row = positive_rows(code, offsets)
    slope = box_slopes(
        delta_rows[image, prior], priors[prior], boxes[row], box_loss, beta, variances
    )
    grad_deltas = torch.zeros_like(delta_rows)
    grad_deltas[code >= 0] = slope * (grad_box_loss * weight[image]).unsqueeze(1)

    selected, target = _class_targets(code, offsets, labels, background_index)
    slope = cross_entropy_gradient(logit_rows[selected], target, class_weights, label_smoothing)
    grad_logits = torch.zeros_like(logit_rows)
    class_weight = weight[selected.nonzero()[:, 0]]
    grad_logits[selected] = slope * (grad_class_loss * class_weight).unsqueeze(1)
    return split_rows(grad_deltas, deltas), split_rows(grad_logits, logits)


def assigned_rows(
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    matches: Tensor | None,
    in_range: Tensor,
    iou_threshold: float,
    low_threshold: float | None,
    strict: bool,
    assign: int,
    ignore_threshold: float | None,
) -> Tensor:
    """What each prior is before anything is mined, (B, P) int32 as `ssd_fast.ops.match` says it.

    ``in_range`` (N,) bool: objects whose class a prior may learn. The rest are the operators'
    arguments.
    """
    has_area = valid_objects(boxes)
    if matches is not None:
        matched = checked_matches(matches, offsets, has_area & in_range)
    else:
        matched = match_batch(
            priors,
            boxes,
            offsets,
            has_area & in_range,
            iou_threshold=iou_threshold,
            low_threshold=low_threshold,
            strict=strict,
            assign=list(ASSIGN)[assign],
        )
    if ignore_threshold is None:
        return matched
    regions = has_area & (labels == IGNORE_LABEL)
    return ignore_regions(matched, priors, boxes, offsets, regions, ignore_threshold)


def image_weights(num_positives: Tensor, normalizer: int) -> Tensor:
    """What the rows of each image are multiplied by, (B,) float64."""
    counts = num_positives.double()
    if normalizer == NORMALIZER["positives"]:
        return counts.sum().clamp(min=1).reciprocal().expand_as(counts)
    if normalizer == NORMALIZER["image"]:
        return (counts.clamp(min=1) * max(counts.numel(), 1)).reciprocal()
    return torch.ones_like(counts)


def box_losses(
    deltas: Tensor,
    priors: Tensor,
    boxes: Tensor,
    box_loss: int,
    beta: float,
    variances: Sequence[float],
) -> Tensor:
    """The box loss of each positive, (n,); deltas, priors and boxes are (n, 4)."""
    if box_loss in _IOU_LOSSES:
        return _IOU_LOSSES[box_loss](decode_boxes(deltas, priors, variances), boxes)
    residual = deltas - encode_boxes(boxes, priors, variances)
    return torch.nn.functional.smooth_l1_loss(
        residual, torch.zeros_like(residual), reduction="none", beta=beta
    ).sum(dim=1)


def box_slopes(
    deltas: Tensor,
    priors: Tensor,
    boxes: Tensor,
    box_loss: int,
    beta: float,
    variances: Sequence[float],
) -> Tensor:
    """The derivative of `box_losses` by the deltas, (n, 4)."""
    if box_loss in _IOU_LOSSES:
        with torch.enable_grad():
            deltas = deltas.detach().requires_grad_()
            loss = box_losses(deltas, priors, boxes, box_loss, beta, variances).sum()
            return torch.autograd.grad(loss, deltas)[0]
    residual = deltas - encode_boxes(boxes, priors, variances)
    return (residual / beta).clamp(-1, 1) if beta > 0 else residual.sign()


def positive_rows(code: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Image, prior and row of ``boxes`` of each positive."""
    image, prior = (code >= 0).nonzero(as_tuple=True)
    return image, prior, offsets.clamp(min=0)[image] + code[image, prior]


def _class_targets(
    code: Tensor, offsets: Tensor, labels: Tensor, background_index: int
) -> tuple[Tensor, Tensor]:
    """Which rows enter the class loss, (B, P) bool, and the class each of them should have."""
    image, prior, row = positive_rows(code, offsets)
    target = torch.full_like(code, background_index, dtype=torch.int64)
    target[image, prior] = labels[row]
    selected = (code >= 0) | (code == HARD_NEGATIVE)
    return selected, target[selected]


def fake_forward(
    deltas: list[Tensor], logits: list[Tensor], priors: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a loss gives, uncomputed: two sums, ``num_positives`` and ``code``."""
    batch = deltas[0].size(0)
    return (
        priors.new_empty(()),
        priors.new_empty(()),
        priors.new_empty((batch,), dtype=torch.int64),
        priors.new_empty((batch, priors.size(0)), dtype=torch.int32),
    )


def fake_backward(
    grad_box_loss: Tensor,
    grad_class_loss: Tensor,
    deltas: list[Tensor],
    logits: list[Tensor],
    *_: Any,
) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of a loss, uncomputed."""
    return [torch.empty_like(x) for x in deltas], [torch.empty_like(x) for x in logits]
