# SPDX-License-Identifier: BSD-3-Clause
"""heads_loss: the heads' convolutions and the MultiBox loss as one node of the autograd graph.

CPU and GPU run the convolutions of PyTorch and `multibox_loss`. The backward of the CPU multiplies
the cells that the loss touches, about one in sixteen: ops/_sparse_convolution.py.
test tests/ops/test_heads_loss.py   benchmark benchmarks/bench_heads_loss.py
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from ssd_fast.ops._arguments import LOGIT_DTYPES, resolve_background
from ssd_fast.ops._heads_arguments import check_heads, stand_in_maps
from ssd_fast.ops._library import library, register
from ssd_fast.ops._loss_arguments import BACKWARD_OPTIONS, check_loss_tensors, loss_options
from ssd_fast.ops._loss_autograd import differentiable_once
from ssd_fast.ops._loss_reference import fake_forward, loss_reference
from ssd_fast.ops._sparse_convolution import (
    Level,
    are_small,
    dense_backward,
    laid_out_like,
    sparse_backward,
)
from ssd_fast.ops._touched_cells import cell_gradients

__all__ = ["heads_loss", "heads_loss_reference"]


def heads_loss(
    features: Sequence[Tensor],
    delta_weights: Sequence[Tensor],
    delta_biases: Sequence[Tensor | None],
    logit_weights: Sequence[Tensor],
    logit_biases: Sequence[Tensor | None],
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
    """SSD's 3x3 heads on every feature map, and `multibox_loss` of what they predict.

    Equal to the convolutions followed by `multibox_loss`, forward and backward, but for the order
    of sums. What it is for is the backward on the CPU: the loss has no gradient in most cells of
    a map, so the gradients of weights, biases and features come from the 3x3 patches of the others
    alone, and the dense gradient of the logits never exists. A level with too many such cells
    takes the dense backward, as all do on other devices.

    Args:
        features: one map a level, (B, C', H, W) in any memory format; float32, float16 or
            bfloat16. Under autocast they are cast to its dtype.
        delta_weights: one a level, (A * 4, C', 3, 3); these and the following are cast to the
            dtype of the features. The convolutions have stride 1 and padding 1.
        delta_biases: one a level, (A * 4,) or None.
        logit_weights: one a level, (A * C, C', 3, 3).
        logit_biases: one a level, (A * C,) or None.
        priors: (P, 4) float32 corners, in (level, y, x, anchor) order.
        boxes: see `multibox_loss`, as for all that follow.
        labels: (N,) int64 classes.
        offsets: (B + 1,) int64.
        matches: (B, P) of `match`, to be used instead of matching; or None.
        class_weights: (C,) float32 factors of the class loss; or None.
        iou_threshold: least overlap of a positive prior.
        low_threshold: least overlap of an ignored prior, or None.
        strict: whether a positive prior overlaps by more than `iou_threshold`.
        assign: how objects claim their best prior.
        ignore_threshold: least share of an ignored prior inside a region of label -1, or None.
        ratio: negatives for each positive of an image.
        min_negatives: least number of negatives of an image.
        box_loss: "smooth_l1", "l1", "giou", "diou" or "ciou".
        beta: where smooth-L1 turns from square to linear.
        variances: 2 or 4 numbers that scale the encoded offsets.
        label_smoothing: of the class loss.
        background_index: class index of the background; a negative one counts from the last.
        normalizer: what the sums are divided by.

    Returns:
        box_loss () float32, class_loss () float32 and num_positives (B,) int64.

    Raises:
        ValueError: for arguments of a wrong shape, dtype, device or range.
    """
    heads = list(delta_weights), list(delta_biases), list(logit_weights), list(logit_biases)
    features = [_as_convolved(feature) for feature in features]
    check_heads(features, *heads)
    dtype = features[0].dtype
    deltas, logits = (stand_in_maps(features, weights) for weights in (heads[0], heads[2]))
    background_index = resolve_background(background_index, deltas, logits, priors)
    targets = priors, boxes, labels, offsets, matches, class_weights
    options = loss_options(
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
    check_loss_tensors(deltas, logits, targets, background_index)
    cast = [None if x is None else x.to(dtype) for parameters in heads for x in parameters]
    inputs = (*targets, *features, *cast)
    if torch.compiler.is_compiling() and not _needs_gradient(inputs):
        # Dynamo of torch 2.13 would hand the context of a Function to a forward of any length.
        losses = _HeadsLoss.forward(options, *inputs)
    else:
        losses = _HeadsLoss.apply(options, *inputs)
    return losses[0], losses[1], losses[2]


def _as_convolved(feature: Tensor) -> Tensor:
    """In the dtype that `torch.nn.functional.conv2d` computes in, here and now."""
    if not isinstance(feature, Tensor) or feature.dtype not in LOGIT_DTYPES:
        return feature
    device = feature.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # autocast knows no meta
        return feature
    return feature.to(torch.get_autocast_dtype(device))


def _needs_gradient(tensors: Sequence[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


class _HeadsLoss(torch.autograd.Function):
    """Ties the operator to its backward; levels are spelled out because autograd sees no lists."""

    generate_vmap_rule = True

    @staticmethod
    def forward(options: tuple[Any, ...], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        *losses, deltas, logits = torch.ops.ssd_fast.heads_loss.default(
            *_by_level(tensors[6:], 5), *tensors[:6], *options
        )
        return (*losses, *deltas, *logits)

    # Looked up at every call; without it `inspect` would work it out anew.
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        options, *tensors = inputs
        _, _, num_positives, code, *maps = output
        ctx.mark_non_differentiable(num_positives, code, *maps)
        # Or backward would be given zeros for them, as large as they are.
        ctx.set_materialize_grads(False)
        ctx.options = options[BACKWARD_OPTIONS]
        features, delta_weights, _, logit_weights, _ = _by_level(tensors[6:], 5)
        # All but the matches: the code says what became of them.
        targets = *tensors[:4], code, num_positives, tensors[5]
        ctx.save_for_backward(*targets, *features, *delta_weights, *logit_weights, *maps)

    @staticmethod
    @differentiable_once
    def backward(
        ctx: Any, grad_box: Tensor | None, grad_class: Tensor | None, *_: Any
    ) -> tuple[Any, ...]:
        *targets, class_weights = ctx.saved_tensors[:7]
        levels = ctx.saved_tensors[7:]
        wanted = list(ctx.needs_input_grad[7:])
        gradients = torch.ops.ssd_fast.heads_loss_backward.default(
            targets[0].new_zeros(()) if grad_box is None else grad_box,
            targets[0].new_zeros(()) if grad_class is None else grad_class,
            *_by_level(levels, 5),
            *targets,
            wanted,
            class_weights,
            *ctx.options,
        )
        kept = (x if want else None for x, want in zip(gradients, wanted, strict=True))
        return (*(None,) * 7, *kept)


def _by_level(tensors: Sequence[Any], kinds: int) -> list[list[Any]]:
    """Takes a flat list apart into lists of the same length."""
    levels = len(tensors) // kinds
    return [list(tensors[i * levels : (i + 1) * levels]) for i in range(kinds)]


def heads_loss_reference(
    features: Sequence[Tensor],
    delta_weights: Sequence[Tensor],
    delta_biases: Sequence[Tensor | None],
    logit_weights: Sequence[Tensor],
    logit_biases: Sequence[Tensor | None],
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
    offsets: Tensor,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition of `heads_loss`, in plain PyTorch under autograd; takes float64 too."""
    deltas = _convolve(features, delta_weights, delta_biases)
    logits = _convolve(features, logit_weights, logit_biases)
    return loss_reference(deltas, logits, priors, boxes, labels, offsets, **options)


def _convolve(
    features: Sequence[Tensor], weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> list[Tensor]:
    """The heads' maps of every level, channels_last where PyTorch makes them so."""
    return [
        conv2d(x, w, b, padding=1).contiguous(memory_format=_memory_format(x, w))
        for x, w, b in zip(features, weights, biases, strict=True)
    ]


def _memory_format(*tensors: Tensor) -> torch.memory_format:
    """Of what a convolution makes of these: channels_last if one of them is that alone."""
    for tensor in tensors:
        if not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
            return torch.channels_last
    return torch.contiguous_format


def _forward(
    features: list[Tensor],
    delta_weights: list[Tensor],
    delta_biases: list[Tensor | None],
    logit_weights: list[Tensor],
    logit_biases: list[Tensor | None],
    *rest: Any,
) -> tuple[Any, ...]:
    with torch.autocast(features[0].device.type, enabled=False):
        deltas = _convolve(features, delta_weights, delta_biases)
        logits = _convolve(features, logit_weights, logit_biases)
    return (*torch.ops.ssd_fast.multibox_loss.default(deltas, logits, *rest), deltas, logits)


def _backward_reference(
    grad_box_loss: Tensor,
    grad_class_loss: Tensor,
    features: list[Tensor],
    delta_weights: list[Tensor],
    logit_weights: list[Tensor],
    deltas: list[Tensor],
    logits: list[Tensor],
    *rest: Any,
) -> list[Tensor]:
    """The dense backward of every level."""
    arguments = (*rest[:6], *rest[7:])
    gradients = torch.ops.ssd_fast.multibox_loss_backward.default(
        grad_box_loss, grad_class_loss, deltas, logits, *arguments
    )
    levels = _levels(features, delta_weights, logit_weights, rest[6])
    maps = zip(*gradients, strict=True)
    found = [dense_backward(*level) for level in zip(levels, maps, strict=True)]
    return _by_kind(levels, found)


def _backward_cpu(grad_box_loss: Tensor, grad_class_loss: Tensor, *arguments: Any) -> list[Tensor]:
    """The backward from the touched cells of every level."""
    features, delta_weights, logit_weights, *maps = arguments[:5]
    targets, wanted, options = arguments[5:11], arguments[11], arguments[12:]
    levels = _levels(features, delta_weights, logit_weights, wanted)
    if are_small(levels):
        return _backward_reference(grad_box_loss, grad_class_loss, *arguments)
    with torch.autocast("cpu", enabled=False):
        cells, *rows = cell_gradients(grad_box_loss, grad_class_loss, *maps, *targets, *options)
        pairs = zip(*rows, strict=True)
        gradients = [sparse_backward(*level) for level in zip(levels, cells, pairs, strict=True)]
    return _by_kind(levels, gradients)


def _levels(
    features: list[Tensor],
    delta_weights: list[Tensor],
    logit_weights: list[Tensor],
    wanted: list[bool],
) -> list[Level]:
    """The operator's lists, level by level."""
    weights = zip(delta_weights, logit_weights, strict=True)
    flags = zip(*_by_level(wanted, 5), strict=True)
    return [Level(*level) for level in zip(features, weights, flags, strict=True)]


def _by_kind(levels: list[Level], gradients: list[list[Tensor | None]]) -> list[Tensor]:
    """Features of all levels first, then all delta weights, and so on, as `wanted` lists them."""
    results = [
        [
            like.new_empty(0) if x is None else laid_out_like(x, like)
            for x, like in zip(found, _inputs(level), strict=True)
        ]
        for level, found in zip(levels, gradients, strict=True)
    ]
    return [gradient for kind in zip(*results, strict=True) for gradient in kind]


def _inputs(level: Level) -> list[Tensor]:
    """What the gradients of a level are like; of biases only the length counts."""
    deltas, logits = level.weights
    return [level.features, deltas, deltas[:, 0, 0, 0], logits, logits[:, 0, 0, 0]]


def _fake(
    features: list[Tensor],
    delta_weights: list[Tensor],
    delta_biases: list[Tensor | None],
    logit_weights: list[Tensor],
    logit_biases: list[Tensor | None],
    priors: Tensor,
    *rest: Any,
) -> tuple[Any, ...]:
    batch = features[0].size(0)
    maps = [
        [
            torch.empty(
                (batch, weight.size(0), *x.shape[2:]),
                dtype=x.dtype,
                device=x.device,
                memory_format=_memory_format(x, weight),
            )
            for x, weight in zip(features, weights, strict=True)
        ]
        for weights in (delta_weights, logit_weights)
    ]
    return (*fake_forward(maps[0], maps[1], priors), *maps)


def _backward_fake(
    grad_box_loss: Tensor,
    grad_class_loss: Tensor,
    features: list[Tensor],
    delta_weights: list[Tensor],
    logit_weights: list[Tensor],
    deltas: list[Tensor],
    logits: list[Tensor],
    *rest: Any,
) -> list[Tensor]:
    levels = _levels(features, delta_weights, logit_weights, rest[6])
    gradients: list[list[Tensor | None]] = [
        [
            x.new_empty(x.shape) if x.dim() == 1 and want else torch.empty_like(x) if want else None
            for x, want in zip(_inputs(level), level.wanted, strict=True)
        ]
        for level in levels
    ]
    return _by_kind(levels, gradients)


_TARGETS = "Tensor priors, Tensor boxes, Tensor labels, Tensor offsets, "
_OPTIONS = (
    "int box_loss, float beta, float[] variances, float label_smoothing, int background_index, "
    "int normalizer"
)

register(
    "heads_loss",
    "(Tensor[] features, Tensor[] delta_weights, Tensor?[] delta_biases, Tensor[] logit_weights, "
    f"Tensor?[] logit_biases, {_TARGETS} Tensor? matches, Tensor? class_weights, "
    "float iou_threshold, float? low_threshold, bool strict, int assign, float? ignore_threshold, "
    f"float ratio, int min_negatives, {_OPTIONS}) -> (Tensor box_loss, "
    "Tensor class_loss, Tensor num_positives, Tensor code, Tensor[] deltas, Tensor[] logits)",
    reference=_forward,
    fake=_fake,
)
register(
    "heads_loss_backward",
    "(Tensor grad_box_loss, Tensor grad_class_loss, Tensor[] features, Tensor[] delta_weights, "
    f"Tensor[] logit_weights, Tensor[] deltas, Tensor[] logits, {_TARGETS} Tensor code, "
    f"Tensor num_positives, bool[] wanted, Tensor? class_weights, {_OPTIONS}) "
    "-> Tensor[] gradients",
    reference=_backward_reference,
    fake=_backward_fake,
)
library.impl("heads_loss_backward", _backward_cpu, "CPU")
