# SPDX-License-Identifier: BSD-3-Clause
"""heads_loss under autograd, autocast, torch.func and torch.compile, and as an operator."""

import pytest
import torch
from torch import Tensor

from ssd_fast.ops import heads_loss
from ssd_fast.ops.heads_loss import _backward_reference
from ssd_fast.testing import assert_close

from .heads_cases import (
    CLASSES,
    LAST,
    PLAIN,
    Heads,
    losses_and_gradients,
    make_heads,
    make_targets,
    through_maps,
)
from .loss_cases import OPERATOR_OPTIONS

pytestmark = pytest.mark.usefixtures("never_small")


def test_shapes_on_the_meta_device() -> None:
    heads, targets = make_heads(), make_targets()
    outputs = heads_loss(*heads.map(lambda x: x.to("meta")), *(x.to("meta") for x in targets))
    assert [tuple(x.shape) for x in outputs] == [(), (), (heads.features[0].size(0),)]


def test_no_dense_gradient_in_memory() -> None:
    """Saved are the inputs and the maps; in backward nothing is as large as a map of logits."""
    cells = [(4, 40, 40)]
    heads, targets = make_heads(2, cells), make_targets(2, cells)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        box_loss, class_loss, _ = heads_loss(*heads, *targets)
    rows = 2 * 4 * 40 * 40
    maps, code = rows * (4 + CLASSES), rows
    inputs = sum(x.numel() for kind in (heads[0], heads[1], heads[3], targets) for x in kind)
    assert sum(x.numel() for x in saved) == inputs + maps + code + 2  # num_positives
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU],
                                profile_memory=True) as profile:  # fmt: skip
        torch.autograd.grad(box_loss + class_loss, heads.tensors())
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < largest < 4 * rows * CLASSES


def test_autocast_computes_in_its_dtype(never_dense) -> None:
    """As the convolutions do; gradients are those of the float32 parameters."""
    heads, targets = make_heads(), make_targets()
    results = []
    for function in (heads_loss, lambda *a: through_maps(Heads(*a[:5]), *a[5:])):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            box_loss, class_loss, _ = function(*heads, *targets)
            loss = 2 * box_loss + 3 * class_loss
            inside = torch.autograd.grad(loss, heads.tensors(), retain_graph=True)
        outside = torch.autograd.grad(loss, heads.tensors())
        assert all(a.equal(b) for a, b in zip(inside, outside, strict=True))
        results.append((loss.detach(), outside))
    assert results[0][0].equal(results[1][0])
    for a, b in zip(results[0][1], results[1][1], strict=True):
        assert a.dtype == torch.float32
        assert_close(a, b, tolerance=0.03)


def test_half_features_meet_float32_heads(never_dense) -> None:
    """Parameters are cast to the features' dtype, differentiably."""
    heads, targets = make_heads(), make_targets()
    half = [x.detach().bfloat16().requires_grad_() for x in heads.features]
    mixed = heads._replace(features=half)
    gradients = losses_and_gradients(heads_loss, mixed, *targets)[2]
    assert [x.dtype for x in gradients] == [x.dtype for x in mixed.tensors()]
    rounded = heads.map(lambda x: x.detach().bfloat16().requires_grad_())
    for a, b in zip(gradients, losses_and_gradients(heads_loss, rounded, *targets)[2], strict=True):
        assert a.to(b.dtype).equal(b)


def test_functional_gradient_equals_autograd() -> None:
    """``torch.func.grad`` goes through the operator."""
    heads, targets = make_heads(), make_targets()

    def total(features: list[Tensor]) -> Tensor:
        box_loss, class_loss, _ = heads_loss(features, *heads[1:], *targets)
        return 2 * box_loss + 3 * class_loss

    expected = losses_and_gradients(heads_loss, heads, *targets)[2]
    functional = torch.func.grad(total)(heads.features)
    assert all(a.equal(b) for a, b in zip(functional, expected, strict=False))


def test_compiles_without_a_graph_break() -> None:
    """Forward and backward; another number of touched cells is no other graph."""
    compiled = torch.compile(heads_loss, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            heads = make_heads(seed=seed, formats=(LAST, LAST))
            targets = make_targets(counts=(2, 2), seed=seed)
            actual = losses_and_gradients(compiled, heads, *targets)
            expected = losses_and_gradients(heads_loss, heads, *targets)
            for a, b in zip((*actual[0], *actual[2]), (*expected[0], *expected[2]), strict=True):
                assert a.equal(b)


@pytest.mark.parametrize("formats", [(PLAIN, PLAIN), (LAST, PLAIN), (PLAIN, LAST), (LAST, LAST)])
def test_registration(device, formats) -> None:
    """Schema, fake kernel and compilation, forward and backward."""
    heads = make_heads(formats=formats).map(lambda x: x.detach().to(device))
    targets = [x.to(device) for x in make_targets()]
    options = tuple(OPERATOR_OPTIONS.values())
    torch.library.opcheck(torch.ops.ssd_fast.heads_loss.default, (*heads, *targets, *options))
    _, _, num_positives, code, deltas, logits = torch.ops.ssd_fast.heads_loss.default(
        *heads, *targets, *options
    )
    saved = heads.features, heads.delta_weights, heads.logit_weights, deltas, logits
    one = torch.ones((), device=device)
    for wanted in ([True] * 15, [True, False, False] * 5):
        torch.library.opcheck(
            torch.ops.ssd_fast.heads_loss_backward.default,
            (one, one, *saved, *targets, code, num_positives, wanted, None, *options[-6:]),
        )


def test_backward_survives_targets_that_changed() -> None:
    """Labels and offsets overwritten between forward and backward: no crash."""
    heads, (priors, boxes, labels, offsets) = make_heads(), make_targets()
    box_loss, *_ = heads_loss(*heads, priors, boxes, labels, offsets)
    with torch.no_grad():
        labels.data.fill_(2**40)
        offsets.data.fill_(-3)
    gradients = torch.autograd.grad(box_loss, heads.tensors())
    assert all(gradient.eq(0).all() for gradient in gradients)


def test_reference_backward_equals_the_dense_path() -> None:
    """What serves other devices, here in the place of the CPU's."""
    heads, targets = make_heads(), make_targets()
    options = tuple(OPERATOR_OPTIONS.values())
    detached = heads.map(Tensor.detach)
    _, _, num_positives, code, deltas, logits = torch.ops.ssd_fast.heads_loss.default(
        *detached, *targets, *options
    )
    scales = torch.tensor(2.0), torch.tensor(3.0)
    saved = detached.features, detached.delta_weights, detached.logit_weights, deltas, logits
    rest = *saved, *targets, code, num_positives, [True] * 15, None, *options[-6:]
    expected = losses_and_gradients(heads_loss, heads, *targets)[2]
    for a, b in zip(_backward_reference(*scales, *rest), expected, strict=True):
        assert_close(a, b, tolerance=2e-6)
