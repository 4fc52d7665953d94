# SPDX-License-Identifier: BSD-3-Clause
"""Which prior answers for which object, and which priors are hard negatives, in plain PyTorch.

The definitions behind the operators `match` and `mine`; `multibox_loss` is held to both. They are
written to be read, not to be fast: a dense IoU matrix, loops over objects, full sorts.
"""

import itertools

import torch
from torch import Tensor

from ssd_fast.boxes import box_area, box_iof, box_iou

__all__ = [
    "BACKGROUND",
    "HARD_NEGATIVE",
    "IGNORED",
    "IGNORE_LABEL",
    "checked_matches",
    "ignore_regions",
    "match_batch",
    "match_image",
    "mine_batch",
    "round_to_float32",
    "valid_objects",
]

BACKGROUND = -1
IGNORED = -2
HARD_NEGATIVE = -3

IGNORE_LABEL = -1
"""Label of an object that is a region to ignore: a crowd, or one too difficult to train on."""


def round_to_float32(value: float) -> float:
    """The float32 nearest to ``value``: thresholds are compared in the precision of the boxes."""
    return float(torch.tensor(value, dtype=torch.float32, device="cpu"))


def valid_objects(boxes: Tensor) -> Tensor:
    """Which boxes can match at all.

    Args:
        boxes: (N, 4) corners.

    Returns:
        (N,) bool: the area is finite and positive.
    """
    area = box_area(boxes)
    return area.isfinite() & (area > 0)


def match_batch(
    priors: Tensor,
    boxes: Tensor,
    offsets: Tensor,
    valid: Tensor,
    *,
    iou_threshold: float,
    low_threshold: float | None,
    strict: bool,
    assign: str,
) -> Tensor:
    """Matches each image of a batch: `match_image` on the rows that ``offsets`` gives it.

    Args:
        priors: (P, 4) corners.
        boxes: (N, 4) corners of all images.
        offsets: (B + 1,) int64; image i owns rows ``offsets[i]:offsets[i + 1]``, clamped to
            [0, N].
        valid: (N,) bool, the objects that may match.
        iou_threshold: see `match_image`.
        low_threshold: see `match_image`.
        strict: see `match_image`.
        assign: see `match_image`.

    Returns:
        (B, P) int32.
    """
    rows = offsets.clamp(0, boxes.size(0)).tolist()
    images = [
        match_image(
            priors,
            boxes[begin:end],
            valid[begin:end],
            iou_threshold=iou_threshold,
            low_threshold=low_threshold,
            strict=strict,
            assign=assign,
        )
        for begin, end in itertools.pairwise(rows)
    ]
    if not images:
        return torch.empty((0, priors.size(0)), dtype=torch.int32, device=priors.device)
    return torch.stack(images)


def match_image(
    priors: Tensor,
    boxes: Tensor,
    valid: Tensor,
    *,
    iou_threshold: float,
    low_threshold: float | None,
    strict: bool,
    assign: str,
) -> Tensor:
    """Matches the priors of one image to its objects (SSD paper, section 2.2, matching strategy).

    Args:
        priors: (P, 4) corners.
        boxes: (N, 4) corners.
        valid: (N,) bool, the objects that may match.
        iou_threshold: least IoU of a match, rounded to float32.
        low_threshold: least IoU of a prior that is ignored instead of background; None for no
            such band.
        strict: a match needs more than the threshold, not just as much.
        assign: how objects claim their best prior: "last", "bipartite" or "none".

    Returns:
        (P,) int32, the object of each prior, -1 for background, -2 for ignored.
    """
    matched = torch.full((priors.size(0),), BACKGROUND, dtype=torch.int32, device=priors.device)
    if not bool(valid.any()) or priors.size(0) == 0:
        return matched
    iou = box_iou(priors, boxes)
    best, best_object = iou.masked_fill(~valid, -1).max(dim=1)
    threshold = round_to_float32(iou_threshold)
    positive = best > threshold if strict else best >= threshold
    if low_threshold is not None:
        matched[(best >= round_to_float32(low_threshold)) & ~positive] = IGNORED
    matched[positive] = best_object[positive].to(torch.int32)
    if assign == "last":
        for n in valid.nonzero().flatten().tolist():
            overlap, prior = iou[:, n].max(dim=0)
            if overlap > 0:
                matched[prior] = n
    elif assign == "bipartite":
        _claim_bipartite(iou.masked_fill(~valid, 0), matched)
    return matched


