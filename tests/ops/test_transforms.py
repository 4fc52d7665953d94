# SPDX-License-Identifier: BSD-3-Clause
"""torch.func over the operators: vmap equals a loop, derivatives equal autograd's, or one error."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ssd_fast import ops
from ssd_fast.testing import random_boxes, random_objects, seeded

SLICES, B, P, C = 3, 2, 12, 4
PRIORS = random_boxes(P, seeded(0))
TARGETS = random_objects(B, seeded(1), counts=(1, 3), classes=C)


def randn(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(SLICES, *shape, generator=seeded(seed))


def loss(deltas: Any, logits: Any) -> Tensor:
    box_loss, class_loss, _ = ops.multibox_loss(deltas, logits, PRIORS, *TARGETS)
    return 2 * box_loss + class_loss


def as_maps(rows: Tensor) -> list[Tensor]:
    """(B, P, K) as the maps of two levels, of 2 x 2 cells with two boxes and 4 x 1 with one."""
    first, second = rows.movedim(2, 1).split([8, 4], dim=2)
    return [first.reshape(B, -1, 2, 2), second.reshape(B, -1, 4, 1)]


def heads_loss(features: Tensor, weights: Tensor) -> Tensor:
    parts = weights[: 4 * 3], weights[4 * 3 :]
    heads = [x for part in parts for x in ([part], [None])]
    return sum(ops.heads_loss([features], *heads, PRIORS, *TARGETS)[:2])


DIFFERENTIABLE = {
    "multibox_loss": (loss, randn(B, P, 4), randn(B, P, C)),
    "multibox_loss of maps": (
        lambda d, x: loss(as_maps(d), as_maps(x)),
        randn(B, P, 4),
        randn(B, P, C),
    ),
    "heads_loss": (heads_loss, randn(B, 5, 2, 2), randn(3 * (4 + C), 5, 3, 3)),
    "encode": (
        lambda b, p: ops.encode(b, p).square().sum(),
        torch.stack([random_boxes(P, seeded(i)) for i in range(SLICES)]),
        torch.stack([random_boxes(P, seeded(10 + i)) for i in range(SLICES)]),
    ),
    "decode": (
        lambda d, p: ops.decode(d, p).square().sum(),
        randn(P, 4),
        torch.stack([random_boxes(P, seeded(10 + i)) for i in range(SLICES)]),
    ),
}
BOXES = torch.stack([random_boxes(9, seeded(i)) for i in range(SLICES)])
OTHERS = {
    "match": (lambda b: ops.match(PRIORS, b, torch.tensor([0, 4, 9])), BOXES),
    "mine": (lambda x: ops.mine(x, torch.tensor([[0, *[-1] * (P - 1)]] * B).int()), randn(B, P)),
    "nms_padded": (lambda b, s: ops.nms_padded(b, s, 0.3), BOXES, randn(9)),
    "nms": (lambda b, s: ops.nms(b, s, 1.0), BOXES, randn(9)),
    "batched_nms": (
        lambda b, s: ops.batched_nms(b, s, torch.arange(9), 0.3),
        BOXES,
        randn(9),
    ),
    "detect": (
        lambda d, x: ops.detect(d, x, PRIORS, max_detections=5),
        randn(B, P, 4),
        randn(B, P, C),
    ),
}


def assert_is_a_loop(call: Callable[..., Any], inputs: tuple[Tensor, ...]) -> None:
    found = torch.vmap(call)(*inputs)
    slices = [call(*parts) for parts in zip(*inputs, strict=True)]
    if isinstance(found, Tensor):
        assert found.equal(torch.stack(slices))
        return
    for one, parts in zip(found, zip(*slices, strict=True), strict=True):
        assert one.equal(torch.stack(parts))


@pytest.mark.parametrize("name", [*DIFFERENTIABLE, *OTHERS])
@pytest.mark.filterwarnings("error")
def test_vmap_is_a_loop(name):
    call, *inputs = (DIFFERENTIABLE | OTHERS)[name]
    assert_is_a_loop(call, tuple(inputs))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.filterwarnings("error")
def test_gradients_of_each_slice(name):
    """``vmap(grad(...))``, as for the gradient of each image by itself."""
    call, *inputs = DIFFERENTIABLE[name]
    assert_is_a_loop(torch.func.grad(call, argnums=(0, 1)), tuple(inputs))
    first = [x[0].clone().requires_grad_() for x in inputs]
    expected = torch.autograd.grad(call(*first), first)
    found = torch.func.grad(call, argnums=(0, 1))(*(x[0] for x in inputs))
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))
    reverse = torch.func.jacrev(call, argnums=(0, 1))(*(x[0] for x in inputs))
    assert all(a.equal(b) for a, b in zip(reverse, expected, strict=True))


def test_vmap_over_another_dimension_and_over_a_part():
    call, deltas, logits = DIFFERENTIABLE["multibox_loss"]
    found = torch.vmap(call, in_dims=(2, None))(deltas.movedim(0, 2), logits[1])
    assert found.equal(torch.stack([call(one, logits[1]) for one in deltas]))


def test_a_model_under_functional_call():
    """The gradients of a whole detector with respect to a dictionary of parameters."""
    from ssd_fast.models import ssd300_vgg16
    from ssd_fast.targets import Targets

    model = ssd300_vgg16(4, width=0.03)
    inputs = torch.rand(2, 3, 300, 300), Targets(*TARGETS)
    parameters = {name: x.detach() for name, x in model.named_parameters()}

    def total(parameters: dict[str, Tensor]) -> Tensor:
        return sum(torch.func.functional_call(model, parameters, inputs).values())

    found = torch.func.grad(total)(parameters)
    sum(model(*inputs).values()).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("transform", [torch.func.jacfwd, torch.func.hessian])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_forward_mode_is_refused(name, transform):
    """By PyTorch: Dynamo does not trace a Function with a `jvp` of its own, be it an error."""
    call, *inputs = DIFFERENTIABLE[name]
    with pytest.raises(NotImplementedError, match="forward mode AD"):
        transform(call)(*(x[0] for x in inputs))


@pytest.mark.parametrize("name", ["nms", "batched_nms"])
def test_vmap_of_results_of_different_lengths_names_the_way_out(name):
    x = torch.tensor([0.0, 0.0, 1.0, 1.0])
    boxes = torch.stack([torch.stack([x, x + 0.1]), torch.stack([x, x + 5])])
    more = (torch.zeros(2).long(),) if name == "batched_nms" else ()
    with pytest.raises(ValueError, match=rf"ssd_fast::{name}: .* got 1, 2; .*nms_padded"):
        torch.vmap(lambda b: getattr(ops, name)(b, torch.ones(2), *more, 0.5))(boxes)


def test_vmap_of_nothing_is_named():
    with pytest.raises(ValueError, match=r"ssd_fast::nms_padded: .* at least one slice"):
        torch.vmap(lambda b, s: ops.nms_padded(b, s, 0.5))(BOXES[:0], torch.zeros(0, 9))
