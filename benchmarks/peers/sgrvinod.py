# SPDX-License-Identifier: BSD-3-Clause
"""sgrvinod's PyTorch tutorial: `MultiBoxLoss` and `detect_objects`.

Written anew to behave as https://github.com/sgrvinod/a-PyTorch-Tutorial-to-Object-Detection at
5d5b759 does (model.py, utils.py).

Changed: `detect_objects` is a function of the priors instead of a method, and masks are boolean
where old versions used bytes. Kept on purpose: plain L1 averaged over 4 x positives (a quarter of
the others' weight); the losses as one number; a full IoU matrix in NMS; a background box for an
image without detections; NaN when a batch has no positive; a crash for an image without objects.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def xy_to_cxcy(xy: Tensor) -> Tensor:
    """Corner boxes (n, 4) as centre and size."""
    return torch.cat([(xy[:, 2:] + xy[:, :2]) / 2, xy[:, 2:] - xy[:, :2]], 1)


def cxcy_to_xy(cxcy: Tensor) -> Tensor:
    """Centre-size boxes (n, 4) as corners."""
    half = cxcy[:, 2:] / 2
    return torch.cat([cxcy[:, :2] - half, cxcy[:, :2] + half], 1)


def cxcy_to_gcxgcy(cxcy: Tensor, priors_cxcy: Tensor) -> Tensor:
    """Offsets (n, 4) of centre-size boxes; 10 and 5 are the inverses of the variances."""
    centre = (cxcy[:, :2] - priors_cxcy[:, :2]) / (priors_cxcy[:, 2:] / 10)
    return torch.cat([centre, torch.log(cxcy[:, 2:] / priors_cxcy[:, 2:]) * 5], 1)


def gcxgcy_to_cxcy(gcxgcy: Tensor, priors_cxcy: Tensor) -> Tensor:
    """Centre-size boxes (n, 4) of offsets; the exponential is not clamped."""
    centre = gcxgcy[:, :2] * priors_cxcy[:, 2:] / 10 + priors_cxcy[:, :2]
    return torch.cat([centre, torch.exp(gcxgcy[:, 2:] / 5) * priors_cxcy[:, 2:]], 1)


def find_jaccard_overlap(set_1: Tensor, set_2: Tensor) -> Tensor:
    """IoU (n1, n2) of corner boxes (n1, 4) and (n2, 4)."""
    lower = torch.max(set_1[:, None, :2], set_2[None, :, :2])
    upper = torch.min(set_1[:, None, 2:], set_2[None, :, 2:])
    sides = torch.clamp(upper - lower, min=0)
    inter = sides[:, :, 0] * sides[:, :, 1]
    area_1 = (set_1[:, 2] - set_1[:, 0]) * (set_1[:, 3] - set_1[:, 1])
    area_2 = (set_2[:, 2] - set_2[:, 0]) * (set_2[:, 3] - set_2[:, 1])
    return inter / (area_1[:, None] + area_2[None, :] - inter)


class MultiBoxLoss(nn.Module):
    """Matches, mines and returns `conf_loss + alpha * loc_loss`.

    Args:
        priors_cxcy: (P, 4) centre-size.
        threshold: IoU >= threshold matches.
        neg_pos_ratio: negatives per positive.
        alpha: weight of the box loss.
    """

    def __init__(
        self,
        priors_cxcy: Tensor,
        threshold: float = 0.5,
        neg_pos_ratio: int = 3,
        alpha: float = 1.0,
    ) -> None:
        super().__init__()
        self.priors_cxcy = priors_cxcy
        self.priors_xy = cxcy_to_xy(priors_cxcy)
        self.threshold = threshold
        self.neg_pos_ratio = neg_pos_ratio
        self.alpha = alpha

    def forward(
        self,
        predicted_locs: Tensor,
        predicted_scores: Tensor,
        boxes: list[Tensor],
        labels: list[Tensor],
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            predicted_locs: (B, P, 4) offsets.
            predicted_scores: (B, P, C) logits.
            boxes: (n, 4) corners in [0, 1], one tensor an image.
            labels: (n,) int64, 1-based, one tensor an image.
        """
        device = predicted_locs.device
        true_locs = torch.zeros(predicted_locs.shape, device=device)
        true_classes = torch.zeros(predicted_locs.shape[:2], dtype=torch.long, device=device)
        for i in range(predicted_locs.size(0)):
            true_locs[i], true_classes[i] = self._match(boxes[i], labels[i])
        positive = true_classes != 0
        loc_loss = F.l1_loss(predicted_locs[positive], true_locs[positive])
        return self._conf_loss(predicted_scores, true_classes) + self.alpha * loc_loss

    def _match(self, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets (P, 4) and classes (P,) of one image; of several claimants the last wins."""
        overlap = find_jaccard_overlap(boxes, self.priors_xy)
        overlap_of_prior, object_of_prior = overlap.max(dim=0)
        prior_of_object = overlap.max(dim=1).indices
        object_of_prior[prior_of_object] = torch.arange(boxes.size(0), device=boxes.device)
        overlap_of_prior[prior_of_object] = 1.0
        classes = labels[object_of_prior]
        classes[overlap_of_prior < self.threshold] = 0
        return cxcy_to_gcxgcy(xy_to_cxcy(boxes[object_of_prior]), self.priors_cxcy), classes

    def _conf_loss(self, scores: Tensor, true_classes: Tensor) -> Tensor:
        """Cross-entropy of positives and hardest negatives, divided by the batch's positives."""
        positive = true_classes != 0
        n_positives = positive.sum(dim=1)
        loss = F.cross_entropy(
            scores.view(-1, scores.size(2)), true_classes.view(-1), reduction="none"
        ).view(true_classes.shape)
        negative_loss = loss.clone()
        negative_loss[positive] = 0.0
        negative_loss = negative_loss.sort(dim=1, descending=True).values
        ranks = torch.arange(loss.size(1), device=loss.device)[None].expand_as(negative_loss)
        hard = ranks < (self.neg_pos_ratio * n_positives)[:, None]
        return (negative_loss[hard].sum() + loss[positive].sum()) / n_positives.sum().float()


def detect_objects(
    predicted_locs: Tensor,
    predicted_scores: Tensor,
    priors_cxcy: Tensor,
    min_score: float = 0.01,
    max_overlap: float = 0.45,
    top_k: int = 200,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Detections of a batch.

    Args:
        predicted_locs: (B, P, 4) offsets.
        predicted_scores: (B, P, C) logits.
        priors_cxcy: (P, 4) centre-size.
        min_score: scores above it are candidates.
        max_overlap: IoU at most this survives.
        top_k: detections an image.

    Returns:
        Boxes (n, 4) in [0, 1], labels (n,) and scores (n,), one of each an image.
    """
    scores = F.softmax(predicted_scores, dim=2)
    all_boxes, all_labels, all_scores = [], [], []
    for locs, image_scores in zip(predicted_locs, scores, strict=True):
        decoded = cxcy_to_xy(gcxgcy_to_cxcy(locs, priors_cxcy))
        boxes, labels, kept_scores = _detect_image(decoded, image_scores, min_score, max_overlap)
        if kept_scores.size(0) > top_k:
            kept_scores, order = kept_scores.sort(dim=0, descending=True)
            kept_scores, order = kept_scores[:top_k], order[:top_k]
            boxes, labels = boxes[order], labels[order]
        all_boxes.append(boxes)
        all_labels.append(labels)
        all_scores.append(kept_scores)
    return all_boxes, all_labels, all_scores


def _detect_image(
    decoded: Tensor, scores: Tensor, min_score: float, max_overlap: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Survivors of every class of one image, class after class."""
    found = []
    for c in range(1, scores.size(1)):
        class_scores = scores[:, c]
        qualified = class_scores > min_score
        n_qualified = int(qualified.sum().item())
        if n_qualified == 0:
            continue
        class_scores, order = class_scores[qualified].sort(dim=0, descending=True)
        class_boxes = decoded[qualified][order]
        overlap = find_jaccard_overlap(class_boxes, class_boxes)
        suppress = torch.zeros(n_qualified, dtype=torch.bool, device=scores.device)
        for box in range(n_qualified):
            if suppress[box]:
                continue
            suppress = suppress | (overlap[box] > max_overlap)
            suppress[box] = False  # its overlap with itself is 1
        kept = ~suppress
        labels = torch.tensor([c] * int(kept.sum().item()), device=scores.device)
        found.append((class_boxes[kept], labels, class_scores[kept]))
    if not found:
        return torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([0]), torch.tensor([0.0])
    boxes, labels, kept_scores = (torch.cat(part) for part in zip(*found, strict=True))
    return boxes, labels, kept_scores
