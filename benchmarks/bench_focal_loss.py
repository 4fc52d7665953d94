# SPDX-License-Identifier: BSD-3-Clause
"""focal_loss: the class loss of every logit, forward and with its gradient.

Ours matches the priors in the same call; the others are given matches and make the targets from
them, as torchvision's RetinaNet does.
"""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.cases import Case, make_case
from benchmarks.harness import Contender, SideBySide
from benchmarks.limits import Work
from ssd_fast import ops
from ssd_fast.focal import focal_loss_terms
from ssd_fast.testing import assert_close

Loss = Callable[[Tensor], Tensor]


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
    """Ours, plain PyTorch and, where it loads, torchvision's, held to plain PyTorch in float64."""
    objects = tuple(case.objects)
    matched = ops.match(case.priors, objects[0], objects[2])
    image, prior = (matched >= 0).nonzero(as_tuple=True)
    label = objects[1][objects[2][image] + matched[image, prior]]

    def targets(like: Tensor) -> Tensor:
        target = torch.zeros_like(like)
        target[image, prior, label] = 1
        return target

    def ours(logits: Tensor) -> Tensor:
        return ops.focal_loss(case.deltas, logits, case.priors, *objects, normalizer="none")[1]

    def plain(logits: Tensor) -> Tensor:
        return focal_loss_terms(logits, targets(logits) > 0, 0.25, 2.0).sum()

    systems: dict[str, Loss] = {"ssd_fast": ours, "plain PyTorch": plain}
    installed = _installed_focal_loss()
    if installed is not None:
        systems["torchvision"] = lambda x: installed(x, targets(x), reduction="sum")
    wide = case.logits.double().requires_grad_()
    loss = plain(wide)
    expected = torch.autograd.grad(loss, wide)[0] if backward else loss.detach()
    return [_contender(name, system, case, expected, backward) for name, system in systems.items()]


def _contender(name: str, loss: Loss, case: Case, expected: Tensor, backward: bool) -> Contender:
    logits = case.logits.clone().requires_grad_(backward)
    call = (
        (lambda: torch.autograd.grad(loss(logits), logits)[0])
        if backward
        else (lambda: loss(logits))
    )
    return Contender(name, call, functools.partial(assert_close, expected=expected, what=name))


def _installed_focal_loss() -> Callable[..., Tensor] | None:
    """torchvision's, or None where it does not load."""
    try:
        from torchvision.ops import sigmoid_focal_loss
    except (ImportError, RuntimeError, OSError):  # a CUDA build beside CPU torch: RuntimeError
        return None
    found: Callable[..., Tensor] = sigmoid_focal_loss
    return found
