# SPDX-License-Identifier: BSD-3-Clause
"""`ssd_fast::detect` in standard ONNX operators, around NonMaxSuppression; needs onnxscript."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnxscript import opset18 as op

__all__ = ["onnx_detect"]


def onnx_detect(
    deltas: Sequence[Any],
    logits: Sequence[Any],
    priors: Any,
    score_threshold: float,
    top_k: int,
    iou_threshold: float,
    max_detections: int,
    variances: Sequence[float],
    background_index: int,
    clip: Sequence[float] | None,
    image_clip: Any,
    max_log_scale: float | None,
    nms: int,
    sigma: float,
    scores: int = 0,
) -> tuple[Any, Any, Any, Any]:
    """The graph of `ssd_fast.ops.detect`, for the translation table of `torch.onnx.export`.

    Every image and class becomes one entry of NonMaxSuppression's batch, with its `top_k` best
    candidates: classes never touch, and all shapes but NonMaxSuppression's own are fixed.

    Args:
        deltas: maps (B, A * 4, H, W) or one (B, P, 4).
        logits: maps (B, A * C, H, W) or one (B, P, C).
        priors: (P, 4) float32 corners.
        score_threshold: see `ssd_fast.ops.detect`, as all that follow; at least 0.
        top_k: candidates of a class.
        iou_threshold: of NMS.
        max_detections: D.
        variances: four numbers.
        background_index: class that is not detected; -1 for none.
        clip: four numbers.
        image_clip: not supported.
        max_log_scale: clamp of the sizes.
        nms: 0, "hard".
        sigma: without effect on that.
        scores: 0, softmax, or 1, sigmoid.

    Returns:
        boxes (B, D, 4) float32, scores (B, D) float32, labels (B, D) int64, counts (B,) int64.

    Raises:
        ValueError: bounds by image, a negative score threshold, or another kind of suppression.
    """
    if nms != 0:
        raise ValueError('nms: ONNX export takes "hard", which is all that NonMaxSuppression does')
    if image_clip is not None:
        raise ValueError("clip: ONNX export takes four numbers, not bounds for each image")
    if score_threshold < 0:
        raise ValueError(f"score_threshold: ONNX export takes 0 or more, got {score_threshold}")
    boxes = _decode(_rows(deltas, [4] * len(deltas)), priors, variances, max_log_scale)
    if clip is not None:
        low, high = _floats([clip[0], clip[1]] * 2), _floats([clip[2], clip[3]] * 2)
        boxes = op.Min(op.Max(boxes, low), high)
    columns = [
        logit.shape[1] * 4 // delta.shape[1] if len(logit.shape) == 4 else logit.shape[2]
        for delta, logit in zip(deltas, logits, strict=True)
    ]
    classes = [c for c in range(columns[0]) if c != background_index]
    rows = _rows(logits, columns)
    # Of a softmax a NaN or +inf logit makes NaN of the row, of a sigmoid a NaN of itself.
    probabilities = op.Sigmoid(rows) if scores else op.Softmax(rows, axis=-1)
    likely = op.Transpose(op.Gather(probabilities, _integers(classes), axis=2), perm=[0, 2, 1])
    finite = op.Not(op.Or(op.IsNaN(boxes), op.IsInf(boxes)))
    healthy = op.ReduceMin(op.Cast(finite, to=1), _integers([2]), keepdims=0)
    usable = op.And(op.Not(op.IsNaN(likely)), op.Cast(op.Unsqueeze(healthy, _integers([1])), to=9))
    likely = op.Where(usable, likely, _floats(0.0))

    candidates = min(top_k, priors.shape[0])
    width = len(classes) * candidates
    best, prior = op.TopK(likely, _integers([candidates]), axis=2)  # (B, C - 1, K)
    boxes = _take_rows(boxes, op.Reshape(prior, _integers([0, -1])))  # (B, (C - 1) K, 4)
    kept = _suppress(
        op.Reshape(boxes, _integers([-1, candidates, 4])),
        op.Reshape(best, _integers([-1, 1, candidates])),
        iou_threshold,
        score_threshold,
    )
    ranking = op.Where(
        op.Reshape(kept, _integers([-1, width])),
        op.Reshape(best, _integers([-1, width])),
        _floats(-1.0),
    )
    count = min(max_detections, width)
    score, place = op.TopK(ranking, _integers([count]), axis=1)  # ties: lower label, lower prior
    found = op.GreaterOrEqual(score, _floats(0.0))
    label = op.Gather(_integers(classes), op.Div(place, _integers(candidates)))
    box = op.Where(op.Unsqueeze(found, _integers([2])), _take_rows(boxes, place), _floats(0.0))
    missing = max_detections - count
    return (
        op.Pad(box, _integers([0, 0, 0, 0, missing, 0])),
        op.Pad(op.Where(found, score, _floats(0.0)), _integers([0, 0, 0, missing])),
        op.Pad(op.Where(found, label, _integers(0)), _integers([0, 0, 0, missing])),
        op.ReduceSum(op.Cast(found, to=7), _integers([1]), keepdims=0),
    )


def _floats(values: Any) -> Any:
    return op.Constant(value=_tensor(np.array(values, dtype=np.float32)))


def _integers(values: Any) -> Any:
    return op.Constant(value=_tensor(np.array(values, dtype=np.int64)))


def _tensor(array: Any) -> Any:
    import onnx_ir

    return onnx_ir.tensor(array)


def _rows(maps: Sequence[Any], columns: Sequence[int]) -> Any:
    """(B, P, K) float32 of all levels."""
    rows = []
    for level, width in zip(maps, columns, strict=True):
        if len(level.shape) == 4:
            channels_last = op.Transpose(level, perm=[0, 2, 3, 1])
            level = op.Reshape(channels_last, _integers([0, -1, width]))
        rows.append(op.Cast(level, to=1))
    return op.Concat(*rows, axis=1) if len(rows) > 1 else rows[0]


def _decode(
    deltas: Any, priors: Any, variances: Sequence[float], max_log_scale: float | None
) -> Any:
    """Corners (B, P, 4) of offsets (B, P, 4), as `ssd_fast.ops.decode`."""
    low, high = op.Split(priors, axis=1, num_outputs=2)
    size = op.Sub(high, low)
    centre = op.Mul(op.Add(low, high), _floats(0.5))
    shift, log = op.Split(deltas, axis=2, num_outputs=2)
    log = op.Mul(log, _floats(list(variances[2:])))
    if max_log_scale is not None:
        log = op.Min(log, _floats(max_log_scale))
    centre = op.Add(op.Mul(op.Mul(shift, _floats(list(variances[:2]))), size), centre)
    half = op.Mul(op.Mul(op.Exp(log), size), _floats(0.5))
    return op.Concat(op.Sub(centre, half), op.Add(centre, half), axis=2)


def _take_rows(boxes: Any, index: Any) -> Any:
    """(B, n, 4): rows `index` (B, n) of (B, m, 4), image by image."""
    wide = op.Expand(op.Unsqueeze(index, _integers([2])), _integers([1, 1, 4]))
    return op.GatherElements(boxes, wide, axis=1)


def _suppress(boxes: Any, scores: Any, iou_threshold: float, score_threshold: float) -> Any:
    """(G, 1, K) bool: which of the candidates (G, K, 4) with scores (G, 1, K) are kept."""
    selected = op.NonMaxSuppression(
        boxes,
        scores,
        op.Gather(op.Shape(scores), _integers([2])),
        _floats([iou_threshold]),
        _floats([score_threshold]),
    )
    ones = op.Expand(_floats(1.0), op.Gather(op.Shape(selected), _integers([0])))
    zeros = op.Mul(scores, _floats(0.0))
    return op.Greater(op.ScatterND(zeros, selected, ones), _floats(0.5))
