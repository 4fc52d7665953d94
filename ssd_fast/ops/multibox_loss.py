# SPDX-License-Identifier: BSD-3-Clause
"""multibox_loss: SSD's training loss and its gradient, from raw head outputs and ragged targets.

CPU csrc/cpu/multibox_loss.cpp   GPU kernels/multibox_loss.py
test tests/ops/test_multibox_loss.py   benchmark benchmarks/bench_multibox_loss.py
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.compiler import is_compiling

from ssd_fast.ops._arguments import are_plain, as_levels, resolve_background
from ssd_fast.ops._library import register
from ssd_fast.ops._loss_arguments import BACKWARD_OPTIONS, check_loss_tensors, loss_options
from ssd_fast.ops._loss_autograd import eager_loss, traced_loss
from ssd_fast.ops._loss_reference import (
    backward_reference,
    fake_backward,
    fake_forward,
    forward_reference,
    loss_reference,
)
from ssd_fast.ops._remembered import remembered

__all__ = ["multibox_loss", "multibox_loss_reference"]


def multibox_loss(
    deltas: Tensor | Sequence[Tensor],
    logits: Tensor | Sequence[Tensor],
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    *,
    matches: Tensor | None = None,
    class_weights: Tensor | None = None,
    iou_threshold: float = 0.5,
    low_threshold: float | None = None,
    strict: bool = False,
    assign: str = "last",
    ignore_threshold: float | None = 0.5,
    ratio: float = 3.0,
    min_negatives: int = 0,
    box_loss: str = "smooth_l1",
    beta: float = 1.0,
    variances: Sequence[float] = (0.1, 0.2),
    label_smoothing: float = 0.0,
    background_index: int = 0,
    normalizer: str = "positives",
) -> tuple[Tensor, Tensor, Tensor]:
    """The MultiBox loss (SSD paper, section 2.2, equations 1 to 3), fused and differentiable.

    Matches priors to objects as `match` does, encodes the matched boxes, takes smooth-L1 over the
    positives and softmax cross-entropy over the positives and the hardest negatives, which are
    mined as `mine` does by the sum over c != background of ``exp(x_c - x_background)``: for a
    negative, its log1p is the cross-entropy, before weights and smoothing, which mining never
    sees. Arithmetic is float32 or better whatever the dtype of the inputs. Objects without
    positive finite area, or with a label outside [0, C) or equal to the background, match nothing.

    Args:
        deltas: (B, P, 4) in any strides, or one map a level, (B, A * 4, H, W) in any memory format;
            float32, float16 or bfloat16. Row order is (level, y, x, anchor), channel
            ``a * 4 + k``. Heads that end in (B, 4, P) go in as ``deltas.transpose(1, 2)``; nothing
            is copied, here or in the backward.
        logits: (B, P, C), or one map a level, (B, A * C, H, W); float32, float16 or bfloat16.
        priors: (P, 4) float32 corners.
        boxes: (N, 4) float32 corners of the objects of all images, in the unit of the priors.
        labels: (N,) int64 classes; -1 makes the box a region to ignore.
        offsets: (B + 1,) int64; image i owns rows ``offsets[i]:offsets[i + 1]``.
        matches: (B, P) int32 or int64, used instead of matching, as `match` returns it: the index
            of the object within its image, -1 background, -2 ignored. A number that fits no valid
            object of its image counts as ignored.
        class_weights: (C,) float32; the class loss of a row is multiplied by its target's. The
            normalizer stays what it is: no weighted mean. Not differentiated.
        iou_threshold: see `match`.
        low_threshold: see `match`; ignored priors are neither positive nor mined.
        strict: see `match`.
        assign: see `match`.
        ignore_threshold: a prior that would be background is ignored where at least this share of
            its own area (in float32) lies inside one region to ignore, an object with label -1: a
            crowd, or a difficult object. None: such objects do nothing.
        ratio: negatives for each positive of an image, see `mine`.
        min_negatives: least number of negatives of an image; above 0, images without objects
            train.
        box_loss: of the positives. "smooth_l1" or "l1" of the encoded offsets; or, between the
            decoded box (the scale clamped as by `decode`) and the object's, "giou", "diou" or
            "ciou": the formulas of `torchvision.ops.generalized_box_iou_loss`,
            `distance_box_iou_loss` and `complete_box_iou_loss`, whose epsilon of 1e-7 has the
            unit of the boxes, squared.
        beta: where smooth-L1 turns from square to linear; 0 is L1.
        variances: 2 or 4 numbers that scale the encoded offsets.
        label_smoothing: from 0 to 1, as in `torch.nn.functional.cross_entropy`, with weights too.
        background_index: class index of the background, 0 in SSD; a negative one counts from the
            last class, which is -1.
        normalizer: what the sums are divided by. "positives": the positives of the batch, at
            least 1 (torchvision). "image": each image by its own positives, at least 1, then the
            mean over the batch (NVIDIA). "none": plain sums.

    Returns:
        box_loss () float32, class_loss () float32 and num_positives (B,) int64. Without any
        selected row the losses and their gradients are zero. A selected row has a loss that is
        not finite where a logit is NaN, the target's is -inf, or another is +inf.

    Raises:
        ValueError: for arguments of a wrong shape, dtype, device or range.

    Example:
        >>> boxes, labels, offsets, _ = ssd_fast.Targets.pack(targets)
        >>> priors = ssd_fast.priors.ssd300()
        >>> box_loss, class_loss, _ = multibox_loss(deltas, logits, priors, boxes, labels, offsets)
        >>> (box_loss + class_loss).backward()
    """
    delta_levels, logit_levels = as_levels(deltas), as_levels(logits)
    targets = priors, boxes, labels, offsets, matches, class_weights
    if isinstance(background_index, int) and background_index < 0:
        background_index = resolve_background(background_index, delta_levels, logit_levels, priors)
    compiling = is_compiling()
    options = (loss_options if compiling else _known_options)(
        iou_threshold,
        low_threshold,
        strict,
        assign,
        ignore_threshold,
        ratio,
        min_negatives,
        box_loss,
        beta,
        variances,
        label_smoothing,
        background_index,
        normalizer,
    )
    if not compiling and are_plain((*delta_levels, *logit_levels, *targets)):
        # The kernel accepts what these checks accept; they only say better what is wrong.
        try:
            return eager_loss(_operators, delta_levels, logit_levels, targets, options)
        except (RuntimeError, AttributeError) as error:  # the latter of a level that is None
            refused = error
        check_loss_tensors(delta_levels, logit_levels, targets, background_index)
        raise refused
    check_loss_tensors(delta_levels, logit_levels, targets, background_index)
    return traced_loss(
        "multibox_loss", delta_levels, logit_levels, targets, options, BACKWARD_OPTIONS
    )


_known_options = remembered(loss_options)


def multibox_loss_reference(
    deltas: Tensor | Sequence[Tensor],
    logits: Tensor | Sequence[Tensor],
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition of `multibox_loss`, in plain PyTorch under autograd; takes float64 too."""
    return loss_reference(deltas, logits, priors, boxes, labels, offsets, **options)


