# SPDX-License-Identifier: BSD-3-Clause
"""amdegroot/ssd.pytorch: `layers.modules.MultiBoxLoss`, by constructor and forward."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from ssd_fast.compat.centre_size import corners
from ssd_fast.ops.multibox_loss import multibox_loss
from ssd_fast.targets import Targets

__all__ = ["MultiBoxLoss"]


class MultiBoxLoss(nn.Module):
    """The loss of amdegroot/ssd.pytorch on `ssd_fast.ops.multibox_loss`.

    Args:
        num_classes: C, background included.
        overlap_thresh: a prior matches from this IoU on.
        prior_for_matching: without effect, as there.
        bkg_label: without effect, as there: the background is class 0.
        neg_mining: without effect, as there: negatives are always mined.
        neg_pos: negatives mined for each positive.
        neg_overlap: without effect, as there.
        encode_target: without effect, as there.
        use_gpu: without effect: targets go where the predictions are.
        min_negatives: negatives mined in an image at least.
        invalid: what to do with an object that nothing can learn from: "raise" or "drop".
    """

    def __init__(
        self,
        num_classes: int,
        overlap_thresh: float,
        prior_for_matching: bool,
        bkg_label: int,
        neg_mining: bool,
        neg_pos: float,
        neg_overlap: float,
        encode_target: bool,
        use_gpu: bool = True,
        *,
        min_negatives: int = 0,
        invalid: Literal["raise", "drop"] = "raise",
    ) -> None:
        super().__init__()
        self.use_gpu = use_gpu
        self.num_classes = num_classes
        self.threshold = overlap_thresh
        self.background_label = bkg_label
        self.encode_target = encode_target
        self.use_prior_for_matching = prior_for_matching
        self.do_neg_mining = neg_mining
        self.negpos_ratio = neg_pos
        self.neg_overlap = neg_overlap
        self.variance = (0.1, 0.2)
        self.min_negatives = min_negatives
        self.invalid: Literal["raise", "drop"] = invalid

    def forward(
        self, predictions: tuple[Tensor, Tensor, Tensor], targets: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The losses of boxes and of classes, each divided by the positives of the batch.

        Args:
            predictions: offsets (B, P, 4), logits (B, P, C), and centre-size priors in [0, 1],
                (P, 4) float32, of which the first P are used.
            targets: one an image, (n, 5): corners in [0, 1] and the class, counted from 0 without
                the background; (0, 5) or (0,) for an image without objects.

        Returns:
            The loss of the boxes and that of the classes, float32 scalars.

        Raises:
            ValueError: tensors that do not fit together, or an object that nothing can learn from.
        """
        loc, conf, priors = predictions
        if conf.shape[-1] != self.num_classes:
            raise ValueError(
                f"predictions: expected logits of {self.num_classes} classes, got"
                f" {tuple(conf.shape)}"
            )
        if len(targets) != loc.shape[0]:
            raise ValueError(
                f"targets: expected one for each of the {loc.shape[0]} images, got {len(targets)}"
            )
        # Checked as they come, from 0 and without background, so that a message shows their value.
        packed = Targets.pack(
            [_as_dictionary(i, target) for i, target in enumerate(targets)],
            num_classes=self.num_classes - 1,
            background_index=-1,
            invalid=self.invalid,
            device=loc.device,
        )
        box_loss, class_loss, _ = multibox_loss(
            loc,
            conf,
            corners(priors[: loc.shape[1]].detach().to(loc.device)),
            packed.boxes,
            packed.labels + 1,
            packed.offsets,
            iou_threshold=self.threshold,
            ratio=self.negpos_ratio,
            min_negatives=self.min_negatives,
            variances=self.variance,
        )
        return box_loss, class_loss


def _as_dictionary(image: int, target: Tensor) -> dict[str, Tensor]:
    if target.numel() == 0:
        target = target.reshape(0, 5)
    if target.dim() != 2 or target.shape[1] != 5:
        raise ValueError(
            f"targets[{image}]: expected (n, 5), corners and class, got {tuple(target.shape)}"
        )
    target = target.detach()
    return {"boxes": target[:, :4], "labels": target[:, 4].long()}
