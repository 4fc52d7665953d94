# SPDX-License-Identifier: BSD-3-Clause
"""heads_loss: equal to convolutions and multibox_loss, whatever is gathered; edges, bad input."""

import sys
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d

from ssd_fast.ops import (
    _sparse_convolution,
    heads_loss,
    heads_loss_reference,
    match,
    multibox_loss,
)
from ssd_fast.ops.heads_loss import _backward_reference
from ssd_fast.testing import assert_close, random_boxes, random_objects, seeded

CELLS = [(4, 9, 7), (6, 4, 5), (4, 1, 1)]  # anchors, height, width of each level
CHANNELS = 5
CLASSES = 6
LAST, PLAIN = torch.channels_last, torch.contiguous_format


class Heads(NamedTuple):
    """What `heads_loss` takes first."""

    features: list[Tensor]
    delta_weights: list[Tensor]
    delta_biases: list[Tensor | None]
    logit_weights: list[Tensor]
    logit_biases: list[Tensor | None]

    def map(self, change) -> "Heads":
        """The same with every tensor changed."""
        return Heads(*([None if x is None else change(x) for x in kind] for kind in self))

    def tensors(self) -> list[Tensor]:
        """All of them that a gradient may go to."""
        return [x for kind in self for x in kind if x is not None and x.requires_grad]


def make_heads(batch=2, cells=CELLS, formats=(PLAIN, PLAIN), seed=0) -> Heads:
    """Random features and heads; `formats` of the features and of the weights."""
    generator = seeded(seed)

    def randn(*shape, scale=1.0):
        return torch.randn(*shape, generator=generator) * scale

    features = [randn(batch, CHANNELS, h, w).to(memory_format=formats[0]) for _, h, w in cells]
    parts = []
    for columns in (4, CLASSES):
        weights = [randn(a * columns, CHANNELS, 3, 3, scale=0.3) for a, _, _ in cells]
        parts.append([weight.to(memory_format=formats[1]) for weight in weights])
        parts.append([randn(a * columns) for a, _, _ in cells])
    return Heads(features, *parts).map(lambda x: x.requires_grad_())


def make_targets(batch=2, cells=CELLS, counts=(1, 2), seed=1) -> tuple[Tensor, ...]:
    """Priors, boxes, labels and offsets."""
    priors = random_boxes(sum(a * h * w for a, h, w in cells), seeded(seed))
    return priors, *random_objects(batch, seeded(seed + 1), counts=counts, classes=CLASSES)


def through_maps(heads: Heads, *targets, **options) -> tuple[Tensor, ...]:
    """The dense path: PyTorch's convolutions, then the other operator."""
    x = heads.features
    deltas = [conv2d(*level, padding=1) for level in zip(x, heads[1], heads[2], strict=True)]
    logits = [conv2d(*level, padding=1) for level in zip(x, heads[3], heads[4], strict=True)]
    return multibox_loss(deltas, logits, *targets, **options)


def losses_and_gradients(function, heads: Heads, *targets, **options):
    """What `function` gives, and the gradients of ``2 box_loss + 3 class_loss``."""
    *losses, num_positives = function(*heads, *targets, **options)
    gradients = torch.autograd.grad(2 * losses[0] + 3 * losses[1], heads.tensors())
    return [x.detach() for x in losses], num_positives, gradients


def assert_equal_to_maps(heads: Heads, *targets, tolerance=2e-6, **options) -> None:
    """Losses bit for bit, gradients but for the order of sums, in the same memory layout."""
    losses, positives, gradients = losses_and_gradients(heads_loss, heads, *targets, **options)
    dense = losses_and_gradients(lambda *a, **o: through_maps(Heads(*a[:5]), *a[5:], **o), heads,
                                 *targets, **options)  # fmt: skip
    assert all(a.equal(b) for a, b in zip(losses, dense[0], strict=True))
    assert positives.equal(dense[1])
    for a, b, x in zip(gradients, dense[2], heads.tensors(), strict=True):
        assert_close(a, b, tolerance=tolerance)
        assert a.dtype == x.dtype
        assert a.stride() == x.stride() or not x.is_contiguous()


