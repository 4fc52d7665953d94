# SPDX-License-Identifier: BSD-3-Clause
"""Comparison of detections, for tests and benchmarks: what `testing` is to the other operators."""

from collections.abc import Callable

import torch
from torch import Tensor

from ssd_fast.boxes import overlaps_of
from ssd_fast.detections import Detections
from ssd_fast.suppression import distance_overlaps
from ssd_fast.testing import DECISION_BAND

__all__ = ["assert_same_detections", "assert_same_rows_found"]


def assert_same_detections(
    found: Detections,
    expected: Detections,
    scores: Tensor,
    boxes: Tensor,
    *,
    score_threshold: float = 0.01,
    top_k: int = 400,
    iou_threshold: float = 0.45,
    background_index: int | None = 0,
    nms: str = "hard",
    sigma: float = 0.5,
    band: float = DECISION_BAND,
) -> None:
    """Fails unless images have equal detections, or others that keys within ``band`` explain.

    An image may differ only where every row it holds and every candidate it leaves out is what
    greedy suppression decides for scores and overlaps moved by at most ``band`` of themselves.

    Args:
        found: detections of a batch.
        expected: detections of the same batch by another implementation.
        scores: (B, P, C) float64, the softmax or sigmoids that both started from.
        boxes: (B, P, 4) float64, decoded and clipped.
        score_threshold: see `ssd_fast.ops.detect`, as the next three.
        top_k: see there.
        iou_threshold: see there.
        background_index: see there; None for none.
        nms: see there, as the next.
        sigma: see there.
        band: relative distance within which keys may be ordered either way.
    """
    assert found.boxes.shape == expected.boxes.shape
    for i, (one, other) in enumerate(zip(found.to_list(), expected.to_list(), strict=True)):
        tail = slice(int(found.counts[i]), None)
        assert not any(bool(rows[i, tail].any()) for rows in found[:3]), f"image {i}: padding"
        if one["labels"].equal(other["labels"]):
            atol = band * float(boxes[i].nan_to_num(0, 0, 0).abs().max())
            if one["boxes"].allclose(other["boxes"], rtol=band, atol=atol) and one[
                "scores"
            ].allclose(other["scores"], rtol=band, atol=0):
                continue
        if background_index is not None:
            assert not bool((one["labels"] == background_index).any()), f"image {i}: background"
        if nms.startswith("soft"):
            limits = (score_threshold, top_k, iou_threshold, sigma if "gauss" in nms else None)
            full = len(one["scores"]) == found.scores.size(1)
            _check_decay(one, scores[i], boxes[i], limits, background_index, full, band)
            continue
        priors = _priors_of(one, scores[i], boxes[i], band)
        full = len(priors) == found.scores.size(1)
        last = float(one["scores"][-1]) if full and len(priors) else -1.0
        best_first = scores[i][priors, one["labels"]]
        assert bool((best_first[1:] <= best_first[:-1] * (1 + band)).all()), f"image {i}: order"
        for label in range(scores.size(2)):
            if label == background_index:
                continue
            kept = priors[one["labels"] == label]
            what = f"image {i}, class {label}"
            score = scores[i, :, label]
            _check_top_k(score, kept, score_threshold, top_k, band, what)
            _check_suppression(
                score, boxes[i], kept, (score_threshold, top_k, iou_threshold, last), band, what,
                distance_overlaps if nms == "diou" else overlaps_of,
            )  # fmt: skip


def assert_same_rows_found(
    found: dict[str, Tensor],
    expected: dict[str, Tensor],
    *,
    what: str,
    pixels: float = 1e-3,
    band: float = DECISION_BAND,
) -> None:
    """Fails unless two detectors found the same in an image.

    Rows are compared as they are sorted; scores within ``band`` of each other may change places.

    Args:
        found: "boxes" (K, 4) in pixels, "scores" (K,), "labels" (K,) of one detector.
        expected: of the other.
        what: what a message begins with.
        pixels: how far a corner may be off.
        band: relative distance of scores that count as equal.
    """
    assert found.keys() == expected.keys(), f"{what}: {found.keys()}, not {expected.keys()}"
    count, other_count = len(found["scores"]), len(expected["scores"])
    assert count == other_count, f"{what}: {count} detections, not {other_count}"
    torch.testing.assert_close(
        found["scores"], expected["scores"], rtol=band, atol=0, msg=lambda m: f"{what}: {m}"
    )
    score, other = found["scores"][:, None], expected["scores"][None]
    same = (score - other).abs() <= band * score
    same &= found["labels"][:, None] == expected["labels"][None]
    same &= (found["boxes"][:, None] - expected["boxes"][None]).abs().amax(2) <= pixels
    for name, alone in (("the one", ~same.any(1)), ("the other", ~same.any(0))):
        rows = alone.nonzero().flatten().tolist()
        assert not rows, f"{what}: only {name} detector has rows {rows}"


