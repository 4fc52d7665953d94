# SPDX-License-Identifier: BSD-3-Clause
"""exp, log, log1p and atan against float64, over their whole range."""

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")
import triton
import triton.language as tl

from ssd_fast.kernels import elementary


@triton.jit
def apply_all(x_ptr, exp_ptr, log_ptr, log1p_ptr, atan_ptr, N, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, i < N, other=0.0)
    tl.store(exp_ptr + i, elementary.exp(x), i < N)
    tl.store(log_ptr + i, elementary.log(x), i < N)
    tl.store(log1p_ptr + i, elementary.log1p(x), i < N)
    tl.store(atan_ptr + i, elementary.atan(x), i < N)


@triton.jit
def apply_log1p_fraction(x_ptr, y_ptr, N, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + i, elementary.log1p_fraction(tl.load(x_ptr + i, i < N, other=0.0)), i < N)


def _of_division(device: torch.device) -> float:
    """What results of a division may be off besides: a GPU's, as used here, by two units."""
    return 2.4e-7 if device.type == "cuda" else 0.0


def test_equal_float64(kernel_device) -> None:
    """Within 2e-7 of themselves (atan 3e-7), infinities, NaN and subnormal numbers included."""
    inf, nan = float("inf"), float("nan")
    special = [0.0, -0.0, inf, -inf, nan, 1e-45, 1e-38, 88.72, 88.73, -87.4, -103.9, -104.1, 3e38]
    x = torch.cat(
        [
            torch.tensor(special),
            torch.linspace(-104, 89, 6001),
            torch.logspace(-44, 38, 6001),
            1 + torch.linspace(-0.01, 0.01, 2001),
            torch.linspace(-4, 4, 6001),
        ]
    )
    results = [torch.empty_like(x, device=kernel_device) for _ in range(4)]
    apply_all[(triton.cdiv(len(x), 4096),)](x.to(kernel_device), *results, len(x), BLOCK=4096)
    functions = torch.exp, torch.log, torch.log1p, torch.atan
    for function, result in zip(functions, results, strict=True):
        expected = function(x.double())
        where = x >= 0 if function is torch.log1p else torch.ones_like(x, dtype=torch.bool)
        # Subnormal results are good to their own last place.
        torch.testing.assert_close(
            result.cpu()[where].double(),
            expected.float()[where].double(),
            rtol=3e-7 + _of_division(kernel_device) if function is torch.atan else 2e-7,
            atol=2e-45,
            equal_nan=True,
        )


def test_log1p_of_fractions(kernel_device) -> None:
    """Within 2e-7 of itself from 0 to 1."""
    x = torch.cat(
        (torch.tensor([0.0, 1.0]), torch.linspace(0, 1, 6001), torch.logspace(-37, 0, 999))
    )
    y = torch.empty_like(x, device=kernel_device)
    apply_log1p_fraction[(triton.cdiv(len(x), 4096),)](x.to(kernel_device), y, len(x), BLOCK=4096)
    rtol = 2e-7 + _of_division(kernel_device)
    torch.testing.assert_close(y.cpu().double(), x.double().log1p(), rtol=rtol, atol=0)
