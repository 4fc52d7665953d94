# SPDX-License-Identifier: BSD-3-Clause
"""lufficc/SSD: targets assigned in the loader, `MultiBoxLoss` on dense targets, `PostProcessor`.

Written anew to behave as https://github.com/lufficc/SSD at 68dc0a2 does (ssd/utils/box_utils.py,
data/transforms/target_transform.py, modeling/box_head/loss.py and inference.py). The loss is also
qfgaohao/pytorch-ssd's, whose prediction path is in `qfgaohao.py`.

Changed: settings are arguments where a configuration node stood, and so is the NMS (published:
torchvision's). Kept on purpose: 1e-5 added to every union, which moves a few assignments of small
boxes; the mining key -log p(background) with positives at -inf; NaN when a batch has no positive;
a crash for an image without objects.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Nms = Callable[[Tensor, Tensor, float], Tensor]


def center_form_to_corner_form(boxes: Tensor) -> Tensor:
    """Centre-size boxes (..., 4) as corners."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def corner_form_to_center_form(boxes: Tensor) -> Tensor:
    """Corner boxes (..., 4) as centre and size."""
    left_top, right_bottom = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(left_top + right_bottom) / 2, right_bottom - left_top], -1)


def convert_locations_to_boxes(
    locations: Tensor, priors: Tensor, center_variance: float, size_variance: float
) -> Tensor:
    """Centre-size boxes (..., P, 4) of offsets; the exponential is not clamped."""
    centre = locations[..., :2] * center_variance * priors[..., 2:] + priors[..., :2]
    size = torch.exp(locations[..., 2:] * size_variance) * priors[..., 2:]
    return torch.cat([centre, size], -1)


def convert_boxes_to_locations(
    boxes: Tensor, priors: Tensor, center_variance: float, size_variance: float
) -> Tensor:
    """Offsets (..., P, 4) of centre-size boxes from centre-size priors."""
    centre = (boxes[..., :2] - priors[..., :2]) / priors[..., 2:] / center_variance
    size = torch.log(boxes[..., 2:] / priors[..., 2:]) / size_variance
    return torch.cat([centre, size], -1)


def area_of(left_top: Tensor, right_bottom: Tensor) -> Tensor:
    """Areas (...) of boxes given by two corners, inverted ones empty."""
    sides = torch.clamp(right_bottom - left_top, min=0.0)
    return sides[..., 0] * sides[..., 1]


def iou_of(boxes0: Tensor, boxes1: Tensor, eps: float = 1e-5) -> Tensor:
    """IoU of broadcast corner boxes, with `eps` added to the union."""
    inter = area_of(
        torch.max(boxes0[..., :2], boxes1[..., :2]), torch.min(boxes0[..., 2:], boxes1[..., 2:])
    )
    area0 = area_of(boxes0[..., :2], boxes0[..., 2:])
    area1 = area_of(boxes1[..., :2], boxes1[..., 2:])
    return inter / (area0 + area1 - inter + eps)


def assign_priors(
    gt_boxes: Tensor,  # (n, 4) float32 corners
    gt_labels: Tensor,  # (n,) int64, 1-based
    corner_form_priors: Tensor,  # (P, 4) float32
    iou_threshold: float,
) -> tuple[Tensor, Tensor]:
    """The box (P, 4) and the label (P,) of every prior; IoU >= threshold, then forced matches."""
    ious = iou_of(gt_boxes[None, :], corner_form_priors[:, None])  # (P, n)
    best_iou, best_target = ious.max(1)  # of each prior
    best_prior = ious.max(0).indices  # of each object
    for target, prior in enumerate(best_prior):
        best_target[prior] = target  # of several claimants the last object wins
    best_iou.index_fill_(0, best_prior, 2)
    labels = gt_labels[best_target]
    labels[best_iou < iou_threshold] = 0
    return gt_boxes[best_target], labels


class SSDTargetTransform:
    """What a loader worker does for one image: assign, then encode densely.

    Args:
        center_form_priors: (P, 4) centre-size.
        center_variance: variance of the centre's offsets.
        size_variance: variance of the size's offsets.
        iou_threshold: IoU >= threshold matches (qfgaohao: 0.45).
    """

    def __init__(
        self,
        center_form_priors: Tensor,
        center_variance: float = 0.1,
        size_variance: float = 0.2,
        iou_threshold: float = 0.5,
    ) -> None:
        self.center_form_priors = center_form_priors
        self.corner_form_priors = center_form_to_corner_form(center_form_priors)
        self.variances = (center_variance, size_variance)
        self.iou_threshold = iou_threshold

    def __call__(self, gt_boxes: Tensor, gt_labels: Tensor) -> tuple[Tensor, Tensor]:
        """Locations (P, 4) and labels (P,) of one image."""
        boxes, labels = assign_priors(
            gt_boxes, gt_labels, self.corner_form_priors, self.iou_threshold
        )
        boxes = corner_form_to_center_form(boxes)
        return convert_boxes_to_locations(boxes, self.center_form_priors, *self.variances), labels


