# SPDX-License-Identifier: BSD-3-Clause
"""The autograd side of multibox_loss and focal_loss: nodes that tie an operator to its backward.

`TracedLoss` is what torch.func and torch.compile ask for, a Function with `setup_context`.
`EagerLoss` is the same for multibox_loss, without what that costs at every call: binding arguments
to a signature, nodes for inputs and outputs that have no gradient, switching gradients off a second
time. At one image that was more than the loss itself.
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from ssd_fast.ops._loss_arguments import BACKWARD_OPTIONS

__all__ = ["differentiable_once", "eager_loss", "traced_loss"]

Losses = tuple[Tensor, Tensor, Tensor]
Backward = Callable[..., tuple[Tensor | None, ...]]
Operators = tuple[Callable[..., Any], Callable[..., Any]]  # of a loss and of its backward


def differentiable_once(backward: Backward) -> Backward:
    """`once_differentiable`, for gradients that depend on more than what comes in.

    PyTorch's refuses a second derivative only through the incoming gradients; through the logits,
    on which softmax depends as well, it would be silently zero.
    """
    once: Backward = once_differentiable(backward)

    @functools.wraps(backward)
    def refusing(ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():  # nobody can ask for more: no need to switch it off again
            return backward(ctx, *incoming)
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
            return once(ctx, *incoming)
        with torch.no_grad():
            gradients = backward(ctx, *incoming)
        message = b"trying to differentiate twice a loss of ssd_fast, which has one derivative"
        refuse = torch._C._functions.DelayedError(message, len(gradients))
        found: list[Any] = [x if x is None else x.detach().requires_grad_() for x in gradients]
        refused: tuple[Tensor | None, ...] = refuse(*found)
        return refused

    return refusing


def traced_loss(
    name: str,
    deltas: list[Tensor],
    logits: list[Tensor],
    targets: tuple[Tensor | None, ...],
    options: tuple[Any, ...],
    shared: slice,
) -> Losses:
    """The loss of checked arguments, whatever traces or transforms the call.

    Args:
        name: the operator, "multibox_loss" or "focal_loss".
        deltas: one a level.
        logits: one a level.
        targets: priors, boxes, labels, offsets, matches and whatever else the operator takes
            before its options, from matches on perhaps None.
        options: the operator's, in its order.
        shared: those of the options that its backward takes.
    """
    inputs: tuple[Any, ...] = (name, options, options[shared], len(deltas))
    inputs = (*inputs, *_as_constants(targets), *deltas, *logits)
    if torch.compiler.is_compiling() and not _need_gradient(deltas, logits):
        # Dynamo of torch 2.13 would hand the context of a Function to a forward of any length.
        box_loss, class_loss, num_positives, _ = TracedLoss.forward(*inputs)
    else:
        box_loss, class_loss, num_positives, _ = TracedLoss.apply(*inputs)
    return box_loss, class_loss, num_positives


def eager_loss(
    operators: Operators,
    deltas: list[Tensor],
    logits: list[Tensor],
    targets: tuple[Tensor | None, ...],
    options: tuple[Any, ...],
) -> Losses:
    """multibox_loss of plain tensors outside torch.compile; its two operators check them."""
    # torch.func and forward-mode differentiation, which ends in an error that says so.
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return traced_loss("multibox_loss", deltas, logits, targets, options, BACKWARD_OPTIONS)
    if torch.is_grad_enabled():
        if _need_gradient(deltas, logits):
            counts: list[Tensor] = []
            rest = operators, options, targets, counts
            box_loss, class_loss = EagerLoss.apply(rest, *deltas, *logits)
            return box_loss, class_loss, counts[0]
        targets = _as_constants(targets)
    box_loss, class_loss, num_positives, _ = operators[0](deltas, logits, *targets, *options)
    return box_loss, class_loss, num_positives


def _as_constants(targets: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Nothing is differentiated by them, which autograd would doubt where they are learned."""
    if not _need_gradient(targets):
        return targets
    return tuple(x if x is None else x.detach() for x in targets)


def _need_gradient(*lists: Iterable[Tensor | None]) -> bool:
    if torch.is_grad_enabled():
        for tensors in lists:  # loops, see `are_plain`
            for x in tensors:
                if x is not None and x.requires_grad:
                    return True
    return False


class TracedLoss(torch.autograd.Function):
    """Levels are spelled out because autograd sees no lists."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        name: str, options: tuple[Any, ...], shared: tuple[Any, ...], levels: int, *tensors: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        maps, targets = tensors[-2 * levels :], tensors[: -2 * levels]
        operator = getattr(torch.ops.ssd_fast, name).default
        result: tuple[Tensor, Tensor, Tensor, Tensor] = operator(
            maps[:levels], maps[levels:], *targets, *options
        )
        return result

    # Looked up at every call; without it `inspect` would work it out anew.
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.name, _, ctx.options, ctx.levels, *tensors = inputs
        _, _, num_positives, code = output
        ctx.mark_non_differentiable(num_positives, code)
        # Or backward would be given zeros for them, as large as they are.
        ctx.set_materialize_grads(False)
        # All but the matches: the code says what became of them.
        ctx.save_for_backward(*tensors[:4], *tensors[5:], code, num_positives)

    @staticmethod
    @differentiable_once
    def backward(
        ctx: Any, grad_box: Tensor | None, grad_class: Tensor | None, *_: Any
    ) -> tuple[Any, ...]:
        operator = getattr(torch.ops.ssd_fast, ctx.name + "_backward").default
        gradients = _gradients(operator, ctx, grad_box, grad_class)
        return (*(None,) * (len(ctx.needs_input_grad) - len(gradients)), *gradients)


class EagerLoss(torch.autograd.Function):
    """Levels are spelled out because autograd sees no lists; the rest comes in a tuple."""

    @staticmethod
    def forward(
        ctx: Any,
        rest: tuple[Operators, tuple[Any, ...], tuple[Tensor | None, ...], list[Tensor]],
        *maps: Tensor,
    ) -> tuple[Tensor, Tensor]:
        (forward, backward), options, targets, counts = rest
        levels = len(maps) // 2
        box_loss, class_loss, num_positives, code = forward(
            maps[:levels], maps[levels:], *targets, *options
        )
        counts.append(num_positives)
        ctx.operator, ctx.levels = backward, levels
        ctx.options = options[BACKWARD_OPTIONS]
        ctx.save_for_backward(*targets[:4], targets[5], *maps, code, num_positives)
        return box_loss, class_loss

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_box: Tensor, grad_class: Tensor) -> tuple[Any, ...]:
        return (None, *_gradients(ctx.operator, ctx, grad_box, grad_class))


def _gradients(
    operator: Callable[..., tuple[list[Tensor], list[Tensor]]],
    ctx: Any,
    grad_box: Tensor | None,
    grad_class: Tensor | None,
) -> tuple[Tensor, ...]:
    """The gradients of all levels of deltas, then of logits."""
    priors, boxes, labels, offsets, *rest, code, num_positives = ctx.saved_tensors
    others, maps = rest[: -2 * ctx.levels], rest[-2 * ctx.levels :]
    grad_deltas, grad_logits = operator(
        priors.new_zeros(()) if grad_box is None else grad_box,
        priors.new_zeros(()) if grad_class is None else grad_class,
        maps[: ctx.levels],
        maps[ctx.levels :],
        priors,
        boxes,
        labels,
        offsets,
        code,
        num_positives,
        *others,
        *ctx.options,
    )
    return (*grad_deltas, *grad_logits)