@pytest.fixture(autouse=True)
def _never_small(monkeypatch) -> None:
    """The heads of these tests are; the path that is for large ones is to be seen."""
    monkeypatch.setattr(_sparse_convolution, "SMALL", 0)


@pytest.fixture
def never_dense(monkeypatch) -> None:
    """Every level goes through its patches."""
    monkeypatch.setattr(_sparse_convolution, "is_sparse", lambda cells, features: True)


@pytest.mark.parametrize("weights", [PLAIN, LAST])
@pytest.mark.parametrize("features", [PLAIN, LAST])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 0.03), (torch.float16, 4e-3)]
)
def test_patches_equal_the_dense_path(never_dense, dtype, tolerance, features, weights) -> None:
    """Memory formats in every mixture; halves to the rounding of their sums of nine."""
    heads = make_heads(formats=(features, weights)).map(lambda x: x.detach().to(dtype))
    heads = heads.map(lambda x: x.requires_grad_())
    assert_equal_to_maps(heads, *make_targets(), tolerance=tolerance)


@pytest.mark.parametrize(
    "options",
    [
        {"normalizer": "image"},
        {"normalizer": "none", "assign": "bipartite"},
        {"min_negatives": 30, "background_index": 2},
        {"beta": 0.11, "variances": (0.1, 0.15, 0.2, 0.3), "ratio": 1.0},
        {"strict": True, "low_threshold": 0.3},
        {"box_loss": "giou", "label_smoothing": 0.1, "class_weights": torch.rand(6) + 0.5},
        {"box_loss": "ciou", "background_index": -1, "ignore_threshold": 0.2},
        {"box_loss": "l1", "matches": "given"},
    ],
    ids=str,
)
def test_every_option_equals_the_dense_path(options) -> None:
    """Few cells and many: levels choose for themselves."""
    for counts in ((0, 1), (8, 12)):
        if "matches" in options:
            priors, boxes, _, offsets = make_targets(4, counts=counts)
            options["matches"] = match(priors, boxes, offsets, low_threshold=0.2)
        assert_equal_to_maps(make_heads(4), *make_targets(4, counts=counts), **options)


def test_patches_equal_float64(never_dense) -> None:
    """The definition, in float64 throughout."""
    heads, (priors, boxes, *rest) = make_heads(4), make_targets(4)
    losses, positives, gradients = losses_and_gradients(heads_loss, heads, priors, boxes, *rest)
    double = heads.map(lambda x: x.detach().double().requires_grad_())
    expected = losses_and_gradients(
        heads_loss_reference, double, priors.double(), boxes.double(), *rest
    )
    assert positives.equal(expected[1])
    for a, b in zip([*losses, *gradients], [*expected[0], *expected[2]], strict=True):
        assert_close(a, b)


def test_gradcheck_of_the_reference() -> None:
    """The definition's own gradient, in float64."""
    cells = [(1, 2, 2)]
    priors, boxes, *rest = make_targets(1, cells)
    heads = make_heads(1, cells).map(lambda x: x.detach()[:, :2].double().requires_grad_()
                                     if x.dim() == 4 else x.detach().double())  # fmt: skip

    def both(x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        d, c = weights
        arguments = [x], [d], heads.delta_biases, [c], heads.logit_biases
        return heads_loss_reference(*arguments, priors.double(), boxes.double(), *rest)[:2]

    assert torch.autograd.gradcheck(both, heads.tensors())


@given(
    batch=st.integers(0, 3),
    sizes=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)), min_size=1,
                   max_size=3),
    objects=st.integers(0, 3),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_levels(batch, sizes, objects, seed) -> None:
    """Maps of any size, images without objects, batches without images."""
    heads = make_heads(batch, sizes, seed=seed)
    for counts in ((objects, objects), (0, objects)):
        assert_equal_to_maps(heads, *make_targets(batch, sizes, counts, seed), tolerance=3e-6)


def test_nothing_selected_gives_zero_gradients() -> None:
    """No object, no negative, no NaN."""
    _, _, gradients = losses_and_gradients(heads_loss, make_heads(), *make_targets(counts=(0, 0)))
    assert all(gradient.eq(0).all() for gradient in gradients)


