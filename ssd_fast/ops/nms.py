# SPDX-License-Identifier: BSD-3-Clause
"""nms, batched_nms, nms_padded: greedy non-maximum suppression, equal on every device.

CPU csrc/cpu/nms.cpp   CUDA csrc/cuda/nms.cu   test tests/ops/test_nms.py
"""

import torch
from torch import Tensor

from ssd_fast.boxes import greedy_nms
from ssd_fast.ops._arguments import (
    LOGIT_DTYPES,
    check_device,
    check_threshold,
    check_vector,
    describe,
)
from ssd_fast.ops._library import register

__all__ = [
    "batched_nms",
    "batched_nms_reference",
    "nms",
    "nms_padded",
    "nms_padded_reference",
    "nms_reference",
]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that greedy non-maximum suppression keeps, best first.

    The signature and the results of `torchvision.ops.nms`, with what that one leaves open: a box is
    kept if no better kept box overlaps it by more than ``iou_threshold``, compared as real numbers;
    of equal scores the lower index is better; boxes and scores that are not finite are never kept.
    Synchronises once on CUDA; `nms_padded` does not.

    Args:
        boxes: (N, 4) corners, any unit; float16 and bfloat16 are raised to float32.
        scores: (N,) float32, float16 or bfloat16.
        iou_threshold: any number but NaN.

    Returns:
        (kept,) int64, by falling score, by rising index where scores are equal.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9], [2.0, 2.0, 3.0, 3.0]])
        >>> nms(boxes, torch.tensor([0.9, 0.8, 0.7]), iou_threshold=0.5)
        tensor([0, 2])
    """
    _check(boxes, scores, iou_threshold)
    keep: Tensor = _nms(boxes.float(), scores.float(), iou_threshold)
    return keep


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """`nms` of each class by itself, the results of all classes sorted together.

    The signature of `torchvision.ops.batched_nms` and the decisions of its per-class path: boxes
    are not shifted by class, so classes never touch and no coordinate loses digits.

    Args:
        boxes: (N, 4) corners, any unit; float16 and bfloat16 are raised to float32.
        scores: (N,) float32, float16 or bfloat16.
        idxs: (N,) int64, the class of each box: any numbers.
        iou_threshold: any number but NaN.

    Returns:
        (kept,) int64, by falling score, by rising index where scores are equal.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
    """
    _check(boxes, scores, iou_threshold, idxs)
    keep: Tensor = _batched_nms(boxes.float(), scores.float(), idxs, iou_threshold)
    return keep


def nms_padded(
    boxes: Tensor, scores: Tensor, iou_threshold: float, idxs: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`nms`, or with ``idxs`` `batched_nms`, with results of a fixed shape.

    Nothing synchronises, so it can be captured in a CUDA graph and compiled without dynamic shapes.

    Args:
        boxes: (N, 4) corners, any unit; float16 and bfloat16 are raised to float32.
        scores: (N,) float32, float16 or bfloat16.
        iou_threshold: any number but NaN.
        idxs: (N,) int64, the class of each box, None for one class.

    Returns:
        keep (N,) int64, the indices that `nms` gives, then -1; count () int64, how many they are.

    Raises:
        ValueError: an argument has a wrong shape, dtype, device or value.
    """
    _check(boxes, scores, iou_threshold, idxs)
    keep, count = _nms_padded(boxes.float(), scores.float(), iou_threshold, idxs)
    return keep, count


def nms_reference(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """The definition of `nms`, in plain PyTorch; float64 too."""
    return greedy_nms(boxes, scores, iou_threshold)


def batched_nms_reference(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float
) -> Tensor:
    """The definition of `batched_nms`, in plain PyTorch; float64 too."""
    return greedy_nms(boxes, scores, iou_threshold, idxs)


def nms_padded_reference(
    boxes: Tensor, scores: Tensor, iou_threshold: float, idxs: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The definition of `nms_padded`, in plain PyTorch; float64 too."""
    keep = greedy_nms(boxes, scores, iou_threshold, idxs)
    padded = keep.new_full((boxes.size(0),), -1)
    padded[: keep.numel()] = keep
    return padded, keep.new_full((), keep.numel())


def _check(boxes: Tensor, scores: Tensor, iou_threshold: float, idxs: Tensor | None = None) -> None:
    if not isinstance(boxes, Tensor) or boxes.dim() != 2 or boxes.size(1) != 4:
        raise ValueError(f"boxes: expected (N, 4) corners x1, y1, x2, y2, got {describe(boxes)}")
    if not isinstance(scores, Tensor) or scores.shape != boxes.shape[:1]:
        raise ValueError(
            f"scores: expected ({boxes.size(0)},), one for each box, got {describe(scores)}"
        )
    for name, tensor in (("boxes", boxes), ("scores", scores)):
        if tensor.dtype not in LOGIT_DTYPES:
            raise ValueError(
                f"{name}: expected float32, float16 or bfloat16, got {describe(tensor)}; "
                f"convert with {name}.float()"
            )
    if idxs is not None:
        check_vector("idxs", idxs, torch.int64)
        if idxs.size(0) != boxes.size(0):
            raise ValueError(
                f"idxs: expected ({boxes.size(0)},), one for each box, got {describe(idxs)}"
            )
    check_device(boxes=boxes, scores=scores, idxs=idxs)
    check_threshold("iou_threshold", iou_threshold)


def _fake_kept(boxes: Tensor, *_: object) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(kept, dtype=torch.int64)


def _fake_padded(boxes: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return (
        boxes.new_empty(boxes.size(0), dtype=torch.int64),
        boxes.new_empty((), dtype=torch.int64),
    )


_nms = register(
    "nms",
    "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor",
    reference=nms_reference,
    fake=_fake_kept,
)
_batched_nms = register(
    "batched_nms",
    "(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> Tensor",
    reference=batched_nms_reference,
    fake=_fake_kept,
)
_nms_padded = register(
    "nms_padded",
    "(Tensor boxes, Tensor scores, float iou_threshold, Tensor? idxs=None) -> (Tensor, Tensor)",
    reference=nms_padded_reference,
    fake=_fake_padded,
)
