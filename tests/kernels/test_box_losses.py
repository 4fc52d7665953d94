# SPDX-License-Identifier: BSD-3-Clause
"""The IoU losses and their gradients against float64: apart, nested, clamped, in pixels."""

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")
import triton
import triton.language as tl

from ssd_fast.box_losses import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)
from ssd_fast.boxes import decode_boxes, encode_boxes
from ssd_fast.kernels import box_losses
from ssd_fast.testing import assert_close, random_boxes, seeded

LOSSES = {1: generalized_box_iou_loss, 2: distance_box_iou_loss, 3: complete_box_iou_loss}
VARIANCES = (0.1, 0.11, 0.2, 0.22)


@triton.jit
def apply_loss(
    deltas_ptr, priors_ptr, boxes_ptr, loss_ptr, slope_ptr, N,
    BOX_LOSS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = n < N
    loss, x, y, w, h = box_losses.row_iou_loss(
        deltas_ptr, n * 4, 1, boxes_ptr, priors_ptr, n, n, ok, 0.1, 0.11, 0.2, 0.22, BOX_LOSS
    )
    tl.store(loss_ptr + n, loss, ok)
    columns = n[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(slope_ptr + columns, box_losses.four_columns(x, y, w, h), ok[:, None])


def _kernel(device, deltas, priors, boxes, box_loss):
    loss = torch.empty(len(deltas), device=device)
    slope = torch.empty(len(deltas), 4, device=device)
    inputs = (x.float().contiguous().to(device) for x in (deltas, priors, boxes))
    grid = (triton.cdiv(len(deltas), 512),)
    apply_loss[grid](*inputs, loss, slope, len(deltas), BOX_LOSS=box_loss, BLOCK=512)
    return loss.cpu(), slope.cpu()


def _float64(deltas, priors, boxes, box_loss):
    deltas = deltas.double().requires_grad_()
    decoded = decode_boxes(deltas, priors.double(), VARIANCES)
    loss = LOSSES[box_loss](decoded, boxes.double())
    return loss.detach(), torch.autograd.grad(loss.sum(), deltas)[0]


def _pairs(scene: str, count: int = 600):
    """Deltas, priors and the objects' boxes."""
    priors, boxes = random_boxes(count, seeded(0)), random_boxes(count, seeded(1))
    deltas = torch.randn(count, 4, generator=seeded(2))
    if scene == "near":
        deltas = encode_boxes(boxes, priors, VARIANCES) + 0.5 * deltas
    if scene == "clamped":  # log-scales on both sides of the clamp, and widths of nearly nothing
        deltas[:, 2:] = torch.linspace(-40, 40, count)[:, None] * torch.tensor([1.0, -1.0])
    if scene == "pixels":
        priors, boxes = 1000 + 300 * priors, 1000 + 300 * boxes
        deltas = encode_boxes(boxes, priors, VARIANCES) + 0.5 * deltas
    return deltas.float(), priors, boxes


@pytest.mark.parametrize("box_loss", LOSSES)
@pytest.mark.parametrize("scene", ["apart", "near", "clamped", "pixels"])
def test_equal_float64(kernel_device, scene, box_loss) -> None:
    """Losses and derivatives by the deltas."""
    pairs = _pairs(scene)
    loss, slope = _kernel(kernel_device, *pairs, box_loss)
    expected_loss, expected_slope = _float64(*pairs, box_loss)
    assert_close(loss, expected_loss, tolerance=2e-6, what="loss")
    assert_close(slope, expected_slope, what="slope")


@pytest.mark.parametrize("box_loss", LOSSES)
def test_equal_sides_share_the_gradient(kernel_device, box_loss) -> None:
    """As PyTorch's: of a box that is its object, and of one that shares two of its sides."""
    priors = torch.tensor([[0.25, 0.25, 0.75, 0.75]]).repeat(2, 1)
    boxes = torch.tensor([[0.25, 0.25, 0.75, 0.75], [0.25, 0.25, 0.5, 0.5]])
    loss, slope = _kernel(kernel_device, torch.zeros(2, 4), priors, boxes, box_loss)
    expected_loss, expected_slope = _float64(torch.zeros(2, 4), priors, boxes, box_loss)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slope.double(), expected_slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("box_loss", LOSSES)
@pytest.mark.parametrize("column", range(4))
def test_nan_stays_nan(kernel_device, column, box_loss) -> None:
    """In the loss, so that training shows it; and in the derivatives, as PyTorch has it."""
    deltas, priors, boxes = _pairs("near", 5)
    deltas[3, column] = torch.nan
    loss, slope = _kernel(kernel_device, deltas, priors, boxes, box_loss)
    assert loss.isnan().tolist() == [False, False, False, True, False]
    expected = _float64(deltas, priors, boxes, box_loss)[1].float()
    torch.testing.assert_close(slope[3], expected[3], rtol=1e-4, atol=1e-6, equal_nan=True)
