# SPDX-License-Identifier: BSD-3-Clause
"""focal_loss: RetinaNet's training loss and its gradient, from raw head outputs and ragged targets.

CPU csrc/cpu/focal_loss.cpp   GPU kernels/focal_loss.py
test tests/ops/test_focal_loss.py   benchmark benchmarks/bench_focal_loss.py
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssd_fast.assignment import IGNORED
from ssd_fast.focal import focal_loss_terms, focal_slopes
from ssd_fast.ops._arguments import as_levels, check_number, resolve_background
from ssd_fast.ops._levels import join_levels, split_rows
from ssd_fast.ops._library import register
from ssd_fast.ops._loss_arguments import check_loss_tensors, loss_options
from ssd_fast.ops._loss_autograd import traced_loss
from ssd_fast.ops._loss_reference import (
    assigned_rows,
    box_losses,
    box_slopes,
    fake_backward,
    fake_forward,
    image_weights,
    positive_rows,
)

__all__ = ["focal_loss", "focal_loss_reference"]

NO_BACKGROUND = -1
"""What the schemas take where no class is the background."""

_BACKWARD_OPTIONS = slice(5, None)


def focal_loss(
    deltas: Tensor | Sequence[Tensor],
    logits: Tensor | Sequence[Tensor],
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    *,
    matches: Tensor | None = None,
    iou_threshold: float = 0.5,
    low_threshold: float | None = None,
    strict: bool = False,
    assign: str = "last",
    ignore_threshold: float | None = 0.5,
    alpha: float = 0.25,
    gamma: float = 2.0,
    box_loss: str = "smooth_l1",
    beta: float = 1.0,
    variances: Sequence[float] = (0.1, 0.2),
    background_index: int | None = 0,
    normalizer: str = "positives",
) -> tuple[Tensor, Tensor, Tensor]:
    """The sigmoid focal loss with a box loss (Lin et al., 2017, arXiv:1708.02002), differentiable.

    Matches priors to objects and takes the box loss of the positives as `multibox_loss` does.
    The class loss is the sum over all rows but ignored ones, and over all C columns, of
    ``-a (1 - p_t)^gamma log(p_t)``: `torchvision.ops.sigmoid_focal_loss` with the target of a
    positive one-hot and that of a background row all zeros, as torchvision's RetinaNet has it.
    Nothing is mined. Arithmetic is float32 or better whatever the dtype of the inputs. What it
    trains, ``detect(scores="sigmoid")`` detects, with the same ``background_index``.

    Args:
        deltas: (B, P, 4), or one map a level, (B, A * 4, H, W); float32, float16 or bfloat16.
        logits: (B, P, C), or one map a level, (B, A * C, H, W); float32, float16 or bfloat16.
        priors: (P, 4) float32 corners.
        boxes: (N, 4) float32 corners of the objects of all images, in the unit of the priors.
        labels: (N,) int64 classes; -1 makes the box a region to ignore.
        offsets: (B + 1,) int64; image i owns rows ``offsets[i]:offsets[i + 1]``.
        matches: (B, P) int32 or int64, used instead of matching; see `multibox_loss`, as for all
            that is not explained here.
        iou_threshold: see there; RetinaNet has 0.5.
        low_threshold: see there; RetinaNet has 0.4.
        strict: see there.
        assign: see there.
        ignore_threshold: see there.
        alpha: weight of the targets that are 1; those that are 0 weigh 1 - alpha. Negative: all
            weigh 1.
        gamma: how much less sure targets count; 0 is the weighted cross-entropy.
        box_loss: see there.
        beta: see there.
        variances: see there.
        background_index: a column that no object may have as its class, and whose target is
            always 0; a negative one counts from the last. None: there is no such column.
        normalizer: see there. RetinaNet of torchvision has "image", whose mean is over the batch.

    Returns:
        box_loss () float32, class_loss () float32 and num_positives (B,) int64. Images without
        objects train; without any row the losses are zero.

    Raises:
        ValueError: for arguments of a wrong shape, dtype, device or range.
    """
    delta_levels, logit_levels = as_levels(deltas), as_levels(logits)
    targets = priors, boxes, labels, offsets, matches
    if background_index is not None:
        background_index = resolve_background(background_index, delta_levels, logit_levels, priors)
    options = _focal_options(
        alpha,
        gamma,
        background_index,
        iou_threshold=iou_threshold,
        low_threshold=low_threshold,
        strict=strict,
        assign=assign,
        ignore_threshold=ignore_threshold,
        box_loss=box_loss,
        beta=beta,
        variances=variances,
        normalizer=normalizer,
    )
    check_loss_tensors(delta_levels, logit_levels, (*targets, None), background_index or 0)
    return traced_loss(
        "focal_loss", delta_levels, logit_levels, targets, options, _BACKWARD_OPTIONS
    )


def focal_loss_reference(
    deltas: Tensor | Sequence[Tensor],
    logits: Tensor | Sequence[Tensor],
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    *,
    matches: Tensor | None = None,
    alpha: float = 0.25,
    gamma: float = 2.0,
    background_index: int | None = 0,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition of `focal_loss`, in plain PyTorch under autograd; takes float64 too."""
    maps = as_levels(deltas), as_levels(logits)
    if background_index is not None and background_index < 0:
        background_index += join_levels(*maps)[1].size(2)
    arguments = _focal_options(alpha, gamma, background_index, **options)
    return _forward(*maps, priors, boxes, labels, offsets, matches, *arguments)[:3]


