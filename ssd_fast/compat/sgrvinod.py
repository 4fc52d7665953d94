# SPDX-License-Identifier: BSD-3-Clause
"""sgrvinod/a-PyTorch-Tutorial-to-Object-Detection: `model.MultiBoxLoss`, by signature."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from ssd_fast.compat.centre_size import corners
from ssd_fast.float32_buffers import Float32Buffers
from ssd_fast.ops.multibox_loss import multibox_loss
from ssd_fast.targets import Targets

__all__ = ["MultiBoxLoss"]


class MultiBoxLoss(Float32Buffers):
    """The loss of sgrvinod's tutorial on `ssd_fast.ops.multibox_loss`.

    Args:
        priors_cxcy: (P, 4) float32 centre-size boxes in [0, 1].
        threshold: a prior matches from this IoU on.
        neg_pos_ratio: negatives mined for each positive.
        alpha: weight of the boxes' loss.
        min_negatives: negatives mined in an image at least.
        invalid: what to do with an object that nothing can learn from: "raise" or "drop".
    """

    priors_cxcy: Tensor
    priors_xy: Tensor

    def __init__(
        self,
        priors_cxcy: Tensor,
        threshold: float = 0.5,
        neg_pos_ratio: float = 3,
        alpha: float = 1.0,
        *,
        min_negatives: int = 0,
        invalid: Literal["raise", "drop"] = "raise",
    ) -> None:
        super().__init__()
        self.register_buffer("priors_cxcy", priors_cxcy, persistent=False)
        self.register_buffer("priors_xy", corners(priors_cxcy), persistent=False)
        self.threshold = threshold
        self.neg_pos_ratio = neg_pos_ratio
        self.alpha = alpha
        self.min_negatives = min_negatives
        self.invalid: Literal["raise", "drop"] = invalid

    def forward(
        self,
        predicted_locs: Tensor,
        predicted_scores: Tensor,
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
    ) -> Tensor:
        """The loss: classes by the positives, plus `alpha` x the mean L1 of the boxes' offsets.

        Args:
            predicted_locs: (B, P, 4) offsets.
            predicted_scores: (B, P, C) logits; class 0 is the background.
            boxes: one an image, (n, 4) corners in [0, 1].
            labels: one an image, (n,) int64 from 1 on.

        Returns:
            A float32 scalar.

        Raises:
            ValueError: tensors that do not fit together, or an object that nothing can learn from.
        """
        self.check_values()
        if not len(boxes) == len(labels) == predicted_locs.shape[0]:
            raise ValueError(
                f"boxes, labels: expected one for each of the {predicted_locs.shape[0]} images, got"
                f" {len(boxes)} and {len(labels)}"
            )
        packed = Targets.pack(
            [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)],
            num_classes=predicted_scores.shape[-1],
            invalid=self.invalid,
            device=predicted_locs.device,
        )
        box_loss, class_loss, _ = multibox_loss(
            predicted_locs,
            predicted_scores,
            self.priors_xy.to(predicted_locs.device),
            packed.boxes,
            packed.labels,
            packed.offsets,
            iou_threshold=self.threshold,
            ratio=self.neg_pos_ratio,
            min_negatives=self.min_negatives,
            beta=0.0,
        )
        # Theirs is a mean over the 4 offsets of every positive, ours a sum over them.
        return class_loss + self.alpha * box_loss / 4
