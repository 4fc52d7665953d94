# SPDX-License-Identifier: BSD-3-Clause
"""The gradient of the MultiBox loss where it is not zero: cells of the heads' maps, compact."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssd_fast.assignment import BACKGROUND, HARD_NEGATIVE
from ssd_fast.ops._loss_arguments import NORMALIZER
from ssd_fast.ops._multibox import image_weights

__all__ = ["cell_gradients", "touched_cells"]


def touched_cells(code: Tensor, deltas: Sequence[Tensor]) -> list[Tensor]:
    """Which cells of each level carry a gradient.

    Args:
        code: (B, P) int32, what `multibox_loss` made of every prior.
        deltas: one map a level, (B, A * 4, H, W).

    Returns:
        One (n,) int64 a level, rising: image * H * W + y * W + x.
    """
    selected = (code >= 0) | (code == HARD_NEGATIVE)
    return [part.flatten(0, 1).any(1).nonzero()[:, 0] for part in _split(selected, deltas, 1)]


def cell_gradients(
    grad_box_loss: Tensor,
    grad_class_loss: Tensor,
    cells: Sequence[Tensor],
    deltas: Sequence[Tensor],
    logits: Sequence[Tensor],
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
) -> list[tuple[Tensor, ...]]:
    """What `multibox_loss_backward` would write into the cells, and nothing else.

    The rows of the cells go through that operator as one image with all objects of the batch.

    Args:
        grad_box_loss: () float32, as all that follow but `cells` for `multibox_loss_backward`.
        grad_class_loss: () float32.
        cells: of each level, from `touched_cells`.
        deltas: one map a level.
        logits: one map a level.
        priors: (P, 4).
        boxes: (N, 4).
        labels: (N,).
        offsets: (B + 1,).
        code: (B, P).
        num_positives: (B,).
        class_weights: (C,) or None.
        box_loss: a number of `BOX_LOSS`.
        beta: of smooth-L1.
        variances: 4 numbers.
        label_smoothing: from 0 to 1.
        background_index: class index of the background.
        normalizer: a number of `NORMALIZER`.

    Returns:
        For each level the gradients of the deltas (n, A * 4) and logits (n, A * C), float32.
    """
    bounds = offsets.clamp(0, boxes.size(0))
    weights = image_weights(num_positives, normalizer).float()
    rows: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    row_weights = []
    for touched, delta, logit, codes, level_priors in zip(
        cells,
        deltas,
        logits,
        _split(code, deltas, 1),
        _split(priors.unsqueeze(0), deltas, 4),
        strict=True,
    ):
        image = touched // codes.size(1)
        cell = touched % codes.size(1)
        # Of all objects; one that its image does not have, after targets changed, is none.
        own = codes[image, cell]
        begin = bounds[image].unsqueeze(1)
        known = own < bounds[image + 1].unsqueeze(1) - begin
        owner = torch.where(own >= 0, torch.where(known, own + begin, BACKGROUND), own)
        maps = (x.permute(0, 2, 3, 1).flatten(1, 2)[image, cell].float() for x in (delta, logit))
        classes = logit.size(1) // codes.size(2)
        row_delta, row_logit = maps
        rows.append(
            (
                row_delta.view(1, -1, 4),
                row_logit.view(1, -1, classes),
                level_priors[0, cell].view(-1, 4),
                owner.to(torch.int32).view(1, -1),
            )
        )
        row_weights.append(weights[image].unsqueeze(1))
    row_deltas, row_logits, row_priors, row_codes = zip(*rows, strict=True)
    grad_deltas, grad_logits = torch.ops.ssd_fast.multibox_loss_backward.default(
        grad_box_loss,
        grad_class_loss,
        row_deltas,
        row_logits,
        torch.cat(row_priors),
        boxes,
        labels,
        offsets.new_tensor([0, boxes.size(0)]),
        torch.cat(row_codes, dim=1),
        num_positives.new_zeros(1),
        class_weights,
        box_loss,
        beta,
        variances,
        label_smoothing,
        background_index,
        NORMALIZER["none"],
    )
    return [
        tuple(gradient.view(-1, x.size(1)).mul_(w) for gradient, x in pairs)
        for *pairs, w in zip(
            zip(grad_deltas, deltas, strict=True),
            zip(grad_logits, logits, strict=True),
            row_weights,
            strict=True,
        )
    ]


def _split(rows: Tensor, deltas: Sequence[Tensor], columns: int) -> list[Tensor]:
    """Takes (B, P) or (B, P, 4) apart: one (B, H * W, A * columns) a level."""
    sizes = [delta.size(1) // 4 * delta.size(2) * delta.size(3) for delta in deltas]
    return [
        part.reshape(rows.size(0), delta.size(2) * delta.size(3), delta.size(1) // 4 * columns)
        for part, delta in zip(rows.split(sizes, dim=1), deltas, strict=True)
    ]
