# SPDX-License-Identifier: BSD-3-Clause
"""A training step of SSD300-VGG16: one network, the loss of each system, all gradients.

What a loss adds to a step. The network is the same, so its share bounds what any loss can save.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case, make_case
from benchmarks.harness import Contender, SideBySide
from benchmarks.losses import LossSystem, of_amdegroot, of_torchvision, ssd_fast
from ssd_fast.models import SSD, ssd300_vgg16
from ssd_fast.targets import Targets
from ssd_fast.testing import assert_close

BATCH = 2


def test_training_step(side_by_side: SideBySide) -> None:
    case = make_case(BATCH, 21)
    model = ssd300_vgg16(21, width=1.0 if side_by_side.timing else 0.125)
    images = torch.rand(BATCH, 3, 300, 300)
    losses = of_amdegroot(case).losses(*model.head_outputs(images))
    expected = torch.autograd.grad(list(losses), list(model.heads.parameters()))

    def contender(make: Callable[[Case], LossSystem], heads: Callable[[Tensor], Any]) -> Contender:
        system = make(case)
        return Contender(
            f"{system.name} loss",
            lambda: step(model, lambda: system.losses(*heads(images))),
            lambda gradients: check(gradients, expected),
        )

    def whole() -> Iterable[Tensor]:
        result: dict[str, Tensor] = model(images, Targets(*case.objects))
        return result.values()

    through_heads = Contender(
        "ssd_fast heads and loss",
        lambda: step(model, whole),
        lambda gradients: check(gradients, expected),
    )
    side_by_side(
        f"training step, SSD300-VGG16, B={BATCH}, C=21, float32",
        [
            through_heads,
            contender(ssd_fast, model.head_maps),
            contender(of_amdegroot, model.head_outputs),
            contender(of_torchvision, model.head_outputs),
        ],
        caches=["hot"],
        threads=torch.get_num_threads(),
    )


def step(model: SSD, losses: Callable[[], Iterable[Tensor]]) -> tuple[Tensor, ...]:
    """Gradients of all parameters, those of the heads last."""
    parameters = [*model.backbone.parameters(), *model.heads.parameters()]
    return torch.autograd.grad(list(losses()), parameters)


def check(gradients: tuple[Tensor, ...], of_heads: tuple[Tensor, ...]) -> None:
    # Scores of an untrained network are so close that systems mine a few other rows.
    for actual, expected in zip(gradients[-len(of_heads) :], of_heads, strict=True):
        assert_close(actual, expected, tolerance=0.02, what="gradient of a head")
