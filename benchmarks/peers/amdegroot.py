# SPDX-License-Identifier: BSD-3-Clause
"""amdegroot/ssd.pytorch, the most copied SSD: `match`, `MultiBoxLoss`, `nms`, `Detect`.

Written anew to behave as https://github.com/amdegroot/ssd.pytorch at 5b0b77f does, operation for
operation (layers/box_utils.py, modules/multibox_loss.py, functions/detection.py).

Changed, because the published code no longer runs: the mining key takes its per-image shape before
the positives are masked, the sums are divided out of place, `Detect` is a plain class where a
legacy autograd function stood, and NMS indexes where `out=` buffers were resized. Options without
any effect (`prior_for_matching`, `bkg_label`, ...) are gone.

Kept on purpose: Python loops over images and objects; a log-sum-exp shifted by one maximum of the
whole batch; two full sorts to mine; NaN when a batch has no positive; a crash in `match` for an
image without objects; a cross-class top-k in `Detect` that changes nothing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VARIANCE = (0.1, 0.2)


def point_form(boxes: Tensor) -> Tensor:
    """Centre-size (n, 4) boxes as corners."""
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return torch.cat((centre - half, centre + half), 1)


def jaccard(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """IoU (a, b) of corner boxes (a, 4) and (b, 4); 0 / 0 is NaN."""
    left_top = torch.max(boxes_a[:, None, :2], boxes_b[None, :, :2])
    right_bottom = torch.min(boxes_a[:, None, 2:], boxes_b[None, :, 2:])
    sides = torch.clamp(right_bottom - left_top, min=0)
    inter = sides[:, :, 0] * sides[:, :, 1]
    area_a = (boxes_a[:, 2] - boxes_a[:, 0]) * (boxes_a[:, 3] - boxes_a[:, 1])
    area_b = (boxes_b[:, 2] - boxes_b[:, 0]) * (boxes_b[:, 3] - boxes_b[:, 1])
    return inter / (area_a[:, None] + area_b[None, :] - inter)


def match(
    threshold: float,
    truths: Tensor,  # (n, 4) float32 corners
    priors: Tensor,  # (P, 4) float32 centre-size
    variances: tuple[float, float],
    labels: Tensor,  # (n,) 0-based foreground labels
    loc_t: Tensor,  # (B, P, 4) float32, row `idx` is filled
    conf_t: Tensor,  # (B, P) int64, row `idx` is filled
    idx: int,
) -> None:
    """Writes the offsets and the label of every prior of image `idx`; IoU >= threshold matches."""
    overlaps = jaccard(truths, point_form(priors))
    best_prior = overlaps.max(1).indices  # of each object
    best_overlap, best_truth = overlaps.max(0)  # of each prior
    best_overlap.index_fill_(0, best_prior, 2)  # a claimed prior passes any threshold
    for j in range(best_prior.size(0)):
        best_truth[best_prior[j]] = j  # of several claimants the last object wins
    conf = labels[best_truth] + 1
    conf[best_overlap < threshold] = 0
    loc_t[idx] = encode(truths[best_truth], priors, variances)
    conf_t[idx] = conf


def encode(matched: Tensor, priors: Tensor, variances: tuple[float, float]) -> Tensor:
    """Offsets (P, 4) of corner boxes (P, 4) from centre-size priors."""
    centre = (matched[:, :2] + matched[:, 2:]) / 2 - priors[:, :2]
    centre = centre / (variances[0] * priors[:, 2:])
    size = (matched[:, 2:] - matched[:, :2]) / priors[:, 2:]
    return torch.cat([centre, torch.log(size) / variances[1]], 1)


def decode(loc: Tensor, priors: Tensor, variances: tuple[float, float]) -> Tensor:
    """Corner boxes (P, 4) of offsets; the exponential is not clamped."""
    centre = priors[:, :2] + loc[:, :2] * variances[0] * priors[:, 2:]
    size = priors[:, 2:] * torch.exp(loc[:, 2:] * variances[1])
    left_top = centre - size / 2
    return torch.cat((left_top, size + left_top), 1)


def log_sum_exp(x: Tensor) -> Tensor:
    """Log-sum-exp (n, 1) of rows, shifted by the maximum of the batch, so low rows underflow."""
    x_max = x.detach().max()
    return torch.log(torch.sum(torch.exp(x - x_max), 1, keepdim=True)) + x_max


class MultiBoxLoss(nn.Module):
    """Matches, mines 3:1 and returns `(loss_l, loss_c)`, each divided by the batch's positives.

    Args:
        num_classes: C, with background.
        overlap_thresh: IoU >= threshold matches.
        neg_pos: negatives per positive.
    """

    def __init__(self, num_classes: int, overlap_thresh: float = 0.5, neg_pos: int = 3) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.threshold = overlap_thresh
        self.negpos_ratio = neg_pos

    def forward(
        self, predictions: tuple[Tensor, Tensor, Tensor], targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Computes the two losses.

        Args:
            predictions: loc (B, P, 4), conf (B, P, C), priors (P, 4) centre-size, all float32.
            targets: one (n, 5) tensor an image: corners and the 0-based label.
        """
        loc, conf, priors = predictions
        loc_t = torch.empty(loc.shape, device=loc.device)
        conf_t = torch.empty(loc.shape[:2], dtype=torch.long, device=loc.device)
        for idx, target in enumerate(targets):
            truths, labels = target[:, :-1], target[:, -1]
            match(self.threshold, truths, priors, VARIANCE, labels, loc_t, conf_t, idx)

        positive = conf_t > 0
        rows = positive.unsqueeze(2).expand_as(loc)
        loss_l = F.smooth_l1_loss(loc[rows].view(-1, 4), loc_t[rows].view(-1, 4), reduction="sum")

        selected = positive | self._hard_negatives(conf, conf_t, positive)
        logits = conf[selected.unsqueeze(2).expand_as(conf)].view(-1, self.num_classes)
        loss_c = F.cross_entropy(logits, conf_t[selected], reduction="sum")

        n = positive.sum().float()
        return loss_l / n, loss_c / n

    def _hard_negatives(self, conf: Tensor, conf_t: Tensor, positive: Tensor) -> Tensor:
        """The (B, P) mask of rank < min(3 positives, P - 1), positives ranking with key 0."""
        rows = conf.view(-1, self.num_classes)
        key = log_sum_exp(rows) - rows.gather(1, conf_t.view(-1, 1))
        key = key.view(positive.shape)
        key[positive] = 0
        rank = key.sort(1, descending=True).indices.sort(1).indices
        num_pos = positive.long().sum(1, keepdim=True)
        return rank < torch.clamp(self.negpos_ratio * num_pos, max=positive.size(1) - 1)


