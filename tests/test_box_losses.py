# SPDX-License-Identifier: BSD-3-Clause
"""IoU losses: torchvision's numbers and gradients, and the boxes where branches meet."""

import pytest
import torch
from torch import Tensor

from ssd_fast import box_losses
from ssd_fast.testing import random_boxes, seeded

NAMES = ["generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"]


def _pairs() -> tuple[Tensor, Tensor]:
    """Overlapping, distant, nested, touching and equal boxes."""
    boxes, targets = random_boxes(60, seeded(0)), random_boxes(60, seeded(1))
    boxes[:20] = targets[:20] + 0.02 * torch.randn(20, 4, generator=seeded(2))
    boxes[20] = targets[20]
    boxes[21], targets[21] = torch.tensor([0.0, 0, 1, 1]), torch.tensor([0.3, 0.4, 0.5, 0.5])
    boxes[22], targets[22] = torch.tensor([0.0, 0, 0.5, 1]), torch.tensor([0.5, 0, 1, 1])
    return boxes.double(), targets.double()


@pytest.mark.parametrize("name", NAMES)
def test_equals_torchvision(torchvision, name) -> None:
    """Values and gradients by both boxes, in float64 to the last digits."""
    results = []
    for module in (box_losses, torchvision.ops):
        boxes, targets = (x.requires_grad_() for x in _pairs())
        loss = getattr(module, name)(boxes, targets)
        results.append((loss, *torch.autograd.grad(loss.sum(), (boxes, targets))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_box_costs_nothing(name) -> None:
    """And a box somewhere else costs more than one, even where nothing overlaps."""
    loss = getattr(box_losses, name)
    targets = random_boxes(30, seeded(0)).double()
    assert loss(targets, targets).abs().max() < 1e-3  # the epsilon, in areas of 0.002
    assert (loss(targets + 2, targets) > 1).all()
