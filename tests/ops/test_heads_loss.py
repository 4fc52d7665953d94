# SPDX-License-Identifier: BSD-3-Clause
"""heads_loss: equal to convolutions and multibox_loss, whatever is gathered; edges."""

import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssd_fast.ops import _sparse_convolution, heads_loss, heads_loss_reference, match
from ssd_fast.testing import assert_close

from .heads_cases import (
    CELLS,
    LAST,
    PLAIN,
    Heads,
    assert_equal_to_maps,
    losses_and_gradients,
    make_heads,
    make_targets,
    through_maps,
)

pytestmark = pytest.mark.usefixtures("never_small")


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

    def spy(*arguments):
        found.append((arguments, backward(*arguments)))
        return found[-1][1]

    with monkeypatch.context() as patch:
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


@pytest.fixture
def dense_levels(monkeypatch) -> list:
    """Gets an entry for each level that takes PyTorch's backward."""
    taken = []
    for module in (_sparse_convolution, sys.modules["ssd_fast.ops.heads_loss"]):

        def spy(*arguments, dense=module.dense_backward):
            taken.append(arguments)
            return dense(*arguments)

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