def nms(
    boxes: Tensor, scores: Tensor, overlap: float = 0.5, top_k: int = 200
) -> tuple[Tensor, int]:
    """Greedy NMS over the `top_k` best of (n, 4) boxes, one kept box a Python iteration.

    Returns:
        keep (n,) int64 indices, best first, of which the first `count` count; count.
    """
    keep = torch.zeros(scores.size(0), dtype=torch.long, device=scores.device)
    x1, y1, x2, y2 = boxes.unbind(1)
    area = (x2 - x1) * (y2 - y1)
    waiting = scores.sort(0).indices[-top_k:]  # ascending: the best is the last
    count = 0
    while waiting.numel() > 0:
        i = waiting[-1]
        keep[count] = i
        count += 1
        waiting = waiting[:-1]
        width = torch.clamp(x2[waiting], max=x2[i]) - torch.clamp(x1[waiting], min=x1[i])
        height = torch.clamp(y2[waiting], max=y2[i]) - torch.clamp(y1[waiting], min=y1[i])
        inter = torch.clamp(width, min=0.0) * torch.clamp(height, min=0.0)
        iou = inter / ((area[waiting] - inter) + area[i])
        waiting = waiting[iou.le(overlap)]
    return keep, count


class Detect:
    """Decodes and suppresses per image and class into a zero-padded (B, C, top_k, 5) tensor.

    Args:
        num_classes: C, with background.
        top_k: candidates, and so results, a class.
        conf_thresh: scores above it are candidates.
        nms_thresh: IoU at most this survives.
    """

    def __init__(
        self,
        num_classes: int,
        top_k: int = 200,
        conf_thresh: float = 0.01,
        nms_thresh: float = 0.45,
    ) -> None:
        self.num_classes = num_classes
        self.top_k = top_k
        self.conf_thresh = conf_thresh
        self.nms_thresh = nms_thresh

    def __call__(self, loc: Tensor, conf: Tensor, priors: Tensor) -> Tensor:
        """Detects.

        Args:
            loc: (B, P, 4) offsets.
            conf: (B, P, C) scores, already through the softmax.
            priors: (P, 4) centre-size.

        Returns:
            (B, C, top_k, 5): score and corners, best first, zeros behind; class 0 stays zero.
        """
        output = torch.zeros(loc.size(0), self.num_classes, self.top_k, 5, device=loc.device)
        by_class = conf.transpose(2, 1)
        for i in range(loc.size(0)):
            decoded = decode(loc[i], priors, VARIANCE)
            scores_of = by_class[i].clone()
            for cl in range(1, self.num_classes):
                mask = scores_of[cl].gt(self.conf_thresh)
                scores = scores_of[cl][mask]
                if scores.size(0) == 0:
                    continue
                boxes = decoded[mask.unsqueeze(1).expand_as(decoded)].view(-1, 4)
                keep, count = nms(boxes, scores, self.nms_thresh, self.top_k)
                keep = keep[:count]
                output[i, cl, :count] = torch.cat((scores[keep].unsqueeze(1), boxes[keep]), 1)
        flat = output.view(loc.size(0), -1, 5)
        rank = flat[:, :, 0].sort(1, descending=True).indices.sort(1).indices
        flat[rank < self.top_k].fill_(0)  # fills a copy: meant as a limit, without effect
        return output
