# SPDX-License-Identifier: BSD-3-Clause
"""launch_decode and launch_encode against the references in float64."""

import math

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from ssd_fast.boxes import MAX_LOG_SCALE
from ssd_fast.kernels.decode import launch_decode, launch_encode
from ssd_fast.ops.decode import decode_reference, encode_reference
from ssd_fast.testing import random_boxes, seeded

FOUR = (0.1, 0.15, 0.2, 0.3)
SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e30, -1e30, 1e-45, 20.0, -600.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "block"), [((1,), 256), ((17,), 16), ((3, 17), 32), ((2, 2, 83), 128)]
)
@pytest.mark.parametrize("max_log_scale", [MAX_LOG_SCALE, 0.2, None])
def test_decode_equals_reference(kernel_device, shape, block, dtype, max_log_scale) -> None:
    """Every dtype, leading dimensions, blocks that end anywhere."""
    generator = seeded(shape[-1])
    priors = random_boxes(shape[-1], generator).to(kernel_device)
    deltas = (2 * torch.randn(*shape, 4, generator=generator)).to(dtype).to(kernel_device)
    boxes = launch_decode(deltas, priors, FOUR, max_log_scale, block)
    assert boxes.dtype == torch.float32
    expected = decode_reference(deltas.double(), priors.double(), FOUR, max_log_scale)
    torch.testing.assert_close(boxes.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("shape", "block"), [((1,), 256), ((17,), 16), ((2, 2, 83), 128)])
def test_encode_equals_reference(kernel_device, shape, block) -> None:
    """Leading dimensions, blocks that end anywhere."""
    generator = seeded(shape[-1])
    priors = random_boxes(shape[-1], generator)
    boxes = torch.stack([random_boxes(shape[-1], generator) for _ in range(math.prod(shape[:-1]))])
    boxes = boxes.reshape(*shape, 4)
    found = launch_encode(boxes.to(kernel_device), priors.to(kernel_device), FOUR, block)
    expected = encode_reference(boxes.double(), priors.double(), FOUR)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=1e-5, atol=1e-5)


def test_special_numbers(kernel_device) -> None:
    """NaN, infinities, overflow and boxes without area give what the references give."""
    rows = torch.cartesian_prod(*2 * (torch.tensor(SPECIAL),)).repeat(1, 2)
    rows = torch.cat((rows, rows.roll(1, 1)))
    priors = random_boxes(len(rows), seeded(0))
    for limit in (MAX_LOG_SCALE, None):
        expected = decode_reference(rows, priors, FOUR, limit)
        found = launch_decode(rows.to(kernel_device), priors.to(kernel_device), FOUR, limit)
        torch.testing.assert_close(found.cpu(), expected, equal_nan=True)
    expected = encode_reference(rows, priors, FOUR)
    found = launch_encode(rows.to(kernel_device), priors.to(kernel_device), FOUR)
    torch.testing.assert_close(found.cpu(), expected, equal_nan=True)


def test_strides_and_nothing(kernel_device) -> None:
    """Any strides; no rows, no priors."""
    generator = seeded(0)
    priors = random_boxes(6, generator).to(kernel_device)
    deltas = torch.randn(4, 6, 4, generator=generator).to(kernel_device)
    expected = launch_decode(deltas, priors, FOUR, None)
    assert torch.equal(launch_decode(deltas.mT.contiguous().mT, priors, FOUR, None), expected)
    assert torch.equal(launch_decode(deltas, priors.T.contiguous().T, FOUR, None), expected)
    for shape in ((0, 6, 4), (3, 0, 4)):
        empty = deltas.new_empty(shape)
        assert launch_decode(empty, priors[: shape[1]], FOUR, None).shape == shape
        assert launch_encode(empty, priors[: shape[1]], FOUR).shape == shape


def test_what_would_be_read_out_of_bounds_is_refused(kernel_device) -> None:
    """The operators guard memory themselves."""
    zeros = torch.zeros(5, 4, device=kernel_device)
    for rows, priors in ((zeros[:4], zeros), (zeros[0], zeros), (zeros, zeros.double())):
        for launch in (launch_encode, lambda *x: launch_decode(*x, None)):
            with pytest.raises(ValueError, match="expected"):
                launch(rows, priors, FOUR)
    with pytest.raises(ValueError, match=r"deltas: expected .* got \(5, 4\) torch.float64"):
        launch_decode(zeros.double(), zeros, FOUR, None)