_forward = register(
    "multibox_loss",
    "(Tensor[] deltas, Tensor[] logits, Tensor priors, Tensor boxes, Tensor labels, "
    "Tensor offsets, Tensor? matches, Tensor? class_weights, float iou_threshold, "
    "float? low_threshold, bool strict, int assign, float? ignore_threshold, float ratio, "
    "int min_negatives, int box_loss, float beta, float[] variances, float label_smoothing, "
    "int background_index, int normalizer) "
    "-> (Tensor box_loss, Tensor class_loss, Tensor num_positives, Tensor code)",
    reference=forward_reference,
    fake=fake_forward,
    cuda="multibox_loss.launch_multibox_loss",
)
_backward = register(
    "multibox_loss_backward",
    "(Tensor grad_box_loss, Tensor grad_class_loss, Tensor[] deltas, Tensor[] logits, "
    "Tensor priors, Tensor boxes, Tensor labels, Tensor offsets, Tensor code, "
    "Tensor num_positives, Tensor? class_weights, int box_loss, float beta, float[] variances, "
    "float label_smoothing, int background_index, int normalizer) "
    "-> (Tensor[] grad_deltas, Tensor[] grad_logits)",
    reference=backward_reference,
    fake=fake_backward,
    cuda="multibox_loss_backward.launch_multibox_loss_backward",
)

_operators = _forward, _backward
