# SPDX-License-Identifier: BSD-3-Clause
"""The loss on dense targets: a label and encoded offsets for every prior, matched in the loader."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssd_fast.assignment import BACKGROUND, IGNORED
from ssd_fast.ops.mine import mine

__all__ = ["DenseSums", "dense_loss"]

_OBJECT = 0  # any index of an object: mining asks only whether there is one


class DenseSums(NamedTuple):
    """Sums over the rows of each image, not yet divided by anything."""

    boxes: Tensor
    """(B,) float32, smooth-L1 of the positives."""
    classes: Tensor
    """(B,) float32, cross-entropy of the positives and the mined negatives."""
    positives: Tensor
    """(B,) int64."""


def dense_loss(
    deltas: Tensor,
    logits: Tensor,
    labels: Tensor,
    offsets: Tensor,
    *,
    ratio: float,
    min_negatives: int,
) -> DenseSums:
    """Smooth-L1 and cross-entropy of dense targets, negatives mined by `ssd_fast.ops.mine`.

    Args:
        deltas: (B, P, 4) predicted offsets.
        logits: (B, P, C), class 0 the background; neither has to be contiguous.
        labels: (B, P) int64: a class, 0 for background, negative for a prior that trains nothing.
        offsets: (B, P, 4) float32 encoded boxes, read where a label is positive. A row that is not
            finite (a box without area) trains nothing.
        ratio: negatives for each positive of an image.
        min_negatives: negatives of an image at least.

    Returns:
        The sums of each image.

    Raises:
        ValueError: shapes that do not fit together, or a label from C on.
    """
    _check(deltas, logits, labels, offsets)
    positive = (labels > 0) & offsets.isfinite().all(dim=2)
    code = torch.where(labels == 0, BACKGROUND, IGNORED).masked_fill(positive, _OBJECT)
    with torch.no_grad():
        scores = logits.float()
        key = torch.logsumexp(scores, dim=2) - scores[..., 0]  # -log p(background)
        mined = mine(key, code.int(), ratio=ratio, min_negatives=min_negatives)
    selected = positive | mined
    target = labels[selected]
    _check_labels(target, labels, logits.shape[2])
    class_rows = F.cross_entropy(logits[selected].float(), target, reduction="none")
    box_rows = F.smooth_l1_loss(
        deltas[positive].float(), offsets[positive].float(), reduction="none"
    ).sum(dim=1)
    return DenseSums(
        _per_image(box_rows, positive), _per_image(class_rows, selected), positive.sum(dim=1)
    )


def _per_image(rows: Tensor, mask: Tensor) -> Tensor:
    """(B,) sums of the rows that a (B, P) mask selected, in an order that never changes."""
    return rows.new_zeros(mask.shape).masked_scatter(mask, rows).sum(dim=1)


def _check(deltas: Tensor, logits: Tensor, labels: Tensor, offsets: Tensor) -> None:
    if logits.dim() != 3 or logits.shape[2] < 2:
        raise ValueError(
            f"logits: expected (B, P, C) of 2 classes or more, got {tuple(logits.shape)}"
        )
    batch, priors = logits.shape[:2]
    for name, tensor, shape in (
        ("predicted offsets", deltas, (batch, priors, 4)),
        ("labels", labels, (batch, priors)),
        ("target offsets", offsets, (batch, priors, 4)),
    ):
        if tensor.shape != shape:
            raise ValueError(
                f"{name}: expected {shape} beside logits of {batch} images and {priors} priors, got"
                f" {tuple(tensor.shape)}"
            )


def _check_labels(selected: Tensor, labels: Tensor, num_classes: int) -> None:
    """Raises ValueError for a label that has no logit; on CUDA it would end the process."""
    if selected.numel() and int(selected.max()) >= num_classes:
        image, prior = (labels >= num_classes).nonzero()[0].tolist()
        raise ValueError(
            f"labels[{image}, {prior}] is {int(labels[image, prior])}: expected less than"
            f" {num_classes}, the number of logits, background included"
        )
