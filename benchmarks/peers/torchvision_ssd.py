# SPDX-License-Identifier: BSD-3-Clause
"""torchvision's SSD: `ssd_matcher`, `compute_loss`, `postprocess_detections`.

Written anew to behave as torchvision.models.detection.ssd and its helpers at 0.28 do, so that a
machine without torchvision still has the comparison. Where torchvision is installed the benchmarks
time its own code and the tests compare it with this file.

Changed: functions where methods of the model stood, and the NMS is an argument (torchvision's is
compiled). Kept on purpose: pixels; one Python pass an image for matching and for the losses, one a
class for the candidates; the mining key is the cross-entropy with positives at -inf, so positives
count twice when 3 x positives exceeds the negatives; sums divided by max(1, positives); the
logarithm of the size clamped to log(1000 / 16); boxes clipped to the image before NMS.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
MAX_LOG_SCALE = math.log(1000.0 / 16)

BatchedNms = Callable[[Tensor, Tensor, Tensor, float], Tensor]


class CentreSize(NamedTuple):
    """Columns (n,) of boxes in centre-size form."""

    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor


def _centre_size(boxes: Tensor) -> CentreSize:
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return CentreSize(boxes[:, 0] + 0.5 * width, boxes[:, 1] + 0.5 * height, width, height)


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU (n, m) of corner boxes (n, 4) and (m, 4)."""
    area1 = (boxes1[:, 2] - boxes1[:, 0]) * (boxes1[:, 3] - boxes1[:, 1])
    area2 = (boxes2[:, 2] - boxes2[:, 0]) * (boxes2[:, 3] - boxes2[:, 1])
    left_top = torch.max(boxes1[:, None, :2], boxes2[:, :2])
    right_bottom = torch.min(boxes1[:, None, 2:], boxes2[:, 2:])
    sides = (right_bottom - left_top).clamp(min=0)
    inter = sides[:, :, 0] * sides[:, :, 1]
    return inter / (area1[:, None] + area2 - inter)


def encode_boxes(reference_boxes: Tensor, proposals: Tensor) -> Tensor:
    """Offsets (n, 4) of corner boxes from corner proposals."""
    wx, wy, ww, wh = WEIGHTS
    box, prior = _centre_size(reference_boxes), _centre_size(proposals)
    return torch.stack(
        (
            wx * (box.x - prior.x) / prior.width,
            wy * (box.y - prior.y) / prior.height,
            ww * torch.log(box.width / prior.width),
            wh * torch.log(box.height / prior.height),
        ),
        dim=1,
    )


def decode_boxes(rel_codes: Tensor, boxes: Tensor) -> Tensor:
    """Corner boxes (n, 4) of offsets from corner proposals, the exponential clamped."""
    wx, wy, ww, wh = WEIGHTS
    prior = _centre_size(boxes)
    dx, dy = rel_codes[:, 0] / wx, rel_codes[:, 1] / wy
    dw = torch.clamp(rel_codes[:, 2] / ww, max=MAX_LOG_SCALE)
    dh = torch.clamp(rel_codes[:, 3] / wh, max=MAX_LOG_SCALE)
    x, y = dx * prior.width + prior.x, dy * prior.height + prior.y
    half_width = 0.5 * (torch.exp(dw) * prior.width)
    half_height = 0.5 * (torch.exp(dh) * prior.height)
    return torch.stack((x - half_width, y - half_height, x + half_width, y + half_height), dim=1)


def ssd_matcher(match_quality_matrix: Tensor, threshold: float = 0.5) -> Tensor:
    """Object (P,) of each prior, -1 below the threshold; each object then takes its best prior.

    Args:
        match_quality_matrix: (n, P) IoU, n >= 1.
        threshold: IoU >= threshold matches.
    """
    best_iou, matches = match_quality_matrix.max(dim=0)
    matches[best_iou < threshold] = -1
    best_prior = match_quality_matrix.max(dim=1).indices
    claimants = torch.arange(best_prior.size(0), device=best_prior.device)
    matches[best_prior] = claimants  # on the CPU the last one wins
    return matches


def match_targets(
    targets: list[dict[str, Tensor]], anchors: list[Tensor], threshold: float = 0.5
) -> list[Tensor]:
    """`ssd_matcher` for every image; an image without objects is all background."""
    return [
        ssd_matcher(box_iou(target["boxes"], anchor), threshold)
        if target["boxes"].numel()
        else torch.full((anchor.size(0),), -1, device=anchor.device)
        for target, anchor in zip(targets, anchors, strict=True)
    ]


