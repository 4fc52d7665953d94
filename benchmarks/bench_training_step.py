# SPDX-License-Identifier: BSD-3-Clause
"""A training step of SSD300-VGG16: the loss of each system, all gradients.

One network in float32 shows what a loss adds to a step: the network's share bounds what any loss
can save. Beside it the step as it should be run, in bfloat16 and channels_last, where the network
takes less and what follows it weighs more.
"""

import copy
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

BATCH = 8  # 2 where results are checked alone


def test_training_step(side_by_side: SideBySide) -> None:
    batch = BATCH if side_by_side.timing else 2
    case = make_case(batch, 21)
    model = ssd300_vgg16(21, width=1.0 if side_by_side.timing else 0.125)
    images = torch.rand(batch, 3, 300, 300)
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
        f"training step, SSD300-VGG16, B={batch}, C=21, float32",
        [
            through_heads,
            contender(ssd_fast, model.head_maps),
            contender(of_amdegroot, model.head_outputs),
            contender(of_torchvision, model.head_outputs),
        ],
        caches=["cold"],  # no cache holds a step
        threads=torch.get_num_threads(),
    )


def test_training_step_in_bfloat16(side_by_side: SideBySide) -> None:
    batch = BATCH if side_by_side.timing else 2
    case = make_case(batch, 21)
    plain = ssd300_vgg16(21, width=1.0 if side_by_side.timing else 0.125)
    fast = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    images = torch.rand(batch, 3, 300, 300)
    in_place = images.to(memory_format=torch.channels_last)
    expected = torch.stack(list(of_amdegroot(case).losses(*plain.head_outputs(images)))).detach()
    seen: dict[str, Tensor] = {}

    def contender(name: str, model: SSD, losses: Callable[[], Iterable[Tensor]]) -> Contender:
        def call() -> tuple[Tensor, ...]:
            found = list(losses())
            seen[name] = torch.stack(found).detach()
            return step(model, lambda: found)

        def check_losses(_: tuple[Tensor, ...]) -> None:
            assert_close(seen[name], expected, tolerance=0.02, what="losses")

        return Contender(name, call, check_losses)

    def ours() -> Iterable[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            result: dict[str, Tensor] = fast(in_place, Targets(*case.objects))
        return result.values()

    def in_bfloat16(system: LossSystem) -> Callable[[], Iterable[Tensor]]:
        def losses() -> Iterable[Tensor]:
            with torch.autocast("cpu", torch.bfloat16):
                deltas, logits = fast.head_outputs(in_place)
            return system.losses(deltas.float(), logits.float())

        return losses

    def in_float32(system: LossSystem) -> Callable[[], Iterable[Tensor]]:
        return lambda: system.losses(*plain.head_outputs(images))

    systems = of_torchvision(case), of_amdegroot(case)
    contenders = [contender("ssd_fast", fast, ours)]
    for system in systems:
        contenders.append(contender(f"{system.name} loss", fast, in_bfloat16(system)))
    for system in systems:
        contenders.append(contender(f"{system.name} loss, float32", plain, in_float32(system)))
    side_by_side(
        f"training step, SSD300-VGG16, B={batch}, C=21, bfloat16 and channels_last",
        contenders,
        caches=["cold"],  # no cache holds a step
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