def _focal_options(
    alpha: float, gamma: float, background_index: int | None, **options: Any
) -> tuple[Any, ...]:
    """The options, checked, as the schema takes them."""
    if not isinstance(alpha, int | float | torch.SymFloat) or not -(2.0**127) <= alpha <= 1:
        raise ValueError(
            f"alpha: expected a number from 0 to 1, or a negative one for no weights, got {alpha!r}"
        )
    check_number("gamma", gamma, low=0)
    some_index = 0 if background_index is None else background_index
    checked = loss_options(**options, background_index=some_index)
    normalizer = checked[-1]
    background = NO_BACKGROUND if background_index is None else background_index
    return (*checked[:5], *checked[7:10], alpha, gamma, background, normalizer)


def _forward(
    deltas: list[Tensor],
    logits: list[Tensor],
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    matches: Tensor | None,
    iou_threshold: float,
    low_threshold: float | None,
    strict: bool,
    assign: int,
    ignore_threshold: float | None,
    box_loss: int,
    beta: float,
    variances: Sequence[float],
    alpha: float,
    gamma: float,
    background_index: int,
    normalizer: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``ssd_fast::focal_loss`` in plain PyTorch, under autograd."""
    delta_rows, logit_rows = join_levels(deltas, logits)
    in_range = (labels >= 0) & (labels < logit_rows.size(2)) & (labels != background_index)
    code = assigned_rows(
        priors, boxes, labels, offsets, matches, in_range,
        iou_threshold, low_threshold, strict, assign, ignore_threshold,
    )  # fmt: skip
    num_positives = (code >= 0).sum(dim=1)
    weight = image_weights(num_positives, normalizer)
    image, prior, row = positive_rows(code, offsets)
    box_rows = box_losses(
        delta_rows[image, prior], priors[prior], boxes[row], box_loss, beta, variances
    )
    box_sum = (box_rows * weight.to(box_rows.dtype)[image]).sum()
    entering, targets = _class_targets(code, offsets, labels, logit_rows.size(2))
    terms = focal_loss_terms(logit_rows[entering], targets, alpha, gamma).sum(dim=1)
    class_sum = (terms * weight.to(terms.dtype)[entering.nonzero()[:, 0]]).sum()
    return box_sum, class_sum, num_positives, code


def _backward(
    grad_box_loss: Tensor,
    grad_class_loss: Tensor,
    deltas: list[Tensor],
    logits: list[Tensor],
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    code: Tensor,
    num_positives: Tensor,
    box_loss: int,
    beta: float,
    variances: Sequence[float],
    alpha: float,
    gamma: float,
    background_index: int,
    normalizer: int,
) -> tuple[list[Tensor], list[Tensor]]:
    """``ssd_fast::focal_loss_backward`` in plain PyTorch."""
    delta_rows, logit_rows = join_levels(deltas, logits)
    weight = image_weights(num_positives, normalizer).to(logit_rows.dtype)
    image, prior, row = positive_rows(code, offsets)
    slope = box_slopes(
        delta_rows[image, prior], priors[prior], boxes[row], box_loss, beta, variances
    )
    grad_deltas = torch.zeros_like(delta_rows)
    grad_deltas[code >= 0] = slope * (grad_box_loss * weight[image]).unsqueeze(1)
    entering, targets = _class_targets(code, offsets, labels, logit_rows.size(2))
    slope = focal_slopes(logit_rows[entering], targets, alpha, gamma)
    grad_logits = torch.zeros_like(logit_rows)
    scale = grad_class_loss * weight[entering.nonzero()[:, 0]]
    grad_logits[entering] = slope * scale.unsqueeze(1)
    return split_rows(grad_deltas, deltas), split_rows(grad_logits, logits)


def _class_targets(
    code: Tensor, offsets: Tensor, labels: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """Which rows enter the class loss, (B, P) bool, and the targets of their columns, (n, C)."""
    image, prior, row = positive_rows(code, offsets)
    targets = torch.zeros((*code.shape, classes), dtype=torch.bool, device=code.device)
    targets[image, prior, labels[row]] = True
    entering = code != IGNORED
    return entering, targets[entering]


register(
    "focal_loss",
    "(Tensor[] deltas, Tensor[] logits, Tensor priors, Tensor boxes, Tensor labels, "
    "Tensor offsets, Tensor? matches, float iou_threshold, float? low_threshold, bool strict, "
    "int assign, float? ignore_threshold, int box_loss, float beta, float[] variances, "
    "float alpha, float gamma, int background_index, int normalizer) "
    "-> (Tensor, Tensor, Tensor num_positives, Tensor code)",
    reference=_forward,
    fake=fake_forward,
    cuda="focal_loss.launch_focal_loss",
)
register(
    "focal_loss_backward",
    "(Tensor grad_box_loss, Tensor grad_class_loss, Tensor[] deltas, Tensor[] logits, "
    "Tensor priors, Tensor boxes, Tensor labels, Tensor offsets, Tensor code, "
    "Tensor num_positives, int box_loss, float beta, float[] variances, float alpha, "
    "float gamma, int background_index, int normalizer) "
    "-> (Tensor[] grad_deltas, Tensor[] grad_logits)",
    reference=_backward,
    fake=fake_backward,
    cuda="focal_loss_backward.launch_focal_loss_backward",
)
