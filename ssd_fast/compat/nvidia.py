# SPDX-License-Identifier: BSD-3-Clause
"""NVIDIA DeepLearningExamples, PyTorch/Detection/SSD: `Loss` and `Encoder`, by signature."""

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from ssd_fast.compat.dense import dense_loss
from ssd_fast.ops.detect import detect
from ssd_fast.ops.match import match

__all__ = ["Encoder", "Loss"]

_SCORE_THRESHOLD = 0.05
_CANDIDATES = 200


class DefaultBoxes(Protocol):
    """What NVIDIA's `DefaultBoxes` offers: the boxes in two forms, and two variances."""

    @property
    def scale_xy(self) -> float:
        """Variance of the centre's offsets."""

    @property
    def scale_wh(self) -> float:
        """Variance of the size's offsets."""

    def __call__(self, order: str = "ltrb") -> Tensor:
        """The boxes, (P, 4) float32, as corners ("ltrb") or centre and size ("xywh")."""


class Loss(nn.Module):
    """The loss of NVIDIA's SSD on `ssd_fast.ops.mine`.

    Args:
        dboxes: the default boxes.
        min_negatives: negatives mined in an image at least.
    """

    def __init__(self, dboxes: DefaultBoxes, *, min_negatives: int = 0) -> None:
        super().__init__()
        self.scale_xy = 1.0 / dboxes.scale_xy
        self.scale_wh = 1.0 / dboxes.scale_wh
        # A parameter as in NVIDIA's class, so that its checkpoints load.
        self.dboxes = nn.Parameter(
            dboxes(order="xywh").transpose(0, 1).unsqueeze(0), requires_grad=False
        )
        self.min_negatives = min_negatives

    def forward(self, ploc: Tensor, plabel: Tensor, gloc: Tensor, glabel: Tensor) -> Tensor:
        """Boxes and classes in one number: each image by its own positives, then the mean.

        Args:
            ploc: (B, 4, P) predicted offsets.
            plabel: (B, C, P) logits; class 0 is the background.
            gloc: (B, 4, P) centre-size box that each default box answers for. A box without area
                trains nothing.
            glabel: (B, P) int64, 0 for background; negative ones train nothing.

        Returns:
            A float32 scalar.

        Raises:
            ValueError: shapes that do not fit together, or a label from C on.
        """
        sums = dense_loss(
            ploc.transpose(1, 2),
            plabel.transpose(1, 2),
            glabel,
            self._offsets(gloc).transpose(1, 2),
            ratio=3.0,
            min_negatives=self.min_negatives,
        )
        return ((sums.boxes + sums.classes) / sums.positives.clamp(min=1)).mean()

    def _offsets(self, boxes: Tensor) -> Tensor:
        """Offsets (B, 4, P) of centre-size boxes (B, 4, P) from the default boxes."""
        centre, size = self.dboxes[:, :2], self.dboxes[:, 2:]
        return torch.cat(
            [
                self.scale_xy * (boxes[:, :2] - centre) / size,
                self.scale_wh * (boxes[:, 2:] / size).log(),
            ],
            dim=1,
        )


class Encoder:
    """The encoder of NVIDIA's SSD on `ssd_fast.ops.match` and `ssd_fast.ops.detect`.

    Args:
        dboxes: the default boxes.
    """

    def __init__(self, dboxes: DefaultBoxes) -> None:
        self.dboxes = dboxes(order="ltrb")
        self.dboxes_xywh = dboxes(order="xywh").unsqueeze(dim=0)
        self.nboxes = self.dboxes.size(0)
        self.scale_xy = dboxes.scale_xy
        self.scale_wh = dboxes.scale_wh

    def encode(
        self, bboxes_in: Tensor, labels_in: Tensor, criteria: float = 0.5
    ) -> tuple[Tensor, Tensor]:
        """Dense targets of one image.

        Args:
            bboxes_in: (n, 4) float32 corners in [0, 1]; n may be 0.
            labels_in: (n,) int64 from 1 on.
            criteria: a default box matches above this IoU.

        Returns:
            (P, 4) centre-size box that each default box answers for, itself where there is none,
            and (P,) int64 labels, 0 for background.

        Raises:
            ValueError: a wrong shape or dtype.
        """
        if labels_in.shape != bboxes_in.shape[:1]:
            raise ValueError(
                f"labels_in: expected ({bboxes_in.shape[0]},), one for each box, got"
                f" {tuple(labels_in.shape)}"
            )
        dboxes = self.dboxes.to(bboxes_in.device)
        rows = torch.tensor([0, bboxes_in.shape[0]], device=bboxes_in.device)
        owner = match(dboxes, bboxes_in, rows, iou_threshold=criteria, strict=True)[0].long()
        labels = torch.zeros(self.nboxes, dtype=torch.long, device=bboxes_in.device)
        boxes = dboxes
        if bboxes_in.shape[0]:
            matched, owner = owner >= 0, owner.clamp(min=0)
            labels = torch.where(matched, labels_in[owner], labels)
            boxes = torch.where(matched[:, None], bboxes_in[owner], boxes)
        left_top, right_bottom = boxes[:, :2], boxes[:, 2:]
        return torch.cat([0.5 * (left_top + right_bottom), right_bottom - left_top], 1), labels

    def decode_batch(
        self, bboxes_in: Tensor, scores_in: Tensor, criteria: float = 0.45, max_output: int = 200
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Detections of a batch; its inputs are left as they are.

        Args:
            bboxes_in: (B, 4, P) offsets.
            scores_in: (B, C, P) logits; class 0 is the background.
            criteria: a box is suppressed from this IoU with a better one of its class on.
            max_output: detections an image.

        Returns:
            For each image boxes (n, 4), corners in the unit of the default boxes, labels (n,) int64
            and scores (n,), sorted by rising score.

        Raises:
            ValueError: a wrong shape or dtype.
        """
        found = detect(
            # (B, K, P) is the map of a head with one box a cell and P rows of one cell.
            [bboxes_in.unsqueeze(-1)],
            [scores_in.unsqueeze(-1)],
            self.dboxes.to(bboxes_in.device),
            score_threshold=_SCORE_THRESHOLD,
            top_k=_CANDIDATES,
            iou_threshold=_just_below(criteria),
            max_detections=max_output,
            variances=(self.scale_xy, self.scale_wh),
            max_log_scale=None,
        )
        return [
            (image["boxes"].flip(0), image["labels"].flip(0), image["scores"].flip(0))
            for image in found.to_list()
        ]


def _just_below(criteria: float) -> float:
    """The float32 before `criteria`: an IoU above it is at least `criteria`, as a float32."""
    value = torch.tensor(criteria, dtype=torch.float32, device="cpu")
    return float(torch.nextafter(value, torch.full_like(value, -math.inf)))
