# SPDX-License-Identifier: BSD-3-Clause
"""lufficc/SSD: `ssd.modeling.box_head.loss.MultiBoxLoss`, by constructor and forward."""

from torch import Tensor, nn

from ssd_fast.compat.dense import dense_loss

__all__ = ["MultiBoxLoss"]


class MultiBoxLoss(nn.Module):
    """The loss of lufficc/SSD on `ssd_fast.ops.mine`.

    Args:
        neg_pos_ratio: negatives mined for each positive.
        min_negatives: negatives mined in an image at least.
    """

    def __init__(self, neg_pos_ratio: float, *, min_negatives: int = 0) -> None:
        super().__init__()
        self.neg_pos_ratio = neg_pos_ratio
        self.min_negatives = min_negatives

    def forward(
        self, confidence: Tensor, predicted_locations: Tensor, labels: Tensor, gt_locations: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The losses of boxes and of classes, each divided by the positives of the batch.

        Args:
            confidence: (B, P, C) logits; class 0 is the background.
            predicted_locations: (B, P, 4) offsets.
            labels: (B, P) int64, 0 for background; negative ones train nothing.
            gt_locations: (B, P, 4) encoded boxes; a row that is not finite trains nothing.

        Returns:
            The loss of the boxes and that of the classes, float32 scalars.

        Raises:
            ValueError: shapes that do not fit together, or a label from C on.
        """
        sums = dense_loss(
            predicted_locations,
            confidence,
            labels,
            gt_locations,
            ratio=self.neg_pos_ratio,
            min_negatives=self.min_negatives,
        )
        count = sums.positives.sum().clamp(min=1)
        return sums.boxes.sum() / count, sums.classes.sum() / count
