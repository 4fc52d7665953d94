# SPDX-License-Identifier: BSD-3-Clause
"""encode and decode: kernel against reference, gradients, edges, errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from ssd_fast.ops.decode import (
    decode,
    decode_backward,
    decode_reference,
    encode,
    encode_backward,
    encode_reference,
)

MAX_LOG_SCALE = math.log(1000 / 16)


def corners(*shape, dtype=torch.float32, device="cpu"):
    low = torch.rand(*shape, 2, dtype=dtype)
    return torch.cat((low, low + 0.05 + torch.rand(*shape, 2, dtype=dtype)), dim=-1).to(device)


def offsets(*shape, dtype=torch.float32, device="cpu"):
    return torch.randn(*shape, 4, dtype=dtype).to(device) * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0,), (1,), (17,), (3, 17), (0, 17), (2, 1, 5), (8, 8732)])
@pytest.mark.parametrize("variances", [(0.1, 0.2), (0.1, 0.15, 0.2, 0.3)])
def test_decode_equals_reference(device, shape, dtype, variances):
    priors = corners(shape[-1], device=device)
    deltas = offsets(*shape, device=device).to(dtype)
    boxes = decode(deltas, priors, variances)
    assert boxes.dtype == torch.float32
    expected = decode_reference(deltas.double(), priors.double(), variances)
    torch.testing.assert_close(boxes.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0,), (1,), (17,), (3, 17), (2, 1, 5)])
def test_encode_equals_reference(device, shape, dtype):
    priors = corners(shape[-1], device=device)
    boxes = corners(*shape, device=device).to(dtype)
    found = encode(boxes, priors, (0.1, 0.15, 0.2, 0.3))
    assert found.dtype == torch.float32
    expected = encode_reference(boxes.double(), priors.double(), (0.1, 0.15, 0.2, 0.3))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_number_is_read_exactly(device, dtype):
    """With a unit prior and unit variances the first offset is a shift of the box."""
    deltas = torch.zeros(2**16, 4, dtype=dtype)
    deltas[:, 0] = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    prior = torch.tensor([[-0.5, -0.5, 0.5, 0.5]]).expand(2**16, 4)
    boxes = decode(deltas.to(device), prior.to(device), (1.0, 1.0)).cpu()
    expected = decode_reference(deltas.float(), prior, (1.0, 1.0))
    assert torch.equal(boxes.nan_to_num(7.7), expected.nan_to_num(7.7))


def test_decode_inverts_encode(device):
    priors, boxes = corners(500, device=device), corners(3, 500, device=device)
    torch.testing.assert_close(decode(encode(boxes, priors), priors), boxes, rtol=1e-5, atol=1e-5)


@given(st.integers(0, 2**31))
def test_equals_torchvision(torchvision, seed):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(40, 2, generator=generator) * 300
    priors = torch.cat((low, low + 5 + torch.rand(40, 2, generator=generator) * 200), dim=-1)
    deltas = torch.randn(40, 4, generator=generator) * 8
    coder = torchvision.models.detection._utils.BoxCoder((10.0, 10.0, 5.0, 5.0))
    boxes = coder.decode_single(deltas, priors)
    torch.testing.assert_close(decode(deltas, priors), boxes, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(
        encode(boxes, priors), coder.encode_single(boxes, priors), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("rows", "priors"), [((5, 7), (5, 7)), ((7,), (5, 7)), ((5, 1), (7,)), ((), (7,)), ((7,), ())]
)
def test_leading_dimensions_broadcast(device, rows, priors):
    deltas, boxes = offsets(*rows, device=device), corners(*priors, device=device)
    torch.testing.assert_close(decode(deltas, boxes), decode_reference(deltas, boxes))
    shape = torch.broadcast_shapes((*rows, 4), (*priors, 4))
    assert encode(corners(*rows, device=device), boxes).shape == shape


def test_strides_do_not_matter(device):
    priors, deltas = corners(6, device=device), offsets(4, 6, device=device)
    expected = decode(deltas, priors)
    transposed = deltas.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert torch.equal(decode(transposed, priors.T.contiguous().T), expected)
    assert torch.equal(decode(deltas[:1].expand(4, 6, 4), priors)[3], expected[0])


def test_large_sizes_are_clamped_where_asked(device):
    prior = torch.tensor([[0.0, 0, 2, 2]], device=device)
    deltas = torch.tensor([[0.0, 0, 1000, -1000]], device=device)
    half = 1000 / 16
    expected = torch.tensor([[1 - half, 1, 1 + half, 1]], device=device)
    torch.testing.assert_close(decode(deltas, prior), expected)
    assert decode(deltas, prior, max_log_scale=None)[0, 2].isinf()
    small = torch.tensor([[0.5, 0.5, 1.5, 1.5]], device=device)
    torch.testing.assert_close(
        decode(deltas.abs(), prior, max_log_scale=math.log(0.5)), small + deltas[:, :1]
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_stays_alone(device, bad):
    priors, deltas = corners(9, device=device), offsets(9, device=device)
    expected = decode(deltas, priors)
    deltas[4] = bad
    boxes = decode(deltas, priors)
    others = torch.arange(9, device=device) != 4
    assert torch.equal(boxes[others], expected[others])
    torch.testing.assert_close(boxes[4], decode_reference(deltas, priors)[4], equal_nan=True)


def test_degenerate_boxes_encode_as_the_reference(device):
    priors = corners(4, device=device)
    boxes = torch.tensor([[0.0, 0, 0, 1], [1, 1, 0, 0], [0, 0, math.inf, 1], [math.nan] * 4])
    boxes = boxes.to(device)
    torch.testing.assert_close(
        encode(boxes, priors), encode_reference(boxes, priors), equal_nan=True
    )


@pytest.mark.parametrize("max_log_scale", [MAX_LOG_SCALE, 0.2, None])
def test_gradients_of_the_reference(max_log_scale):
    deltas = offsets(2, 3, dtype=torch.float64).requires_grad_()
    priors = corners(3, dtype=torch.float64).requires_grad_()
    variances = (0.1, 0.15, 0.2, 0.3)
    assert gradcheck(
        lambda d, p: decode_reference(d, p, variances, max_log_scale), (deltas, priors)
    )
    boxes = corners(2, 3, dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda b, p: encode_reference(b, p, variances), (boxes, priors))


@pytest.mark.parametrize("max_log_scale", [MAX_LOG_SCALE, 0.2, None])
def test_backward_formulas_in_float64(max_log_scale):
    """They are autograd's of the reference, and can themselves be differentiated."""
    variances = (0.1, 0.15, 0.2, 0.3)
    deltas = offsets(2, 5, dtype=torch.float64).requires_grad_()
    priors = corners(2, 5, dtype=torch.float64).requires_grad_()
    grad = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    boxes = decode_reference(deltas, priors, variances, max_log_scale)
    expected = torch.autograd.grad(boxes, (deltas, priors), grad)
    found = decode_backward(grad, deltas, priors, variances, max_log_scale)
    torch.testing.assert_close(found, expected)
    boxes = corners(2, 5, dtype=torch.float64).requires_grad_()
    expected = torch.autograd.grad(
        encode_reference(boxes, priors, variances), (boxes, priors), grad
    )
    torch.testing.assert_close(encode_backward(grad, boxes, priors, variances), expected)
    assert gradcheck(
        lambda g, d, p: decode_backward(g, d, p, variances, max_log_scale), (grad, deltas, priors)
    )
    assert gradcheck(lambda g, b, p: encode_backward(g, b, p, variances), (grad, boxes, priors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients_of_the_kernel(device, dtype):
    """Equal to float64 autograd of the reference, in the input's dtype, and through broadcasts."""
    deltas = offsets(3, 6, device=device).to(dtype).requires_grad_()
    boxes = corners(3, 6, device=device).to(dtype).requires_grad_()
    priors = corners(6, device=device).requires_grad_()
    weights = torch.randn(3, 6, 4, device=device)
    eps = max(1e-5, torch.finfo(dtype).eps)
    for ours, reference, rows in (
        (decode, decode_reference, deltas),
        (encode, encode_reference, boxes),
    ):
        found = torch.autograd.grad((ours(rows, priors) * weights).sum(), (rows, priors))
        assert [g.dtype for g in found] == [dtype, torch.float32]
        wide = reference(rows.double(), priors.double())
        expected = torch.autograd.grad((wide * weights).sum(), (rows, priors))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=eps, atol=eps * float(other.abs().max()))


def test_differentiates_twice_and_under_functional_transforms(device):
    priors, deltas = corners(4, device=device), offsets(2, 4, device=device)

    def energy(d, p, function=decode):
        return function(d, p).square().sum()

    torch.testing.assert_close(
        torch.func.grad(energy, (0, 1))(deltas, priors),
        torch.func.grad(energy, (0, 1))(deltas, priors, decode_reference),
        rtol=1e-4,
        atol=1e-4,
    )
    hessian = torch.func.hessian(lambda d: energy(d, priors, decode_reference))(deltas)
    rows = deltas.clone().requires_grad_()
    (first,) = torch.autograd.grad(energy(rows, priors), rows, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), rows)
    torch.testing.assert_close(second, hessian.sum(dim=(0, 1, 2)), rtol=1e-4, atol=1e-4)


