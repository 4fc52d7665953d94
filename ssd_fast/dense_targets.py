# SPDX-License-Identifier: BSD-3-Clause
"""DenseTargets: the ground truth of a batch prior by prior, already matched in the loader."""

from typing import NamedTuple

import torch
from torch import Tensor

from ssd_fast.assignment import BACKGROUND
from ssd_fast.ops._arguments import describe
from ssd_fast.targets import Targets

__all__ = ["DenseTargets"]


class DenseTargets(NamedTuple):
    """A class and a box for every prior of B images, as detectors that match in the loader have.

    A prior trains nothing where its label is -1, is no class of the loss, or belongs to a box
    without positive finite area.
    """

    labels: Tensor
    """(B, P) int64: a class, the background's for background, -1 for a prior to ignore."""
    boxes: Tensor
    """(B, P, 4) float32 corners, not encoded, in the unit of the priors; of background, anything.
    """

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> "DenseTargets":
        """The same targets on another device; tensors already there are shared.

        Args:
            device: where to.
            non_blocking: as in `torch.Tensor.to`.

        Returns:
            `DenseTargets` on `device`.
        """
        return DenseTargets(
            self.labels.to(device, non_blocking=non_blocking),
            self.boxes.to(device, non_blocking=non_blocking),
        )

    def as_matches(self, background_index: int = 0) -> tuple[Targets, Tensor]:
        """The same as objects and the priors matched to them: every prior has an object of its own.

        Args:
            background_index: the label of the background.

        Returns:
            `Targets` of B * P objects, which shares the memory of the boxes, and (B, P) int32
            matches as `ssd_fast.ops.match` returns them, for `ssd_fast.ops.multibox_loss` with
            ``ignore_threshold=None``.

        Raises:
            ValueError: tensors of a wrong shape or dtype.
        """
        labels, boxes = self
        if not isinstance(labels, Tensor) or labels.dim() != 2 or labels.dtype != torch.int64:
            raise ValueError(f"labels: expected (B, P) int64, got {describe(labels)}")
        if not isinstance(boxes, Tensor) or boxes.shape != (*labels.shape, 4):
            raise ValueError(
                f"boxes: expected {(*labels.shape, 4)}, one for each label, got {describe(boxes)}"
            )
        batch, priors = labels.shape
        own = torch.arange(priors, dtype=torch.int32, device=labels.device)
        offsets = torch.arange(batch + 1, device=labels.device) * priors
        targets = Targets(boxes.reshape(-1, 4), labels.reshape(-1), offsets)
        return targets, torch.where(labels == background_index, BACKGROUND, own)
