# SPDX-License-Identifier: BSD-3-Clause
"""What the operators that end in the MultiBox loss share: its options and its definition."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssd_fast.assignment import HARD_NEGATIVE, match_batch, mine_batch, valid_objects
from ssd_fast.boxes import encode_boxes, four_variances
from ssd_fast.cross_entropy import background_key, cross_entropy, relative_exponentials
from ssd_fast.ops._arguments import check_choice, check_count, check_flag, check_number
from ssd_fast.ops._levels import join_levels, split_rows

__all__ = [
    "ASSIGN",
    "NORMALIZER",
    "backward_reference",
    "forward_reference",
    "image_weights",
    "loss_options",
]

ASSIGN = {"last": 0, "bipartite": 1, "none": 2}
NORMALIZER = {"positives": 0, "image": 1, "none": 2}


def loss_options(
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
) -> tuple[Any, ...]:
    """The options of the loss, checked, as the schemas take them.

    Args:
        iou_threshold: see `ssd_fast.ops.multibox_loss`, as for all of them.
        low_threshold: at most `iou_threshold`, or None.
        strict: a bool.
        assign: a word of `ASSIGN`.
        ratio: finite in float32.
        min_negatives: not negative.
        beta: not negative.
        variances: 2 or 4 numbers.
        background_index: checked with the logits.
        normalizer: a word of `NORMALIZER`.

    Raises:
        ValueError: an option out of range.
    """
    check_number("iou_threshold", iou_threshold, low=0)
    if low_threshold is not None:
        check_number("low_threshold", low_threshold, low=0, high=iou_threshold)
    check_number("ratio", ratio, low=0, high=torch.finfo(torch.float32).max)
    check_count("min_negatives", min_negatives)
    check_number("beta", beta, low=0)
    check_flag("strict", strict)
    check_count("background_index", background_index)
    return (
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


def forward_reference(
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
    """``ssd_fast::multibox_loss`` in plain PyTorch, under autograd."""
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
    weight = image_weights(num_positives, normalizer)
    image, residual = _box_residuals(delta_rows, priors, boxes, offsets, code, variances)
    box_rows = torch.nn.functional.smooth_l1_loss(
        residual, torch.zeros_like(residual), reduction="none", beta=beta
    ).sum(dim=1)
    box_loss = (box_rows * weight.to(box_rows.dtype)[image]).sum()
    selected, target = _class_targets(code, offsets, labels, background_index)
    class_rows = cross_entropy(logit_rows[selected], target)
    class_weight = weight.to(class_rows.dtype)[selected.nonzero()[:, 0]]
    return box_loss, (class_rows * class_weight).sum(), num_positives, code


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
    beta: float,
    variances: Sequence[float],
    background_index: int,
    normalizer: int,
) -> tuple[list[Tensor], list[Tensor]]:
    """``ssd_fast::multibox_loss_backward`` in plain PyTorch."""
    delta_rows, logit_rows = join_levels(deltas, logits)
    weight = image_weights(num_positives, normalizer).to(logit_rows.dtype)
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


def image_weights(num_positives: Tensor, normalizer: int) -> Tensor:
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
