# SPDX-License-Identifier: BSD-3-Clause
"""NVIDIA DeepLearningExamples' SSD300: `DefaultBoxes`, `Encoder`, `Loss`.

Written anew to behave as PyTorch/Detection/SSD of
https://github.com/NVIDIA/DeepLearningExamples does (src/utils.py, src/model.py).

Changed: the encoder and the loss take any default boxes, and `scale_back_batch` leaves its inputs
alone, where the published one overwrites the network's output, which no repeated timing survives.

Kept on purpose: default boxes in (level, box, y, x) order; IoU strictly above 0.5 matches; dense
targets in centre-size form, background rows holding the default box; (B, K, P) layout; each image
divided by its own positives, then the mean over the batch; decoding with a score threshold of 0.05,
IoU below the criterion survives, results in ascending order of score; `encode` crashes without
objects (the loader leaves such images out).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DefaultBoxes:
    """Default boxes in both forms, and the scales their offsets are encoded with.

    Args:
        xywh: (P, 4) centre-size boxes in [0, 1].
        scale_xy: variance of the centre's offsets.
        scale_wh: variance of the size's offsets.
    """

    def __init__(self, xywh: Tensor, scale_xy: float = 0.1, scale_wh: float = 0.2) -> None:
        self.scale_xy = scale_xy
        self.scale_wh = scale_wh
        self.dboxes = xywh
        centre, half = xywh[:, :2], 0.5 * xywh[:, 2:]
        self.dboxes_ltrb = torch.cat([centre - half, centre + half], dim=1)

    def __call__(self, order: str = "ltrb") -> Tensor:
        """The boxes (P, 4) as "ltrb" corners or "xywh" centre-size."""
        return self.dboxes_ltrb if order == "ltrb" else self.dboxes


def dboxes300_coco() -> DefaultBoxes:
    """The 8732 boxes of SSD300 on COCO, box-major within each level: (level, box, y, x)."""
    sides = (21, 45, 99, 153, 207, 261, 315)
    levels = ((38, 8), (19, 16), (10, 32), (5, 64), (3, 100), (1, 300))
    ratios = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
    rows = []
    for index, (size, step) in enumerate(levels):
        small, large = sides[index] / 300, sides[index + 1] / 300
        shapes = [(small, small), (math.sqrt(small * large),) * 2]
        for ratio in ratios[index]:
            wide = (small * math.sqrt(ratio), small / math.sqrt(ratio))
            shapes += [wide, wide[::-1]]
        scale = 300 / step
        rows += [
            ((x + 0.5) / scale, (y + 0.5) / scale, w, h)
            for w, h in shapes
            for y in range(size)
            for x in range(size)
        ]
    return DefaultBoxes(torch.tensor(rows).clamp(min=0, max=1))


def calc_iou_tensor(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU (n, m) of corner boxes (n, 4) and (m, 4)."""
    n, m = boxes1.size(0), boxes2.size(0)
    boxes1 = boxes1[:, None].expand(n, m, 4)
    boxes2 = boxes2[None].expand(n, m, 4)
    left_top = torch.max(boxes1[..., :2], boxes2[..., :2])
    sides = torch.min(boxes1[..., 2:], boxes2[..., 2:]) - left_top
    sides[sides < 0] = 0
    inter = sides[..., 0] * sides[..., 1]
    sides1 = boxes1[..., 2:] - boxes1[..., :2]
    sides2 = boxes2[..., 2:] - boxes2[..., :2]
    area1, area2 = sides1[..., 0] * sides1[..., 1], sides2[..., 0] * sides2[..., 1]
    return inter / (area1 + area2 - inter)


