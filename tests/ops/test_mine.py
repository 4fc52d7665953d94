# SPDX-License-Identifier: BSD-3-Clause
"""mine: kernel against reference, ties, NaN, counts, registration, bad input."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssd_fast.ops import mine, mine_reference
from ssd_fast.testing import seeded


def _random_match(B: int, P: int, positives: int, seed: int) -> torch.Tensor:
    """Mostly background, some ignored, ``positives`` positives on average."""
    draw = torch.rand(B, P, generator=seeded(seed))
    match = torch.full((B, P), -1, dtype=torch.int32)
    match[draw < 0.05] = -2
    match[draw > 1 - positives / max(P, 1)] = 3
    return match


@pytest.mark.parametrize("P", [1, 16, 1023, 8732, 24564])
@pytest.mark.parametrize("positives", [0, 3, 40, 800])
def test_equals_reference(device, P, positives) -> None:
    """Distinct losses, at every share of candidates that is selected."""
    loss = torch.randn(3, P, generator=seeded(P))
    match = _random_match(3, P, positives, P + 1)
    for options in (
        {},
        {"ratio": 0.7},
        {"ratio": 0.0, "min_negatives": 5},
        {"min_negatives": 10**6},
    ):
        expected = mine_reference(loss, match, **options)
        assert torch.equal(mine(loss.to(device), match.to(device), **options).cpu(), expected)


loss_value = st.sampled_from(
    [0.0, -0.0, 1.0, 1.0 + 2**-23, -1.0, math.inf, -math.inf, math.nan, 1e-45]
)


@given(
    rows=st.lists(st.tuples(loss_value, st.sampled_from([-2, -1, -1, -1, 0, 7])), max_size=60),
    ratio=st.sampled_from([0.0, 0.5, 1 / 3, 3.0, 1e30]),
    min_negatives=st.integers(0, 70),
)
def test_ties_nan_and_counts_equal_reference(rows, ratio, min_negatives) -> None:
    """Equal losses, signed zeros, infinities, NaN and neighbouring floats."""
    loss = torch.tensor([[value for value, _ in rows]], dtype=torch.float32).reshape(1, -1)
    match = torch.tensor([[m for _, m in rows]], dtype=torch.int32).reshape(1, -1)
    options = {"ratio": ratio, "min_negatives": min_negatives}
    assert torch.equal(mine(loss, match, **options), mine_reference(loss, match, **options))


def test_many_equal_losses(device) -> None:
    """Thousands of equal keys: the lowest priors are selected."""
    loss = torch.zeros(1, 9000)
    match = torch.full((1, 9000), -1, dtype=torch.int32)
    match[0, :100] = 0
    selected = mine(loss.to(device), match.to(device)).cpu()
    assert selected[0].nonzero().flatten().tolist() == list(range(100, 400))


def test_order_worked_by_hand() -> None:
    """NaN, then infinity, then numbers; -0.0 ties with 0.0; the first of equals."""
    loss = torch.tensor([[0.0, -0.0, math.nan, 2.0, math.inf, -1.0]])
    match = torch.full((1, 6), -1, dtype=torch.int32)
    picks = [mine(loss, match, min_negatives=k)[0].nonzero().flatten().tolist() for k in range(7)]
    assert picks == [[], [2], [2, 4], [2, 3, 4], [0, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize(
    ("ratio", "positives", "expected"),
    [(3.0, 2, 6), (0.5, 3, 2), (1 / 3, 3, 1), (0.1, 10, 1), (3, 0, 0)],
)
def test_count_is_rounded_up_from_float32(ratio, positives, expected) -> None:
    """float32(1/3) * 3 is 1, so one negative, not two."""
    match = torch.full((1, 50), -1, dtype=torch.int32)
    match[0, :positives] = 0
    assert int(mine(torch.rand(1, 50), match, ratio=ratio).sum()) == expected


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty(device, shape) -> None:
    """No image or no prior: an empty selection."""
    empty = mine(
        torch.zeros(shape, device=device), torch.zeros(shape, dtype=torch.int32, device=device)
    )
    assert empty.shape == shape
    assert empty.dtype == torch.bool


def test_any_strides() -> None:
    """Transposed and expanded inputs give what contiguous ones give."""
    loss, match = torch.rand(4, 100), _random_match(4, 100, 5, 0)
    plain = mine(loss, match)
    assert torch.equal(mine(loss.t().contiguous().t(), match.t().contiguous().t()), plain)
    one = match[:1].expand(4, 100)
    assert torch.equal(mine(loss, one), mine(loss, one.contiguous()))


def test_registration(device) -> None:
    """Schema, fake kernel and compilation."""
    loss, match = torch.rand(2, 30, device=device), _random_match(2, 30, 3, 0).to(device)
    torch.library.opcheck(torch.ops.ssd_fast.mine.default, (loss, match, 3.0, 0))


LOSS, MATCH = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int32)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((LOSS[0], MATCH), {}, r"loss: expected \(B, P\) float32, got \(3,\)"),
        ((LOSS.double(), MATCH), {}, "loss: expected .* float32, got .* torch.float64"),
        ((LOSS, MATCH[:1]), {}, r"match: expected \(2, 3\) int32, got \(1, 3\)"),
        ((LOSS, MATCH.long()), {}, "match: expected .* int32, got .* torch.int64"),
        ((LOSS, MATCH.to("meta")), {}, "match: expected on cpu like loss, got meta"),
        ((LOSS, MATCH), {"ratio": -1.0}, "ratio: expected .* got -1.0"),
        ((LOSS, MATCH), {"ratio": math.inf}, "ratio: expected .* got inf"),
        ((LOSS, MATCH), {"min_negatives": -1}, "min_negatives: expected .* got -1"),
    ],
)
def test_rejects(arguments, options, message) -> None:
    """One clear error that names the argument."""
    with pytest.raises(ValueError, match=message):
        mine(*arguments, **options)
