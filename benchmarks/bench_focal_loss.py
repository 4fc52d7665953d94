# SPDX-License-Identifier: BSD-3-Clause
"""focal_loss: the class loss of every logit, forward and with its gradient.

Ours matches the priors in the same call; the others are given matches and make the targets from
them, as torchvision's RetinaNet does.
"""

import functools

import pytest
import torch
from torch import Tensor

from benchmarks.cases import Case, make_case
from benchmarks.focal_losses import PLAIN, Loss, class_losses
from benchmarks.harness import Contender, SideBySide
from benchmarks.yardsticks import Work
from ssd_fast.testing import assert_close


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("classes", [21, 81])
def test_focal_loss(side_by_side: SideBySide, classes: int, backward: bool) -> None:
    case = make_case(8, classes)
    size = case.logits.numel() * case.logits.element_size()
    side_by_side(
        f"focal_loss {'forward + backward' if backward else 'forward'}, B=8, C={classes}",
        contenders(case, backward),
        work=Work(read=size, written=size if backward else 0, exponentials=case.logits.numel()),
    )


def contenders(case: Case, backward: bool) -> list[Contender]:
    """All of them, held to plain PyTorch in float64."""
    losses = class_losses(case)
    wide = case.logits.double().requires_grad_()
    loss = losses[PLAIN](wide)
    expected = torch.autograd.grad(loss, wide)[0] if backward else loss.detach()
    return [_contender(name, loss, case, expected, backward) for name, loss in losses.items()]


def _contender(name: str, loss: Loss, case: Case, expected: Tensor, backward: bool) -> Contender:
    logits = case.logits.clone().requires_grad_(backward)
    call = (
        (lambda: torch.autograd.grad(loss(logits), logits)[0])
        if backward
        else (lambda: loss(logits))
    )
    return Contender(name, call, functools.partial(assert_close, expected=expected, what=name))