def _priors_of(image: dict[str, Tensor], scores: Tensor, boxes: Tensor, band: float) -> Tensor:
    """The prior of each detection, found by its box and score, no prior twice for a class."""
    taken = torch.zeros_like(scores, dtype=torch.bool)
    priors = []
    for box, score, label in zip(*(image[k] for k in ("boxes", "scores", "labels")), strict=True):
        distance = (boxes - box).abs().amax(dim=1) + (scores[:, label] - score).abs()
        distance = distance.nan_to_num(torch.inf).masked_fill(taken[:, label], torch.inf)
        nearest = int(distance.argmin())
        allowed = 10 * band * (1 + float(box.abs().max()))
        assert distance[nearest] <= allowed, f"no prior gives class {int(label)}, box {box}"
        taken[nearest, label] = True
        priors.append(nearest)
    return torch.tensor(priors, dtype=torch.int64, device=scores.device)


def _check_top_k(
    score: Tensor, kept: Tensor, score_threshold: float, top_k: int, band: float, what: str
) -> None:
    """Every kept row of a class is above the threshold and among the top_k, give or take."""
    clearly_better = (score > score[kept, None] * (1 + band)).sum(dim=1)
    threshold = score_threshold - band * abs(score_threshold)
    assert bool((score[kept] > threshold).all()), f"{what}: a kept score is below the threshold"
    assert bool((clearly_better < top_k).all()), f"{what}: a kept score is not among the top_k"


def _check_suppression(
    score: Tensor,
    boxes: Tensor,
    kept: Tensor,
    limits: tuple[float, int, float, float],
    band: float,
    what: str,
    overlaps: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Kept rows of a class do not overlap, and every candidate left out has a reason."""
    score_threshold, top_k, iou_threshold, last = limits
    margin = band * abs(iou_threshold)
    overlap = boxes.new_zeros(len(boxes), len(kept))
    for column, row in enumerate(kept.tolist()):
        overlap[:, column] = overlaps(boxes[row], boxes).nan_to_num(-torch.inf)
    among = overlap[kept].fill_diagonal_(-torch.inf)
    assert bool((among <= iou_threshold + margin).all()), f"{what}: kept boxes overlap"
    above = score_threshold + band * abs(score_threshold)
    left_out = (score > above) & boxes.isfinite().all(dim=1)
    left_out[kept] = False
    rows = left_out.nonzero().squeeze(1)
    not_worse = score >= score[rows, None] * (1 - band)
    outranked = not_worse.sum(dim=1) - 1 >= top_k
    suppressed = ((overlap[rows] > iou_threshold - margin) & not_worse[:, kept]).any(dim=1)
    beyond = score[rows] <= last * (1 + band)
    lost = rows[~(outranked | suppressed | beyond)]
    assert lost.numel() == 0, f"{what}: priors {lost.tolist()} are left out without a reason"


def _check_decay(
    image: dict[str, Tensor],
    scores: Tensor,
    boxes: Tensor,
    limits: tuple[float, int, float, float | None],
    background_index: int | None,
    full: bool,
    band: float,
) -> None:
    """Replays the detections of Soft-NMS in their order: each was the best that was left.

    Every score is an interval: a decision within the band leaves both outcomes.
    """
    score_threshold, top_k, iou_threshold, sigma = limits
    low, high = scores * (1 - band), scores * (1 + band)
    rank = torch.stack([(scores > x * (1 + band)).sum(dim=0) for x in scores])
    rank_at_worst = torch.stack([(scores >= x * (1 - band)).sum(dim=0) for x in scores]) - 1
    finite = boxes.isfinite().all(dim=1, keepdim=True) & scores.isfinite()
    margin = band * abs(score_threshold)
    possible = finite & (rank < top_k)
    certain = possible & (rank_at_worst < top_k)
    if background_index is not None:
        possible[:, background_index] = certain[:, background_index] = False
    rows = zip(*(image[key] for key in ("boxes", "scores", "labels")), strict=True)
    for number, (box, score_, label_) in enumerate(rows):
        what, label, score = f"detection {number}", int(label_), float(score_)
        near = (boxes - box).abs().amax(dim=1) <= 10 * band * (1 + float(box.abs().max()))
        fits = near & possible[:, label]
        fits &= (low[:, label] <= score) & (score <= high[:, label])
        assert bool(fits.any()), f"{what}: no prior gives class {label}, {box}, score {score}"
        must = fits & certain[:, label]  # where boxes coincide, first those that had to be found
        prior = int((must if bool(must.any()) else fits).nonzero()[0])
        assert score > score_threshold - margin, f"{what}: its score is below the threshold"
        possible[prior, label] = certain[prior, label] = False
        better = certain & (low * (1 - band) > score) & (low > score_threshold + margin)
        assert not bool(better.any()), f"{what}: better is {better.nonzero()[0].tolist()}"
        iou = overlaps_of(boxes[prior], boxes).nan_to_num(0)
        if sigma is None:
            over, kept = iou * (1 + band) > iou_threshold, (1 - iou).clamp(min=0)
            surely = iou * (1 - band) > iou_threshold
            factors = torch.where(surely, kept, 1.0), torch.where(over, kept, 1.0)
        else:
            factors = 2 * ((-iou * iou / sigma).exp(),)
        # 1 - IoU of boxes that nearly coincide has an error of its own.
        low[:, label] *= (torch.minimum(*factors) - band).clamp(min=0)
        high[:, label] *= torch.maximum(*factors) + band
    left = certain & (low > score_threshold + margin)
    assert full or not bool(left.any()), f"left out: {left.nonzero()[0].tolist()}"
