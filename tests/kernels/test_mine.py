# SPDX-License-Identifier: BSD-3-Clause
"""launch_mine against the reference: ties, NaN, counts, priors in blocks."""

import math

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from ssd_fast.kernels.mine import launch_mine
from ssd_fast.ops import mine_reference
from ssd_fast.testing import seeded

VALUES = [0.0, -0.0, 1.0, 1.0 + 2**-23, -1.0, math.inf, -math.inf, math.nan, 1e-45]
COUNTS = [(3.0, 0), (0.0, 5), (1 / 3, 0), (1e30, 0), (0.0, 0), (0.5, 10**6)]


def _check(device, loss, match, ratio, min_negatives, block) -> None:
    expected = mine_reference(loss, match, ratio=ratio, min_negatives=min_negatives)
    actual = launch_mine(loss.to(device), match.to(device), ratio, min_negatives, block)
    assert torch.equal(actual.cpu(), expected)


@pytest.mark.parametrize(("ratio", "min_negatives"), COUNTS)
def test_ties_and_nan_equal_reference(kernel_device, ratio, min_negatives) -> None:
    """Equal losses, signed zeros, infinities and NaN, at once and in blocks."""
    for P, block in ((1, None), (300, None if ratio else 128)):
        generator = seeded(P)
        loss = torch.tensor(VALUES)[torch.randint(0, len(VALUES), (2, P), generator=generator)]
        match = torch.randint(-2, 2, (2, P), generator=generator, dtype=torch.int32)
        _check(kernel_device, loss, match, ratio, min_negatives, block)


@pytest.mark.parametrize(("P", "block"), [(8732, None), (24564, None), (1023, 256)])
def test_equals_reference(kernel_device, P, block) -> None:
    """Distinct losses; 24564 priors are read in blocks."""
    loss = torch.randn(2, P, generator=seeded(P))
    match = torch.full((2, P), -1, dtype=torch.int32)
    match[0, ::97] = 4
    match[1, ::5] = -2
    _check(kernel_device, loss, match, 1.5, 40, block)


def test_many_equal_losses(kernel_device) -> None:
    """The lowest priors are selected, across blocks."""
    match = torch.full((1, 900), -1, dtype=torch.int32)
    match[0, :100] = 0
    selected = launch_mine(
        torch.zeros(1, 900, device=kernel_device), match.to(kernel_device), 3.0, 0, 256
    )
    assert selected.cpu()[0].nonzero().flatten().tolist() == list(range(100, 400))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_empty(kernel_device, shape) -> None:
    """Nothing to select."""
    match = torch.zeros(shape, dtype=torch.int32, device=kernel_device)
    selected = launch_mine(torch.zeros(shape, device=kernel_device), match, 3.0, 0)
    assert selected.shape == shape
    assert selected.dtype == torch.bool


def test_too_many_priors() -> None:
    """A clear error beyond two million."""
    loss = torch.zeros(1).expand(1, 1 << 21)
    with pytest.raises(ValueError, match=r"priors: .* fewer than 2097152, got 2097152"):
        launch_mine(loss, torch.zeros(1, dtype=torch.int32).expand(1, 1 << 21), 3.0, 0)
