# SPDX-License-Identifier: BSD-3-Clause
"""detect: from the heads' raw outputs to the detections of each image.

CPU csrc/cpu/detect.cpp   GPU kernels/detect.py
test tests/ops/test_detect.py   benchmark benchmarks/bench_detect.py
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ssd_fast.boxes import MAX_LOG_SCALE, decode_boxes, four_variances
from ssd_fast.detections import Detections
from ssd_fast.ops._arguments import (
    are_plain,
    as_levels,
    check_boxes,
    check_choice,
    check_count,
    check_device,
    check_levels,
    check_max_log_scale,
    check_positive,
    check_threshold,
    describe,
    resolve_background,
)
from ssd_fast.ops._levels import join_levels
from ssd_fast.ops._library import register
from ssd_fast.ops._remembered import remembered
from ssd_fast.suppression import NMS, suppress

__all__ = ["SCORES", "detect", "detect_reference"]

SCORES = {"softmax": 0, "sigmoid": 1}
"""The words for ``scores`` and the numbers that stand for them in schemas."""

NO_BACKGROUND = -1
"""What the schema takes where no class is the background."""

Clip = Sequence[float] | Tensor | None

Options = tuple[tuple[Any, ...], tuple[Any, ...]]
"""What the operator takes before ``image_clip``, and after it."""


def detect(
    deltas: Tensor | Sequence[Tensor],
    logits: Tensor | Sequence[Tensor],
    priors: Tensor,
    *,
    score_threshold: float = 0.01,
    top_k: int = 400,
    iou_threshold: float = 0.45,
    max_detections: int = 200,
    variances: Sequence[float] = (0.1, 0.2),
    background_index: int | None = 0,
    clip: Clip = None,
    max_log_scale: float | None = MAX_LOG_SCALE,
    nms: str = "hard",
    sigma: float = 0.5,
    scores: str = "softmax",
) -> Detections:
    """Detections of each image (SSD paper, section 3.1; torchvision's ``postprocess_detections``).

    Scores; of each class but the background the ``top_k`` best above ``score_threshold``;
    decoding; clipping; non-maximum suppression class by class; of what is left the
    ``max_detections`` best. Equal scores: lower label, then lower prior. Boxes that are not
    finite yield nothing. Not differentiable. Shapes are fixed and nothing synchronises.

    Scores are

    * "softmax" of a row, for what `multibox_loss` trains: a row with a NaN or +inf logit yields
      nothing.
    * "sigmoid" of each logit, for what `focal_loss` or another binary loss trains (RetinaNet,
      Lin et al., 2017, arXiv:1708.02002): a row may hold several classes. A NaN logit is no
      detection of its class, +inf is a score of 1. Where the loss had no background column, nor
      has this: ``background_index=None``; labels are the classes that the loss was given.

    Suppression is "hard", as `batched_nms`, or

    * "soft-linear", "soft-gaussian" (Soft-NMS, Bodla et al., 2017, arXiv:1704.04503): a box takes
      part of the score of others of its class, the better it overlaps them the more: they keep
      1 - IoU of it where the IoU exceeds ``iou_threshold``, or exp(-IoU^2 / ``sigma``). The best
      of what is left comes next, and so on. Scores that fall to ``score_threshold`` or below are
      gone; those returned are the lowered ones.
    * "diou" (Zheng et al., 2020, arXiv:1911.08287): hard, by IoU less the squared distance of the
      centres over the squared diagonal of the box around both.

    Args:
        deltas: (B, P, 4), or one map a level, (B, A * 4, H, W) in any memory format; float32,
            float16 or bfloat16. Row order is (level, y, x, anchor), channel ``a * 4 + k``.
        logits: (B, P, C), or one map a level, (B, A * C, H, W); float32, float16 or bfloat16.
        priors: (P, 4) float32 corners.
        score_threshold: a score must exceed it, as float32.
        top_k: candidates a class may have before suppression; P for no limit.
        iou_threshold: a box that overlaps a better one of its class by more is suppressed, or
            loses score; without effect on "soft-gaussian".
        max_detections: K, detections an image may have.
        variances: 2 or 4 numbers that scaled the encoded offsets.
        background_index: class index of the background, which is not detected; a negative one
            counts from the last class, which is -1. None, with sigmoids alone: there is none.
        clip: what boxes are clipped to before suppression: 4 numbers (x1, y1, x2, y2), or a
            (B, 4) float32 tensor of them, or None.
        max_log_scale: largest log-scale before the exponential, None for no clamp; see `decode`.
        nms: "hard", "soft-linear", "soft-gaussian" or "diou".
        sigma: of "soft-gaussian", above 0: the larger, the less is lost.
        scores: "softmax" or "sigmoid".

    Returns:
        boxes (B, K, 4) float32 in the unit of ``priors``, scores (B, K) float32, labels (B, K)
        int64, counts (B,) int64: rows sorted by score, padded with zeros from the count on.

    Raises:
        ValueError: for arguments of a wrong shape, dtype, device or range.

    Example:
        >>> found = detect(deltas, logits, ssd_fast.priors.ssd300(), clip=(0, 0, 1, 1))
        >>> found.boxes.shape
        torch.Size([2, 200, 4])
    """
    delta_levels, logit_levels = as_levels(deltas), as_levels(logits)
    if isinstance(background_index, int) and background_index < 0:
        background_index = resolve_background(background_index, delta_levels, logit_levels, priors)
    bounds, image_clip = (
        (None, clip) if clip is not None and isinstance(clip, Tensor) else (clip, None)
    )
    compiling = is_compiling()
    options = (_options if compiling else _known_options)(
        score_threshold,
        top_k,
        iou_threshold,
        max_detections,
        variances,
        background_index,
        bounds,
        max_log_scale,
        nms,
        sigma,
        scores,
    )
    tensors = (*delta_levels, *logit_levels, priors, image_clip)
    if not compiling and are_plain(tensors):
        # The kernel accepts what these checks accept; they only say better what is wrong.
        try:
            return _call(tensors, delta_levels, logit_levels, priors, image_clip, options)
        except (RuntimeError, AttributeError) as error:  # the latter of a level that is None
            refused = error
        _check_tensors(delta_levels, logit_levels, priors, image_clip, options)
        raise refused
    _check_tensors(delta_levels, logit_levels, priors, image_clip, options)
    return _call(tensors, delta_levels, logit_levels, priors, image_clip, options)


def _options(
    score_threshold: float,
    top_k: int,
    iou_threshold: float,
    max_detections: int,
    variances: Sequence[float],
    background_index: int | None,
    bounds: Sequence[float] | None,
    max_log_scale: float | None,
    nms: str,
    sigma: float,
    scores: str,
) -> Options:
    """The options as the operator takes them, checked."""
    kind = check_choice("scores", scores, SCORES)
    check_threshold("score_threshold", score_threshold)
    check_threshold("iou_threshold", iou_threshold)
    check_count("top_k", top_k)
    check_count("max_detections", max_detections)
    check_positive("sigma", sigma)
    check_max_log_scale(max_log_scale)
    return (
        score_threshold,
        top_k,
        iou_threshold,
        max_detections,
        four_variances(variances),
        _background(background_index, kind),
        _bounds(bounds),
    ), (max_log_scale, check_choice("nms", nms, NMS), sigma, kind)


_known_options = remembered(_options)


def _check_tensors(
    deltas: list[Tensor],
    logits: list[Tensor],
    priors: Tensor,
    image_clip: Tensor | None,
    options: Options,
) -> None:
    """Checks the heads' outputs, and bounds for each image if there are any."""
    background = options[0][-2]
    batch, classes = check_levels(deltas, logits, priors, max(background, 0))
    if classes * priors.size(0) > 2**32:
        raise ValueError(
            f"logits: expected at most 2**32 numbers an image, got {classes * priors.size(0)}; "
            f"detect fewer classes or priors at a time"
        )
    if image_clip is not None:
        check_boxes("clip", image_clip)
        if image_clip.size(0) != batch:
            raise ValueError(
                f"clip: expected ({batch}, 4), bounds for each image, got {describe(image_clip)}"
            )
        check_device(priors=priors, clip=image_clip)


def _call(
    tensors: Sequence[Tensor | None],
    deltas: list[Tensor],
    logits: list[Tensor],
    priors: Tensor,
    image_clip: Tensor | None,
    options: Options,
) -> Detections:
    before, after = options
    arguments = (deltas, logits, priors, *before, image_clip, *after)
    if torch.is_grad_enabled():
        for x in tensors:  # a loop, see `are_plain`
            if x is not None and x.requires_grad:
                with torch.no_grad():  # only here, for to enter it takes as long as a detection
                    return Detections(*_operator(*arguments))
    return Detections(*_operator(*arguments))


def detect_reference(
    deltas: Tensor | Sequence[Tensor],
    logits: Tensor | Sequence[Tensor],
    priors: Tensor,
    *,
    score_threshold: float = 0.01,
    top_k: int = 400,
    iou_threshold: float = 0.45,
    max_detections: int = 200,
    variances: Sequence[float] = (0.1, 0.2),
    background_index: int | None = 0,
    clip: Clip = None,
    max_log_scale: float | None = MAX_LOG_SCALE,
    nms: str = "hard",
    sigma: float = 0.5,
    scores: str = "softmax",
) -> Detections:
    """The definition of `detect`, in plain PyTorch; float64 too."""
    delta_levels, logit_levels = as_levels(deltas), as_levels(logits)
    if isinstance(background_index, int):
        background_index = resolve_background(background_index, delta_levels, logit_levels, priors)
    bounds, image_clip = (None, clip) if isinstance(clip, Tensor) else (clip, None)
    kind = check_choice("scores", scores, SCORES)
    found = _detect(
        delta_levels,
        logit_levels,
        priors,
        score_threshold,
        top_k,
        iou_threshold,
        max_detections,
        variances,
        _background(background_index, kind),
        _bounds(bounds),
        image_clip,
        max_log_scale,
        check_choice("nms", nms, NMS),
        sigma,
        kind,
    )
    return Detections(*found)


def _detect(
    deltas: list[Tensor],
    logits: list[Tensor],
    priors: Tensor,
    score_threshold: float,
    top_k: int,
    iou_threshold: float,
    max_detections: int,
    variances: Sequence[float],
    background_index: int,
    clip: Sequence[float] | None,
    image_clip: Tensor | None,
    max_log_scale: float | None,
    nms: int,
    sigma: float,
    kind: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator `detect`, image by image."""
    delta_rows, logit_rows = join_levels(deltas, logits)
    batch = delta_rows.size(0)
    boxes, scores, labels, counts = empty = _fake(deltas, logits, priors, 0, 0, 0, max_detections)
    for tensor in empty:
        tensor.zero_()
    for i in range(batch):
        logit = logit_rows[i]
        image_scores = logit.sigmoid() if kind == SCORES["sigmoid"] else logit.softmax(dim=1)
        prior, label = _candidates(image_scores, score_threshold, top_k, background_index)
        score = image_scores[prior, label]
        box = decode_boxes(
            delta_rows[i, prior].to(priors.dtype), priors[prior], variances, max_log_scale
        )
        if clip is not None or image_clip is not None:
            bounds = priors.new_tensor(clip) if image_clip is None else image_clip[i]
            box = torch.maximum(box, bounds[:2].repeat(2)).minimum(bounds[2:].repeat(2))
        keep, score = suppress(
            nms, box, score, label, iou_threshold=iou_threshold, sigma=sigma,
            score_threshold=score_threshold, most=max_detections,
        )  # fmt: skip
        counts[i] = count = keep.numel()
        boxes[i, :count], scores[i, :count], labels[i, :count] = box[keep], score, label[keep]
    return boxes, scores, labels, counts


def _candidates(
    scores: Tensor, score_threshold: float, top_k: int, background_index: int
) -> tuple[Tensor, Tensor]:
    """The candidates (prior, label) of an image with (P, C) scores, sorted by label, then prior."""
    priors, labels = [], []
    for label, score in enumerate(scores.unbind(dim=1)):
        if label == background_index:
            continue
        above = (score > score_threshold).nonzero().squeeze(1)
        best = score[above].sort(descending=True, stable=True).indices[:top_k]
        priors.append(above[best].sort().values)
        labels.append(torch.full_like(priors[-1], label))
    if not priors:  # the background is the only class
        return 2 * (torch.zeros(0, dtype=torch.int64, device=scores.device),)
    return torch.cat(priors), torch.cat(labels)


def _background(background_index: int | None, kind: int) -> int:
    """The index that the operator takes."""
    if background_index is not None:
        check_count("background_index", background_index)
        return background_index
    if kind != SCORES["sigmoid"]:
        raise ValueError(
            "background_index: None, no background, goes with scores='sigmoid' alone; a softmax "
            "has the background among its classes, pass its index"
        )
    return NO_BACKGROUND


def _bounds(clip: Sequence[float] | None) -> list[float] | None:
    """What the operator takes for the bounds of all images."""
    if clip is None:
        return None
    try:
        bounds = [float(bound) for bound in clip]
    except (TypeError, ValueError):
        bounds = []
    if len(bounds) != 4 or not (bounds[0] <= bounds[2] and bounds[1] <= bounds[3]):
        raise ValueError(
            f"clip: expected 4 numbers x1, y1, x2, y2 with x1 <= x2 and y1 <= y2, or a (B, 4) "
            f"tensor of them, got {clip!r}"
        )
    return bounds


def _fake(
    deltas: list[Tensor],
    logits: list[Tensor],
    priors: Tensor,
    score_threshold: float,
    top_k: int,
    iou_threshold: float,
    max_detections: int,
    *_: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = deltas[0].size(0)
    return (
        priors.new_empty((batch, max_detections, 4)),
        priors.new_empty((batch, max_detections)),
        priors.new_empty((batch, max_detections), dtype=torch.int64),
        priors.new_empty((batch,), dtype=torch.int64),
    )


_operator = register(
    "detect",
    "(Tensor[] deltas, Tensor[] logits, Tensor priors, float score_threshold, int top_k, "
    "float iou_threshold, int max_detections, float[] variances, int background_index, "
    "float[]? clip, Tensor? image_clip, float? max_log_scale, int nms, float sigma, "
    "int scores=0) -> (Tensor, Tensor, Tensor, Tensor)",
    reference=_detect,
    fake=_fake,
    cuda="detect.launch_detect",
)
