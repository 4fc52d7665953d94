# SPDX-License-Identifier: BSD-3-Clause
"""Which image of a batch a loss that is not finite comes from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ssd_fast.targets import Targets

__all__ = ["first_offender"]


@torch.no_grad()
def first_offender(
    losses: Callable[[Tensor, Targets], dict[str, Tensor]], images: Tensor, targets: Targets
) -> int | None:
    """Finds the first image whose loss alone is not finite.

    Each goes in twice, because batch norm cannot train on one image.

    Args:
        losses: the model in training; its running statistics change.
        images: (B, 3, S, S).
        targets: of the batch.

    Returns:
        Its index in the batch, or None if every image alone has a finite loss, or, of several, none
        has: then it is the weights.
    """
    offenders = []
    offsets = targets.offsets.tolist()
    for i in range(images.shape[0]):
        first, last = offsets[i], offsets[i + 1]
        boxes, labels = targets.boxes[first:last], targets.labels[first:last]
        count = last - first
        twice = Targets(
            torch.cat([boxes, boxes]),
            torch.cat([labels, labels]),
            torch.tensor([0, count, 2 * count], device=targets.offsets.device),
        )
        # As the batch was laid out; cat keeps channels_last.
        alone = losses(torch.cat([images[i : i + 1]] * 2), twice)
        if not all(bool(loss.isfinite()) for loss in alone.values()):
            offenders.append(i)
    everywhere = len(offenders) == images.shape[0] > 1
    return None if everywhere or not offenders else offenders[0]
