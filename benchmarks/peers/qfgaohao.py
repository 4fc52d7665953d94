# SPDX-License-Identifier: BSD-3-Clause
"""qfgaohao/pytorch-ssd: the prediction path, `hard_nms` and `predict`.

Written anew to behave as https://github.com/qfgaohao/pytorch-ssd at 7a839cb does
(vision/utils/box_utils.py, vision/ssd/predictor.py). Its assignment, mining and loss are lufficc's,
operation for operation, with a matching threshold of 0.45
(`lufficc.SSDTargetTransform(priors, iou_threshold=0.45)`), so they are not repeated here.

Changed: `predict` takes the network's outputs instead of the network. Kept on purpose: 1e-5 in
every union, NMS in Python, no limit over all classes, one image a call.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.lufficc import (
    center_form_to_corner_form,
    convert_locations_to_boxes,
    iou_of,
)


def hard_nms(box_scores: Tensor, iou_threshold: float, candidate_size: int = 200) -> Tensor:
    """The kept rows of (n, 5) corners and score, best first; IoU <= threshold survives."""
    boxes, scores = box_scores[:, :4], box_scores[:, 4]
    picked: list[int] = []
    waiting = scores.sort(descending=True).indices[:candidate_size]
    while len(waiting) > 0:
        best, waiting = waiting[0], waiting[1:]
        picked.append(int(best.item()))
        iou = iou_of(boxes[waiting], boxes[best][None])
        waiting = waiting[iou <= iou_threshold]
    return box_scores[picked, :]


def predict(
    confidences: Tensor,
    locations: Tensor,
    priors: Tensor,
    *,
    image_size: tuple[int, int] = (300, 300),
    prob_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    candidate_size: int = 200,
) -> tuple[Tensor, Tensor, Tensor]:
    """Detections of one image.

    Args:
        confidences: (1, P, C) logits.
        locations: (1, P, 4) offsets.
        priors: (P, 4) centre-size.
        image_size: (height, width) in pixels.
        prob_threshold: scores above it are candidates.
        iou_threshold: IoU at most this survives.
        candidate_size: candidates a class.

    Returns:
        Boxes (n, 4) in pixels, labels (n,), scores (n,), class after class.
    """
    probabilities = F.softmax(confidences, dim=2)[0]
    boxes = center_form_to_corner_form(convert_locations_to_boxes(locations, priors, 0.1, 0.2))[0]
    picked, labels = [], []
    for class_index in range(1, probabilities.size(1)):
        probs = probabilities[:, class_index]
        mask = probs > prob_threshold
        probs = probs[mask]
        if probs.size(0) == 0:
            continue
        box_scores = torch.cat([boxes[mask, :], probs[:, None]], dim=1)
        kept = hard_nms(box_scores, iou_threshold, candidate_size)
        picked.append(kept)
        labels.extend([class_index] * kept.size(0))
    if not picked:
        return torch.empty(0, 4), torch.empty(0, dtype=torch.long), torch.empty(0)
    height, width = image_size
    rows = torch.cat(picked)
    scale = torch.tensor([width, height, width, height])
    return rows[:, :4] * scale, torch.tensor(labels), rows[:, 4]
