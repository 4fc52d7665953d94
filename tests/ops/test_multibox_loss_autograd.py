# SPDX-License-Identifier: BSD-3-Clause
"""multibox_loss under autograd, torch.func and torch.compile, and as an operator."""

import math

import pytest
import torch
from torch import Tensor

from ssd_fast.ops import multibox_loss
from ssd_fast.ops._loss_reference import backward_reference
from ssd_fast.testing import Objects, as_maps, assert_close, random_boxes, random_objects, seeded

from .loss_cases import CELLS, P_CELLS, loss_and_gradients, operator_inputs, random_heads


def test_functional_gradient_equals_autograd() -> None:
    """``torch.func.grad`` goes through the operator."""
    deltas, logits = random_heads(2, 60, 5, seed=0)
    targets = random_boxes(60, seeded(1)), *random_objects(2, seeded(2), classes=5)

    def total(deltas: Tensor, logits: Tensor) -> Tensor:
        box_loss, class_loss, _ = multibox_loss(deltas, logits, *targets)
        return 2 * box_loss + 3 * class_loss

    functional = torch.func.grad(total, argnums=(0, 1))(deltas, logits)
    expected = loss_and_gradients(multibox_loss, deltas, logits, *targets)[3:]
    assert all(torch.equal(a, b) for a, b in zip(functional, expected, strict=True))


def test_autograd_leaves_nothing_else_to_differentiate(device) -> None:
    """Counts carry no gradient, frozen heads and targets give none, a second one is refused."""
    deltas, logits = (x.to(device) for x in random_heads(2, 60, 5, seed=0))
    objects = random_objects(2, seeded(2), classes=5)
    targets = [x.to(device) for x in (random_boxes(60, seeded(1)), *objects)]
    plain = multibox_loss(deltas, logits, *targets)
    assert not any(x.requires_grad for x in plain)
    learned = [targets[0], targets[1].clone().requires_grad_(), *targets[2:]]
    assert not any(x.requires_grad for x in multibox_loss(deltas, logits, *learned))
    for weights in (torch.ones(5, requires_grad=True), torch.nn.Parameter(torch.ones(5))):
        weighted = multibox_loss(deltas, logits, *targets, class_weights=weights.to(device))
        assert not any(x.requires_grad for x in weighted)
    logits.requires_grad_()
    with torch.no_grad():
        assert not any(x.requires_grad for x in multibox_loss(deltas, logits, *targets))
    losses = multibox_loss(deltas, logits, *targets)
    assert [x.requires_grad for x in losses] == [True, True, False]
    assert all(torch.equal(a, b) for a, b in zip(losses, plain, strict=True))
    for loss in (losses[1], losses[1] ** 2):
        (first,) = torch.autograd.grad(loss, logits, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            first.square().sum().backward()
    losses = multibox_loss(deltas, logits, *targets)
    targets[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses[0].backward()


def test_compiles_without_a_graph_break() -> None:
    """Forward and backward in one graph; targets of a fixed capacity never recompile."""
    targets = random_boxes(60, seeded(1))
    compiled = torch.compile(multibox_loss, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(4):
            objects = random_objects(2, seeded(seed), counts=(0, 6), classes=5)
            spare = 12 - objects.boxes.size(0)
            padded = Objects(
                torch.cat((objects.boxes, torch.full((spare, 4), math.nan))),
                torch.cat((objects.labels, torch.zeros(spare).long())),
                objects.offsets,
            )
            heads = random_heads(2, 60, 5, seed)
            actual = loss_and_gradients(compiled, *heads, targets, *padded)
            expected = loss_and_gradients(multibox_loss, *heads, targets, *objects)
            assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("maps", [False, True])
def test_registration(device, maps) -> None:
    """Schema, fake kernel and compilation, forward and backward."""
    deltas, logits = (x.to(device) for x in random_heads(2, P_CELLS, 3, seed=0))
    heads = (as_maps(deltas, CELLS), as_maps(logits, CELLS)) if maps else ([deltas], [logits])
    objects = Objects(*(x.to(device) for x in random_objects(2, seeded(1), classes=3)))
    inputs = operator_inputs(*heads, random_boxes(P_CELLS, seeded(2)).to(device), objects)
    torch.library.opcheck(torch.ops.ssd_fast.multibox_loss.default, inputs)
    _, _, num_positives, code = torch.ops.ssd_fast.multibox_loss.default(*inputs)
    one = torch.ones((), device=device)
    torch.library.opcheck(
        torch.ops.ssd_fast.multibox_loss_backward.default,
        (one, one, *inputs[:6], code, num_positives, inputs[7], *inputs[-6:]),
    )


@pytest.mark.parametrize("normalizer", range(3))
def test_backward_equals_its_reference(device, normalizer) -> None:
    """The operator's own backward reference, which serves devices without a kernel."""
    deltas, logits = random_heads(2, P_CELLS, 7, seed=0)
    heads = as_maps(deltas, CELLS), as_maps(logits, CELLS)
    objects = random_objects(2, seeded(1), classes=7)
    inputs = operator_inputs(*heads, random_boxes(P_CELLS, seeded(2)), objects)
    _, _, num_positives, code = torch.ops.ssd_fast.multibox_loss.default(*inputs)
    scales = torch.tensor(2.0), torch.tensor(3.0)
    rest = *inputs[:6], code, num_positives, inputs[7], *inputs[-6:-1], normalizer
    actual = torch.ops.ssd_fast.multibox_loss_backward.default(*scales, *rest)
    expected = backward_reference(*scales, *rest)
    for a, e in zip(actual[0] + actual[1], expected[0] + expected[1], strict=True):
        assert_close(a, e)


def test_backward_survives_targets_that_changed(device) -> None:
    """Boxes, labels and offsets overwritten between forward and backward: no crash."""
    deltas, logits = (x.to(device) for x in random_heads(2, 50, 5, seed=0))
    objects = [x.to(device) for x in random_objects(2, seeded(1), classes=5)]
    inputs = operator_inputs([deltas], [logits], random_boxes(50, seeded(2)).to(device), objects)
    _, _, num_positives, code = torch.ops.ssd_fast.multibox_loss.default(*inputs)
    objects[1].fill_(2**40)
    objects[2].fill_(-3)
    one = torch.ones((), device=device)
    grads = torch.ops.ssd_fast.multibox_loss_backward.default(
        one, one, *inputs[:6], code, num_positives, inputs[7], *inputs[-6:]
    )
    assert grads[0][0].eq(0).all()
