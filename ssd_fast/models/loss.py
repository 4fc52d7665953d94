# SPDX-License-Identifier: BSD-3-Clause
"""The loss of a model: `MultiBoxLoss` with options that fit its classes and its detections."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ssd_fast.multibox import MultiBoxLoss

__all__ = ["build_loss"]


def build_loss(
    priors: Tensor,
    num_classes: int,
    options: Mapping[str, Any],
    classification: str | None = None,
) -> MultiBoxLoss:
    """The loss of an `SSD`.

    Args:
        priors: (P, 4) float32 corners.
        num_classes: C, background included.
        options: of `MultiBoxLoss`. A negative background_index is counted from the first class on,
            as `ssd_fast.ops.detect` and the data count it.
        classification: the option of that name, if it is not among the others.

    Returns:
        A new module.

    Raises:
        ValueError: an option out of range, as many class weights as there are no classes, or two
            classifications.
    """
    if classification is not None:
        other = options.get("classification", classification)
        if other != classification:
            raise ValueError(
                f"classification: got {classification!r}, but loss has {other!r}; give it once"
            )
        options = {**options, "classification": classification}
    background = options.get("background_index", 0)
    if isinstance(background, int) and -num_classes <= background < 0:
        options = {**options, "background_index": background + num_classes}
    loss = MultiBoxLoss(priors, **options)
    weights = loss.class_weights
    if weights is not None and weights.size(0) != num_classes:
        raise ValueError(
            f"loss: class_weights: expected one for each of the {num_classes} classes, got"
            f" {weights.size(0)}"
        )
    return loss