def test_any_strides_and_no_argument_is_changed(never_dense) -> None:
    """Sliced, expanded, transposed and interleaved features."""
    plain, targets = make_heads(), make_targets()
    copies = [x.clone() for x in (*plain.tensors(), *targets)]

    def strided(x: Tensor) -> Tensor:
        wide = torch.stack([x.detach(), x.detach()], -1)
        return wide[..., 0].requires_grad_()

    def transposed(x: Tensor) -> Tensor:
        return x.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()

    def interleaved(x: Tensor) -> Tensor:  # as (B, H, C, W) in memory
        return x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()

    assert_equal_to_maps(plain.map(strided), *targets)
    cells = [(4, 9, 8)]
    large = make_heads(2, cells)
    for change in (transposed, interleaved):
        features = [change(x) for x in large.features]
        assert_equal_to_maps(large._replace(features=features), *make_targets(2, cells))
    one = plain._replace(
        features=[x.detach()[:1].expand(2, -1, -1, -1).requires_grad_() for x in plain.features]
    )
    assert_equal_to_maps(one, *targets)
    for x, copy in zip((*plain.tensors(), *targets), copies, strict=True):
        assert x.equal(copy)


@pytest.mark.parametrize("frozen", range(5))
def test_frozen_inputs(never_dense, frozen) -> None:
    """What needs no gradient gets none, and nothing else changes."""
    heads = make_heads()
    kinds = [[x.detach() for x in kind] if i == frozen else kind for i, kind in enumerate(heads)]
    assert_equal_to_maps(Heads(*kinds), *make_targets())
    only = [kind if i == frozen else [x.detach() for x in kind] for i, kind in enumerate(heads)]
    assert_equal_to_maps(Heads(*only), *make_targets())


def test_heads_without_biases(never_dense) -> None:
    """`Conv2d(bias=False)`, in one of the heads or both."""
    heads = make_heads()
    none = [None] * len(CELLS)
    assert_equal_to_maps(heads._replace(delta_biases=none), *make_targets())
    assert_equal_to_maps(heads._replace(delta_biases=none, logit_biases=none), *make_targets())


@pytest.mark.parametrize("loss", [0, 1])
def test_one_loss_alone(never_dense, loss) -> None:
    """The other one's gradient is not there, which is zero."""
    heads, targets = make_heads(), make_targets()
    ours = torch.autograd.grad(heads_loss(*heads, *targets)[loss], heads.tensors())
    theirs = torch.autograd.grad(
        through_maps(heads, *targets)[loss], heads.tensors(), materialize_grads=True
    )
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, tolerance=2e-6)


def test_chunks_of_patches_are_summed(never_dense, monkeypatch) -> None:
    """One cell a chunk: the sums of bfloat16 chunks keep float32 digits."""
    monkeypatch.setattr(_sparse_convolution, "PATCH_BYTES", 1)
    assert_equal_to_maps(make_heads(), *make_targets(counts=(3, 5)))
    heads = make_heads().map(lambda x: x.detach().bfloat16().requires_grad_())
    assert_equal_to_maps(heads, *make_targets(), tolerance=0.03)


def test_gradients_have_the_dtype_of_what_they_are_of(never_dense, monkeypatch) -> None:
    """In every layout, from several chunks: compiled code reads them as the fake kernel says."""
    monkeypatch.setattr(_sparse_convolution, "PATCH_BYTES", 1)
    backward = torch.ops.ssd_fast.heads_loss_backward.default
    found = []
    with monkeypatch.context() as patch:
        spy = lambda *a: found.append((a, backward(*a))) or found[-1][1]  # noqa: E731
        patch.setattr(torch.ops.ssd_fast.heads_loss_backward, "default", spy)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            heads = make_heads().map(
                lambda x, f=memory_format: (
                    x.detach().bfloat16().contiguous(memory_format=f)
                    if x.dim() == 4
                    else x.detach().bfloat16()
                ).requires_grad_()
            )
            box_loss, class_loss, _ = heads_loss(*heads, *make_targets(counts=(3, 5)))
            (box_loss + class_loss).backward()
    assert len(found) == 2
    assert all(x.dtype == torch.bfloat16 for _, results in found for x in results)


