# SPDX-License-Identifier: BSD-3-Clause
"""match: the object that each prior answers for.

CPU csrc/cpu/match.cpp   GPU kernels/match.py
test tests/ops/test_match.py   benchmark benchmarks/bench_match.py
"""

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ssd_fast.assignment import match_batch, valid_objects
from ssd_fast.ops._arguments import (
    are_plain,
    check_boxes,
    check_choice,
    check_device,
    check_flag,
    check_number,
    check_targets,
)
from ssd_fast.ops._library import register
from ssd_fast.ops._remembered import remembered

__all__ = ["match", "match_reference"]

ASSIGN = {"last": 0, "bipartite": 1, "none": 2}


def match(
    priors: Tensor,
    boxes: Tensor,
    offsets: Tensor,
    *,
    iou_threshold: float = 0.5,
    low_threshold: float | None = None,
    strict: bool = False,
    assign: str = "last",
) -> Tensor:
    """Matches priors to the objects of each image (SSD paper, section 2.2, matching strategy).

    A prior goes to the object it overlaps most, the lowest index among equals, if the IoU reaches
    the threshold. Then objects claim the prior they overlap most, the lowest index among equals.
    Objects whose area is not positive and finite match and claim nothing, and an object that
    overlaps no prior claims none.

    Args:
        priors: (P, 4) float32 corners.
        boxes: (N, 4) float32 corners of the objects of all images, in the unit of the priors.
        offsets: (B + 1,) int64; image i owns rows ``offsets[i]:offsets[i + 1]``. Offsets are
            clamped to [0, N]; rows from ``offsets[B]`` on are ignored.
        iou_threshold: least IoU of a match, rounded to float32 (0.5 in every SSD).
        low_threshold: a prior without a match whose best IoU is at least this is ignored: neither
            positive nor background. None, the default, ignores nothing.
        strict: a match needs an IoU above the threshold (NVIDIA's ports), not just equal to it.
        assign: how objects claim priors. "last": of several objects that claim one prior the last
            wins (amdegroot, torchvision on the CPU). "bipartite": greedily by the globally best
            pair, so that each object keeps a prior of its own (Caffe); ties go to the lowest
            prior, then the lowest object. "none": objects claim nothing.

    Returns:
        (B, P) int32: index of the object within its image, -1 background, -2 ignored.

    Raises:
        ValueError: for arguments of a wrong shape, dtype, device or range.

    Example:
        >>> priors = torch.tensor([[0.0, 0.0, 0.4, 0.4], [0.1, 0.1, 0.5, 0.5]])
        >>> match(priors, torch.tensor([[0.1, 0.1, 0.5, 0.5]]), offsets=torch.tensor([0, 1]))
        tensor([[-1,  0]], dtype=torch.int32)
    """
    compiling = is_compiling()
    options = (_options if compiling else _known_options)(
        iou_threshold, low_threshold, strict, assign
    )
    if not compiling and are_plain((priors, boxes, offsets)):
        # The kernel accepts what these checks accept; they only say better what is wrong.
        try:
            return _call(priors, boxes, offsets, options)
        except RuntimeError as error:
            refused = error
        _check_tensors(priors, boxes, offsets)
        raise refused
    _check_tensors(priors, boxes, offsets)
    return _call(priors, boxes, offsets, options)


def _options(
    iou_threshold: float, low_threshold: float | None, strict: bool, assign: str
) -> tuple[Any, ...]:
    """The options as the operator takes them, checked."""
    check_number("iou_threshold", iou_threshold, low=0)
    check_flag("strict", strict)
    if low_threshold is not None:
        check_number("low_threshold", low_threshold, low=0, high=iou_threshold)
    return iou_threshold, low_threshold, strict, check_choice("assign", assign, ASSIGN)


_known_options = remembered(_options)


def _check_tensors(priors: Tensor, boxes: Tensor, offsets: Tensor) -> None:
    check_boxes("priors", priors)
    check_targets(boxes, offsets)
    check_device(priors=priors, boxes=boxes, offsets=offsets)


def _call(priors: Tensor, boxes: Tensor, offsets: Tensor, options: tuple[Any, ...]) -> Tensor:
    matched: Tensor = _operator(priors, boxes, offsets, *options)
    return matched


def match_reference(
    priors: Tensor,
    boxes: Tensor,
    offsets: Tensor,
    *,
    iou_threshold: float = 0.5,
    low_threshold: float | None = None,
    strict: bool = False,
    assign: str = "last",
) -> Tensor:
    """The definition of `match`, in plain PyTorch; takes float64 too."""
    check_choice("assign", assign, ASSIGN)
    return match_batch(
        priors,
        boxes,
        offsets,
        valid_objects(boxes),
        iou_threshold=iou_threshold,
        low_threshold=low_threshold,
        strict=strict,
        assign=assign,
    )


def _reference(
    priors: Tensor,
    boxes: Tensor,
    offsets: Tensor,
    iou_threshold: float,
    low_threshold: float | None,
    strict: bool,
    assign: int,
) -> Tensor:
    return match_reference(
        priors,
        boxes,
        offsets,
        iou_threshold=iou_threshold,
        low_threshold=low_threshold,
        strict=strict,
        assign=list(ASSIGN)[assign],
    )


def _fake(
    priors: Tensor,
    boxes: Tensor,
    offsets: Tensor,
    iou_threshold: float,
    low_threshold: float | None,
    strict: bool,
    assign: int,
) -> Tensor:
    return priors.new_empty((offsets.size(0) - 1, priors.size(0)), dtype=torch.int32)


_operator = register(
    "match",
    "(Tensor priors, Tensor boxes, Tensor offsets, float iou_threshold, float? low_threshold, "
    "bool strict, int assign) -> Tensor",
    reference=_reference,
    fake=_fake,
    cuda="match.launch_match",
)