def test_registration(device):
    priors, deltas = corners(5, device=device), offsets(2, 5, device=device)
    for dtype in (torch.float32, torch.bfloat16):
        arguments = (deltas.to(dtype), priors, [0.1, 0.2], 4.0)
        torch.library.opcheck(torch.ops.ssd_fast.decode.default, arguments)
    torch.library.opcheck(
        torch.ops.ssd_fast.decode.default, (deltas, priors, [0.1, 0.1, 0.2, 0.2], None)
    )
    boxes = corners(2, 5, device=device)
    torch.library.opcheck(torch.ops.ssd_fast.encode.default, (boxes, priors, [0.1, 0.2]))


def test_compiles_without_a_graph_break(device):
    priors, deltas = corners(5, device=device), offsets(2, 5, device=device).requires_grad_()

    def loss(d, p):
        return (encode(decode(d, p), p) * d).sum()

    eager = torch.autograd.grad(loss(deltas, priors), deltas)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(deltas, priors), deltas), eager)


@pytest.mark.parametrize("function", [decode, encode])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": torch.zeros(3, 5)}, r"expected \(\.\.\., 4\), got \(3, 5\)"),
        ({"rows": torch.zeros(3, 4)}, r"a row for each of the priors \(5, 4\), got \(3, 4\)"),
        ({"rows": torch.zeros(5, 4, dtype=torch.float64)}, r"expected float32.*\.float\(\)"),
        ({"rows": torch.zeros(5, 4, dtype=torch.int64)}, r"expected float32.*int64"),
        ({"rows": torch.zeros(5, 4, device="meta")}, r"expected on cpu like priors, got meta"),
        ({"rows": None}, r"expected \(\.\.\., 4\), got NoneType"),
        ({"priors": torch.zeros(5, 3)}, r"priors: expected \(\.\.\., 4\), got \(5, 3\)"),
        ({"priors": torch.zeros(5, 4).half()}, r"priors: expected float32.*priors\.float\(\)"),
        ({"variances": (0.1,)}, r"variances: expected 2 or 4"),
        ({"variances": (0.1, 0.0)}, r"variances: expected 2 or 4 positive"),
        ({"variances": (0.1, math.nan)}, r"variances: expected 2 or 4 positive"),
    ],
)
def test_rejects(function, change, message):
    arguments = {"rows": torch.zeros(5, 4), "priors": corners(5), "variances": (0.1, 0.2)}
    with pytest.raises(ValueError, match=message):
        function(*(arguments | change).values())