def test_shapes_on_the_meta_device() -> None:
    heads, targets = make_heads(), make_targets()
    outputs = heads_loss(*heads.map(lambda x: x.to("meta")), *(x.to("meta") for x in targets))
    assert [tuple(x.shape) for x in outputs] == [(), (), (heads.features[0].size(0),)]


@pytest.fixture
def dense_levels(monkeypatch) -> list:
    """Gets an entry for each level that takes PyTorch's backward."""
    taken = []
    for module in (_sparse_convolution, sys.modules["ssd_fast.ops.heads_loss"]):
        dense = module.dense_backward
        spy = lambda *a, dense=dense: taken.append(a) or dense(*a)  # noqa: E731
        monkeypatch.setattr(module, "dense_backward", spy)
    return taken


def test_many_cells_take_the_dense_backward(dense_levels) -> None:
    """And few of them do not."""
    cells = [(4, 20, 20)]
    heads = make_heads(2, cells)
    for negatives, times in ((9, 0), (1600, 1)):
        assert_equal_to_maps(heads, *make_targets(2, cells), min_negatives=negatives)
        assert len(dense_levels) == times


def test_small_heads_take_the_dense_backward(dense_levels, monkeypatch) -> None:
    """Gathering costs more than it saves."""
    monkeypatch.setattr(_sparse_convolution, "SMALL", 2**27)
    assert_equal_to_maps(make_heads(), *make_targets())
    assert len(dense_levels) == len(CELLS)


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
    options = (
        None,
        None,
        0.5,
        None,
        False,
        0,
        0.5,
        3.0,
        0,
        0,
        1.0,
        (0.1, 0.1, 0.2, 0.2),
        0.0,
        0,
        0,
    )
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
    options = (
        None,
        None,
        0.5,
        None,
        False,
        0,
        0.5,
        3.0,
        0,
        0,
        1.0,
        (0.1, 0.1, 0.2, 0.2),
        0.0,
        0,
        0,
    )
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


GOOD = make_heads().map(Tensor.detach)
TARGETS = make_targets()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"features": [GOOD.features[0][0], *GOOD.features[1:]]}, r"features\[0\]: expected \(B"),
        ({"features": [x.double() for x in GOOD.features]}, r"features\[0\]: expected float32"),
        (
            {"features": [GOOD.features[0], *(x.half() for x in GOOD.features[1:])]},
            r"features\[1\]: expected float32, float16 or bfloat16, one dtype",
        ),
        ({"features": GOOD.features[:2]}, "delta_weights: expected one with its bias"),
        ({"features": []}, "delta_weights: expected one with its bias, .* at least one"),
        ({"logit_biases": []}, "logit_weights: expected one with its bias, or None"),
        (
            {"delta_weights": [x[:, :, :2] for x in GOOD.delta_weights]},
            r"delta_weights\[0\]: expected \(K, 5, 3, 3\) for features\[0\]",
        ),
        (
            {"logit_biases": [x[1:] for x in GOOD.logit_biases]},
            r"logit_biases\[0\]: expected \(24,\) or None, got \(23,\)",
        ),
        (
            {"logit_weights": [x.to("meta") for x in GOOD.logit_weights]},
            r"logit_weights\[0\]: expected on cpu like features\[0\], got meta",
        ),
        (
            {
                "logit_weights": [x[1:] for x in GOOD.logit_weights],
                "logit_biases": [x[1:] for x in GOOD.logit_biases],
            },
            r"logits\[0\]: expected a multiple of 4 channels",
        ),
    ],
)
def test_bad_heads_are_named(changed, message) -> None:
    """One error that says what would fit."""
    with pytest.raises(ValueError, match=message):
        heads_loss(*GOOD._replace(**changed), *TARGETS)


def test_bad_targets_and_options_are_named() -> None:
    """As `multibox_loss` does."""
    priors, *rest = TARGETS
    with pytest.raises(ValueError, match="priors: expected one for each of the 376 rows"):
        heads_loss(*GOOD, priors[1:], *rest)
    with pytest.raises(ValueError, match="offsets: expected 3 numbers"):
        heads_loss(*GOOD, priors, *rest[:2], rest[2][1:])
    with pytest.raises(ValueError, match="beta: expected"):
        heads_loss(*GOOD, *TARGETS, beta=-1.0)