def hard_negative_mining(loss: Tensor, labels: Tensor, neg_pos_ratio: int) -> Tensor:
    """The (B, P) mask of positives and of the `neg_pos_ratio` x positives largest of `loss`."""
    positive = labels > 0
    num_neg = positive.long().sum(dim=1, keepdim=True) * neg_pos_ratio
    loss[positive] = -math.inf
    rank = loss.sort(dim=1, descending=True).indices.sort(dim=1).indices
    return positive | (rank < num_neg)


class MultiBoxLoss(nn.Module):
    """Returns `(regression, classification)`, each divided by the batch's positives.

    Args:
        neg_pos_ratio: negatives per positive.
    """

    def __init__(self, neg_pos_ratio: int = 3) -> None:
        super().__init__()
        self.neg_pos_ratio = neg_pos_ratio

    def forward(
        self, confidence: Tensor, predicted_locations: Tensor, labels: Tensor, gt_locations: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Computes the two losses.

        Args:
            confidence: (B, P, C) logits.
            predicted_locations: (B, P, 4) offsets.
            labels: (B, P) int64 from `SSDTargetTransform`.
            gt_locations: (B, P, 4) offsets from `SSDTargetTransform`.
        """
        with torch.no_grad():
            background_loss = -F.log_softmax(confidence, dim=2)[:, :, 0]
            selected = hard_negative_mining(background_loss, labels, self.neg_pos_ratio)
        classification = F.cross_entropy(confidence[selected], labels[selected], reduction="sum")
        positive = labels > 0
        regression = F.smooth_l1_loss(
            predicted_locations[positive], gt_locations[positive], reduction="sum"
        )
        num_pos = int(positive.sum())
        return regression / num_pos, classification / num_pos


class PostProcessor:
    """Per image and class: threshold, pixels, NMS; then the best `max_per_image`.

    Args:
        nms: boxes, scores, IoU threshold -> kept indices, best first.
        image_size: pixels a side.
        confidence_threshold: scores above it are candidates.
        nms_threshold: IoU at most this survives.
        max_per_class: results a class, -1 for no limit.
        max_per_image: results an image.
    """

    def __init__(
        self,
        nms: Nms,
        image_size: int = 300,
        confidence_threshold: float = 0.01,
        nms_threshold: float = 0.45,
        max_per_class: int = -1,
        max_per_image: int = 100,
    ) -> None:
        self.nms = nms
        self.image_size = image_size
        self.confidence_threshold = confidence_threshold
        self.nms_threshold = nms_threshold
        self.max_per_class = max_per_class
        self.max_per_image = max_per_image

    def __call__(
        self, batches_scores: Tensor, batches_boxes: Tensor
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """One `(boxes, labels, scores)` an image.

        Args:
            batches_scores: (B, P, C) scores, already through the softmax.
            batches_boxes: (B, P, 4) decoded corners in [0, 1].
        """
        return [
            self._detect(scores, boxes)
            for scores, boxes in zip(batches_scores, batches_boxes, strict=True)
        ]

    def _detect(self, image_scores: Tensor, image_boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = []
        for class_id in range(1, image_scores.size(1)):
            scores = image_scores[:, class_id]
            mask = scores > self.confidence_threshold
            scores = scores[mask]
            if scores.size(0) == 0:
                continue
            boxes = image_boxes[mask, :] * self.image_size
            keep = self.nms(boxes, scores, self.nms_threshold)
            if self.max_per_class > 0:
                keep = keep[: self.max_per_class]
            labels = torch.tensor([class_id] * keep.size(0), device=keep.device)
            found.append((boxes[keep], labels, scores[keep]))
        if not found:
            return torch.empty(0, 4), torch.empty(0), torch.empty(0)
        boxes, labels, scores = (torch.cat(part) for part in zip(*found, strict=True))
        if boxes.size(0) > self.max_per_image > 0:
            scores, keep = torch.topk(scores, k=self.max_per_image)
            boxes, labels = boxes[keep], labels[keep]
        return boxes, labels, scores