@pytest.mark.parametrize("clamp", [math.nan, "4.1", [4.1], 4.1j, torch.ones(2)], ids=repr)
def test_rejects_a_clamp_that_is_no_number(clamp):
    with pytest.raises(ValueError, match="max_log_scale: expected a number, or None for no clamp"):
        decode(torch.zeros(5, 4), corners(5), max_log_scale=clamp)


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(5, 3), torch.zeros(5, 4), [0.1, 0.2]),
        (torch.zeros(4, 4), torch.zeros(5, 4), [0.1, 0.2]),
        (torch.zeros(4), torch.zeros(5, 4), [0.1, 0.2]),
        (torch.zeros(5, 4), torch.zeros(20), [0.1, 0.2]),
        (torch.zeros(5, 4).double(), torch.zeros(5, 4), [0.1, 0.2]),
        (torch.zeros(5, 4), torch.zeros(5, 4).double(), [0.1, 0.2]),
        (torch.zeros(5, 4), torch.zeros(5, 4), [0.1]),
    ],
)
def test_the_operators_guard_memory_themselves(arguments):
    with pytest.raises((RuntimeError, ValueError), match="expected"):
        torch.ops.ssd_fast.encode(*arguments)
    with pytest.raises((RuntimeError, ValueError), match="expected"):
        torch.ops.ssd_fast.decode(*arguments, None)
