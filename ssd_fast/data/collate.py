# SPDX-License-Identifier: BSD-3-Clause
"""collate: a batch of images of any sizes, as two lists."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["collate"]


def collate(
    samples: Sequence[tuple[Tensor, dict[str, Tensor]]],
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Splits samples into images and targets; the `collate_fn` of a detection `DataLoader`.

    Images are not stacked, because they may differ in size, and targets are not padded.

    Args:
        samples: B pairs of an image (3, H, W) and its target.

    Returns:
        B images and B targets, the same tensors.
    """
    images, targets = zip(*samples, strict=True) if samples else ((), ())
    return list(images), list(targets)