def compute_loss(
    targets: list[dict[str, Tensor]],
    head_outputs: dict[str, Tensor],
    anchors: list[Tensor],
    matched_idxs: list[Tensor],
    neg_to_pos_ratio: float = 3.0,
) -> dict[str, Tensor]:
    """The two losses.

    Args:
        targets: boxes (n, 4) in pixels and labels (n,) int64, one dict an image.
        head_outputs: "bbox_regression" (B, P, 4) and "cls_logits" (B, P, C).
        anchors: (P, 4) corners in pixels, one tensor an image.
        matched_idxs: (P,) from `ssd_matcher`, one tensor an image.
        neg_to_pos_ratio: negatives per positive.
    """
    cls_logits = head_outputs["cls_logits"]
    num_foreground = 0
    box_losses, classes = [], []
    for target, regression, anchor, matched in zip(
        targets, head_outputs["bbox_regression"], anchors, matched_idxs, strict=True
    ):
        foreground = torch.where(matched >= 0)[0]
        owner = matched[foreground]
        num_foreground += owner.numel()
        offsets = encode_boxes(target["boxes"][owner], anchor[foreground])
        box_losses.append(F.smooth_l1_loss(regression[foreground], offsets, reduction="sum"))
        image_classes = target["labels"].new_zeros(anchor.size(0))
        image_classes[foreground] = target["labels"][owner]
        classes.append(image_classes)
    cls_targets = torch.stack(classes)
    cls_loss = F.cross_entropy(
        cls_logits.view(-1, cls_logits.size(-1)), cls_targets.view(-1), reduction="none"
    ).view(cls_targets.size())

    positive = cls_targets > 0
    num_negative = neg_to_pos_ratio * positive.sum(1, keepdim=True)
    negative_loss = cls_loss.clone()
    negative_loss[positive] = -math.inf
    rank = negative_loss.sort(1, descending=True).indices.sort(1).indices
    hard = rank < num_negative
    n = max(1, num_foreground)
    return {
        "bbox_regression": torch.stack(box_losses).sum() / n,
        "classification": (cls_loss[positive].sum() + cls_loss[hard].sum()) / n,
    }


def postprocess_detections(
    head_outputs: dict[str, Tensor],
    image_anchors: list[Tensor],
    image_shapes: list[tuple[int, int]],
    batched_nms: BatchedNms,
    *,
    score_thresh: float = 0.01,
    topk_candidates: int = 400,
    nms_thresh: float = 0.45,
    detections_per_img: int = 200,
) -> list[dict[str, Tensor]]:
    """Boxes (n, 4) in pixels, scores (n,), labels (n,) of every image, best first.

    Args:
        head_outputs: "bbox_regression" (B, P, 4) and "cls_logits" (B, P, C).
        image_anchors: (P, 4) corners in pixels, one tensor an image.
        image_shapes: (height, width), one an image.
        batched_nms: boxes, scores, labels, IoU threshold -> kept indices, best first.
        score_thresh: scores above it are candidates.
        topk_candidates: candidates a class.
        nms_thresh: IoU at most this survives.
        detections_per_img: detections an image.
    """
    probabilities = F.softmax(head_outputs["cls_logits"], dim=-1)
    detections = []
    for codes, scores, anchors, shape in zip(
        head_outputs["bbox_regression"], probabilities, image_anchors, image_shapes, strict=True
    ):
        boxes = _clip(decode_boxes(codes, anchors), shape)
        found = []
        for label in range(1, scores.size(-1)):
            score = scores[:, label]
            candidates = score > score_thresh
            score, box = score[candidates], boxes[candidates]
            score, order = score.topk(min(topk_candidates, score.size(0)))
            found.append((box[order], score, torch.full_like(score, label, dtype=torch.int64)))
        all_boxes, all_scores, all_labels = (torch.cat(part) for part in zip(*found, strict=True))
        keep = batched_nms(all_boxes, all_scores, all_labels, nms_thresh)[:detections_per_img]
        detections.append(
            {"boxes": all_boxes[keep], "scores": all_scores[keep], "labels": all_labels[keep]}
        )
    return detections


def _clip(boxes: Tensor, shape: tuple[int, int]) -> Tensor:
    height, width = shape
    x = boxes[:, 0::2].clamp(min=0, max=width)
    y = boxes[:, 1::2].clamp(min=0, max=height)
    return torch.stack((x, y), dim=2).reshape(boxes.shape)