class Encoder:
    """Dense targets for training, boxes from predictions.

    Args:
        dboxes: the default boxes.
    """

    def __init__(self, dboxes: DefaultBoxes) -> None:
        self.dboxes = dboxes(order="ltrb")
        self.dboxes_xywh = dboxes(order="xywh")
        self.nboxes = self.dboxes.size(0)
        self.scale_xy = dboxes.scale_xy
        self.scale_wh = dboxes.scale_wh

    def encode(
        self, bboxes_in: Tensor, labels_in: Tensor, criteria: float = 0.5
    ) -> tuple[Tensor, Tensor]:
        """Matches one image.

        Args:
            bboxes_in: (n, 4) corners in [0, 1].
            labels_in: (n,) int64, 1-based.
            criteria: IoU above it matches.

        Returns:
            (P, 4) centre-size box each default box answers for (itself if none), (P,) labels.
        """
        ious = calc_iou_tensor(bboxes_in, self.dboxes)
        best_iou, best_box = ious.max(dim=0)  # of each default box
        best_dbox = ious.max(dim=1).indices  # of each object
        best_iou.index_fill_(0, best_dbox, 2.0)
        best_box[best_dbox] = torch.arange(best_dbox.size(0), device=best_dbox.device)
        masks = best_iou > criteria
        labels = torch.zeros(self.nboxes, dtype=torch.long, device=labels_in.device)
        labels[masks] = labels_in[best_box[masks]]
        boxes = self.dboxes.clone()
        boxes[masks, :] = bboxes_in[best_box[masks], :]
        left_top, right_bottom = boxes[:, :2], boxes[:, 2:]
        return torch.cat([0.5 * (left_top + right_bottom), right_bottom - left_top], 1), labels

    def scale_back_batch(self, bboxes_in: Tensor, scores_in: Tensor) -> tuple[Tensor, Tensor]:
        """Corner boxes (B, P, 4) and softmax scores (B, P, C) of (B, 4, P) and (B, C, P)."""
        offsets = bboxes_in.permute(0, 2, 1)
        default_xy, default_wh = self.dboxes_xywh[:, :2], self.dboxes_xywh[:, 2:]
        centre = self.scale_xy * offsets[..., :2] * default_wh + default_xy
        half = 0.5 * ((self.scale_wh * offsets[..., 2:]).exp() * default_wh)
        boxes = torch.cat([centre - half, centre + half], dim=2)
        return boxes, F.softmax(scores_in.permute(0, 2, 1), dim=-1)

    def decode_batch(
        self, bboxes_in: Tensor, scores_in: Tensor, criteria: float = 0.45, max_output: int = 200
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """One `(boxes, labels, scores)` an image, ascending in score.

        Args:
            bboxes_in: (B, 4, P) offsets.
            scores_in: (B, C, P) logits.
            criteria: IoU below it survives.
            max_output: results an image.
        """
        bboxes, probs = self.scale_back_batch(bboxes_in, scores_in)
        return [
            self.decode_single(bbox, prob, criteria, max_output)
            for bbox, prob in zip(bboxes, probs, strict=True)
        ]

    def decode_single(
        self,
        bboxes_in: Tensor,  # (P, 4) corners
        scores_in: Tensor,  # (P, C) scores
        criteria: float,
        max_output: int,
        max_num: int = 200,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Threshold 0.05, the best `max_num` of each class, Python NMS, the best `max_output`."""
        found_boxes, found_labels, found_scores = [], [], []
        for label, score in enumerate(scores_in.unbind(1)):
            if label == 0:
                continue
            mask = score > 0.05
            bboxes, score = bboxes_in[mask, :], score[mask]
            if score.size(0) == 0:
                continue
            waiting = score.sort(dim=0).indices[-max_num:]  # ascending: the best is the last
            candidates = []
            while waiting.numel() > 0:
                best = int(waiting[-1].item())
                iou = calc_iou_tensor(bboxes[waiting, :], bboxes[best, :][None]).squeeze(1)
                waiting = waiting[iou < criteria]  # the best leaves too: its own IoU is 1
                candidates.append(best)
            found_boxes.append(bboxes[candidates, :])
            found_scores.append(score[candidates])
            found_labels.extend([label] * len(candidates))
        if not found_boxes:
            return torch.empty(0), torch.empty(0), torch.empty(0)
        scores = torch.cat(found_scores)
        best_last = scores.sort(dim=0).indices[-max_output:]
        boxes = torch.cat(found_boxes)
        labels = torch.tensor(found_labels, device=boxes.device)
        return boxes[best_last, :], labels[best_last], scores[best_last]


class Loss(nn.Module):
    """Smooth-L1 and cross-entropy in one number, mean over images of each image's own mean.

    Args:
        dboxes: the default boxes.
    """

    def __init__(self, dboxes: DefaultBoxes) -> None:
        super().__init__()
        self.scale_xy = 1.0 / dboxes.scale_xy
        self.scale_wh = 1.0 / dboxes.scale_wh
        self.dboxes = nn.Parameter(
            dboxes(order="xywh").transpose(0, 1).unsqueeze(0), requires_grad=False
        )

    def _loc_vec(self, loc: Tensor) -> Tensor:
        """Offsets (B, 4, P) of centre-size boxes (B, 4, P) from the default boxes."""
        default_xy, default_wh = self.dboxes[:, :2], self.dboxes[:, 2:]
        gxy = self.scale_xy * (loc[:, :2] - default_xy) / default_wh
        gwh = self.scale_wh * (loc[:, 2:] / default_wh).log()
        return torch.cat((gxy, gwh), dim=1).contiguous()

    def forward(self, ploc: Tensor, plabel: Tensor, gloc: Tensor, glabel: Tensor) -> Tensor:
        """The loss, a scalar.

        Args:
            ploc: (B, 4, P) predicted offsets.
            plabel: (B, C, P) predicted logits.
            gloc: (B, 4, P) matched boxes, centre-size.
            glabel: (B, P) int64 labels, 0 for background.
        """
        mask = glabel > 0
        pos_num = mask.sum(dim=1)
        sl1 = F.smooth_l1_loss(ploc, self._loc_vec(gloc), reduction="none").sum(dim=1)
        sl1 = (mask.float() * sl1).sum(dim=1)

        con = F.cross_entropy(plabel, glabel, reduction="none")
        con_neg = con.clone()
        con_neg[mask] = 0
        con_rank = con_neg.sort(dim=1, descending=True).indices.sort(dim=1).indices
        neg_num = torch.clamp(3 * pos_num, max=mask.size(1)).unsqueeze(-1)
        closs = (con * (mask | (con_rank < neg_num)).float()).sum(dim=1)

        total = (sl1 + closs) * (pos_num > 0).float()
        return (total / pos_num.float().clamp(min=1e-6)).mean(dim=0)
