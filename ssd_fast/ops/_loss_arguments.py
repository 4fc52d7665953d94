# SPDX-License-Identifier: BSD-3-Clause
"""What users pass to the operators that end in the MultiBox loss: its options, checked."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssd_fast.boxes import four_variances
from ssd_fast.ops._arguments import (
    check_choice,
    check_count,
    check_device,
    check_flag,
    check_levels,
    check_number,
    check_targets,
    check_vector,
    describe,
)

__all__ = [
    "ASSIGN",
    "BACKWARD_OPTIONS",
    "BOX_LOSS",
    "NORMALIZER",
    "check_loss_tensors",
    "loss_options",
]

ASSIGN = {"last": 0, "bipartite": 1, "none": 2}
BOX_LOSS = {"smooth_l1": 0, "giou": 1, "diou": 2, "ciou": 3}
NORMALIZER = {"positives": 0, "image": 1, "none": 2}

BACKWARD_OPTIONS = slice(7, None)
"""Of what `loss_options` returns, those that the backward takes."""


def loss_options(
    iou_threshold: float = 0.5,
    low_threshold: float | None = None,
    strict: bool = False,
    assign: str = "last",
    ignore_threshold: float | None = 0.5,
    ratio: float = 3.0,
    min_negatives: int = 0,
    box_loss: str = "smooth_l1",
    beta: float = 1.0,
    variances: Sequence[float] = (0.1, 0.2),
    label_smoothing: float = 0.0,
    background_index: int = 0,
    normalizer: str = "positives",
) -> tuple[Any, ...]:
    """The options of the loss, checked, as the schemas take them.

    Args:
        iou_threshold: see `ssd_fast.ops.multibox_loss`, as for all of them.
        low_threshold: at most `iou_threshold`, or None.
        strict: a bool.
        assign: a word of `ASSIGN`.
        ignore_threshold: from 0 to 1, or None.
        ratio: finite in float32.
        min_negatives: not negative.
        box_loss: a word of `BOX_LOSS`, or "l1".
        beta: not negative.
        variances: 2 or 4 numbers.
        label_smoothing: from 0 to 1.
        background_index: not negative here; checked with the logits.
        normalizer: a word of `NORMALIZER`.

    Raises:
        ValueError: an option out of range.
    """
    check_number("iou_threshold", iou_threshold, low=0)
    if low_threshold is not None:
        check_number("low_threshold", low_threshold, low=0, high=iou_threshold)
    if ignore_threshold is not None:
        check_number("ignore_threshold", ignore_threshold, low=0, high=1)
    check_number("ratio", ratio, low=0, high=torch.finfo(torch.float32).max)
    check_count("min_negatives", min_negatives)
    check_number("beta", beta, low=0)
    check_number("label_smoothing", label_smoothing, low=0, high=1)
    check_flag("strict", strict)
    check_count("background_index", background_index)
    return (
        iou_threshold,
        low_threshold,
        strict,
        check_choice("assign", assign, ASSIGN),
        ignore_threshold,
        ratio,
        min_negatives,
        check_choice("box_loss", box_loss, BOX_LOSS | {"l1": BOX_LOSS["smooth_l1"]}),
        0.0 if box_loss == "l1" else beta,
        four_variances(variances),
        label_smoothing,
        background_index,
        check_choice("normalizer", normalizer, NORMALIZER),
    )


def check_loss_tensors(
    deltas: list[Tensor],
    logits: list[Tensor],
    targets: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    background_index: int,
) -> None:
    """Raises ValueError unless the tensors fit together.

    Args:
        deltas: one a level, see `check_levels`.
        logits: one a level.
        targets: priors, boxes, labels, offsets, matches and class_weights, the last two or None.
        background_index: class index of the background.
    """
    priors, boxes, labels, offsets, matches, class_weights = targets
    batch, classes = check_levels(deltas, logits, priors, background_index)
    check_vector("labels", labels, torch.int64)  # which other operators do without
    check_targets(boxes, offsets, labels, batch)
    if matches is not None:
        _check_matches(matches, batch, priors.size(0))
    if class_weights is not None:
        _check_class_weights(class_weights, classes)
    check_device(
        priors=priors,
        boxes=boxes,
        labels=labels,
        offsets=offsets,
        matches=matches,
        class_weights=class_weights,
    )


def _check_matches(matches: Tensor, batch: int, priors: int) -> None:
    """Raises ValueError unless ``matches`` says of every prior of every image what it is."""
    shape = batch, priors
    if (
        not isinstance(matches, Tensor)
        or matches.shape != shape
        or matches.dtype not in (torch.int32, torch.int64)
    ):
        raise ValueError(
            f"matches: expected {shape} int32 or int64, as ssd_fast.ops.match returns it, "
            f"got {describe(matches)}"
        )


def _check_class_weights(class_weights: Tensor, classes: int) -> None:
    """Raises ValueError unless there is one float32 weight for each class."""
    if (
        not isinstance(class_weights, Tensor)
        or class_weights.shape != (classes,)
        or class_weights.dtype != torch.float32
    ):
        raise ValueError(
            f"class_weights: expected ({classes},) float32, one for each class with the "
            f"background, got {describe(class_weights)}"
        )
