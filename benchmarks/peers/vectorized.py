# SPDX-License-Identifier: BSD-3-Clause
"""The naive loss without a loop: what a careful user writes in PyTorch today.

Nobody's in particular. Targets are padded to one number of objects an image, every step runs on the
whole batch, and every intermediate is dense: (B, G, P) overlaps, (B, P, C) log-probabilities, two
sorts. It never asks the host for a shape, so `torch.compile` takes it whole.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

VARIANCES = (0.1, 0.2)


def multibox_loss(
    deltas: Tensor,
    logits: Tensor,
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    *,
    iou_threshold: float = 0.5,
    ratio: int = 3,
) -> tuple[Tensor, Tensor]:
    """The MultiBox losses, divided by max(1, positives of the batch).

    Args:
        deltas: (B, P, 4) offsets.
        logits: (B, P, C).
        priors: (P, 4) corners.
        boxes: (B, G, 4) corners, rows of padding zero.
        labels: (B, G) int64, 0 for padding.
        iou_threshold: IoU >= threshold matches.
        ratio: negatives per positive.
    """
    owner, positive = match(priors, boxes, labels, iou_threshold)
    truth = boxes.gather(1, owner.unsqueeze(2).expand(-1, -1, 4))
    classes = torch.where(positive, labels.gather(1, owner), 0)

    residual = F.smooth_l1_loss(deltas, encode(truth, priors), reduction="none").sum(2)
    box_loss = torch.where(positive, residual, 0).sum()

    loss = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none")
    loss = loss.view(classes.shape)
    key = loss.detach().masked_fill(positive, -torch.inf)
    rank = key.argsort(1, descending=True).argsort(1)
    hard = rank < ratio * positive.sum(1, keepdim=True)
    class_loss = torch.where(positive | hard, loss, 0).sum()

    n = positive.sum().clamp(min=1)
    return box_loss / n, class_loss / n


def match(
    priors: Tensor, boxes: Tensor, labels: Tensor, iou_threshold: float
) -> tuple[Tensor, Tensor]:
    """The object (B, P) of each prior, and whether it is positive (B, P)."""
    real = labels > 0
    iou = box_iou(boxes, priors).masked_fill(~real.unsqueeze(2), -1)  # (B, G, P)
    best, owner = iou.max(1)
    # Claims: the greatest index of an object, so the last one wins; padding claims nothing.
    index = torch.arange(boxes.size(1), device=boxes.device)
    claimant = torch.where(real, index, -1)
    claim = torch.full_like(owner, -1).scatter_reduce(1, iou.argmax(2), claimant, "amax")
    return torch.where(claim >= 0, claim, owner), (best >= iou_threshold) | (claim >= 0)


def box_iou(boxes: Tensor, priors: Tensor) -> Tensor:
    """IoU (B, G, P) of corner boxes (B, G, 4) and (P, 4)."""
    boxes = boxes.unsqueeze(2)
    left_top = torch.max(boxes[..., :2], priors[:, :2])
    right_bottom = torch.min(boxes[..., 2:], priors[:, 2:])
    inter = (right_bottom - left_top).clamp(min=0).prod(3)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(3)
    return inter / (area + (priors[:, 2:] - priors[:, :2]).prod(1) - inter)


def encode(boxes: Tensor, priors: Tensor) -> Tensor:
    """Offsets (B, P, 4) of corner boxes from corner priors; padding gives -inf, never selected."""
    size = priors[:, 2:] - priors[:, :2]
    centre = (boxes[..., :2] + boxes[..., 2:] - priors[:, :2] - priors[:, 2:]) / 2 / size
    scale = torch.log((boxes[..., 2:] - boxes[..., :2]) / size)
    return torch.cat([centre / VARIANCES[0], scale / VARIANCES[1]], 2)