def _claim_bipartite(iou: Tensor, matched: Tensor) -> None:
    """Gives each object a prior of its own, greedily by the globally best pair (as Caffe's SSD).

    Args:
        iou: (P, N) overlaps, consumed.
        matched: (P,) int32, overwritten where an object claims a prior.
    """
    for _ in range(min(iou.shape)):
        # Flat order is prior-major: of equal pairs the lowest prior, then the lowest object.
        overlap, pair = iou.flatten().max(dim=0)
        if not overlap > 0:
            return
        prior, n = divmod(int(pair), iou.size(1))
        matched[prior] = n
        iou[prior, :] = 0
        iou[:, n] = 0


def checked_matches(matches: Tensor, offsets: Tensor, valid: Tensor) -> Tensor:
    """Matches that were made elsewhere, as far as they fit the objects.

    Args:
        matches: (B, P) int32 or int64, the object of each prior within its image, -1 background,
            -2 ignored.
        offsets: (B + 1,) int64; image i owns rows ``offsets[i]:offsets[i + 1]``, clamped to
            [0, N].
        valid: (N,) bool, the objects that may match.

    Returns:
        (B, P) int32; a number that fits no valid object of its image has become ignored.
    """
    rows = offsets.clamp(0, valid.size(0)).unsqueeze(1)
    fits = (matches >= 0) & (matches < rows[1:] - rows[:-1])
    row = (matches + rows[:-1]).where(fits, 0)
    # One more, that is no object, so that there is a row 0 to look at.
    fits &= torch.nn.functional.pad(valid, (0, 1))[row]
    known = fits | (matches == BACKGROUND)
    return matches.where(known, IGNORED).to(torch.int32)


def ignore_regions(
    matched: Tensor,
    priors: Tensor,
    boxes: Tensor,
    offsets: Tensor,
    regions: Tensor,
    threshold: float,
) -> Tensor:
    """Takes from the background what lies in a region to ignore (a crowd, a difficult object).

    Args:
        matched: (B, P) int32, as `match_batch` returns it.
        priors: (P, 4) corners.
        boxes: (N, 4) corners of all images.
        offsets: (B + 1,) int64, see `match_batch`.
        regions: (N,) bool, the boxes that are such regions.
        threshold: least share of a prior's area inside one region, rounded to float32.

    Returns:
        (B, P) int32: -2, ignored, where a background prior reaches the threshold.
    """
    rows = offsets.clamp(0, boxes.size(0)).tolist()
    result = matched.clone()
    for image, (begin, end) in enumerate(itertools.pairwise(rows)):
        inside = box_iof(priors, boxes[begin:end][regions[begin:end]])
        inside = (inside >= round_to_float32(threshold)).any(dim=1)
        result[image, inside & (matched[image] == BACKGROUND)] = IGNORED
    return result


def mine_batch(loss: Tensor, match: Tensor, *, ratio: float, min_negatives: int) -> Tensor:
    """Selects the hardest negatives of each image (SSD paper, section 2.2, 3:1 by default).

    Args:
        loss: (B, P) float, the key; NaN is the largest, -0.0 equals 0.0.
        match: (B, P) int32, >= 0 positive, -1 candidate, anything else neither.
        ratio: negatives for each positive.
        min_negatives: least number of negatives of an image, as far as it has candidates.

    Returns:
        (B, P) bool, the ``min(max(ceil(ratio * positives), min_negatives), candidates)``
        candidates with the largest loss, the lowest prior first among equals.
    """
    candidate = match == BACKGROUND
    positives = (match >= 0).sum(dim=1, keepdim=True)
    share = torch.tensor(ratio, dtype=torch.float32, device=loss.device) * positives.float()
    wanted = share.ceil().double().clamp(min=min_negatives)
    # Adding zero turns -0.0 into 0.0; a stable sort keeps the lowest prior first among equals.
    order = torch.sort(loss + 0.0, dim=1, descending=True, stable=True).indices
    candidate_in_order = candidate.gather(1, order)
    rank = candidate_in_order.cumsum(dim=1) - 1
    chosen = candidate_in_order & (rank < wanted)
    return torch.zeros_like(chosen).scatter(1, order, chosen)
