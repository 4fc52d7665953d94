# SPDX-License-Identifier: BSD-3-Clause
"""qfgaohao/pytorch-ssd: `vision.nn.multibox_loss.MultiboxLoss`, by constructor and forward."""

import torch
from torch import Tensor

from ssd_fast.compat import lufficc

__all__ = ["MultiboxLoss"]


class MultiboxLoss(lufficc.MultiBoxLoss):
    """The loss of qfgaohao/pytorch-ssd, whose `forward` is lufficc's.

    Args:
        priors: kept, and without effect, as there: targets come encoded.
        iou_threshold: without effect, as there.
        neg_pos_ratio: negatives mined for each positive.
        center_variance: without effect, as there.
        size_variance: without effect, as there.
        device: without effect: the loss is computed where the predictions are.
        min_negatives: negatives mined in an image at least.
    """

    def __init__(
        self,
        priors: Tensor,
        iou_threshold: float,
        neg_pos_ratio: float,
        center_variance: float,
        size_variance: float,
        device: torch.device | str,
        *,
        min_negatives: int = 0,
    ) -> None:
        super().__init__(neg_pos_ratio, min_negatives=min_negatives)
        self.priors = priors
        self.iou_threshold = iou_threshold
        self.center_variance = center_variance
        self.size_variance = size_variance
