# SPDX-License-Identifier: BSD-3-Clause
"""multibox_loss on the heads' raw maps, read where they lie, and after a permute and a cat."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from benchmarks.cases import CELLS, make_case
from benchmarks.harness import Contender, SideBySide
from ssd_fast import ops
from ssd_fast.ops.multibox_loss import multibox_loss_reference
from ssd_fast.testing import as_maps, assert_close

FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
Losses = Callable[[list[Tensor], list[Tensor]], Sequence[Tensor]]


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("classes", [21, 81])
def test_levels(side_by_side: SideBySide, classes: int, memory_format: str, backward: bool) -> None:
    case = make_case(8, classes)
    maps = [
        [
            level.contiguous(memory_format=FORMATS[memory_format]).requires_grad_(backward)
            for level in as_maps(rows, CELLS)
        ]
        for rows in (case.deltas, case.logits)
    ]
    targets = (case.priors, *case.objects)
    exact = multibox_loss_reference(case.deltas.double(), case.logits.double(), *targets)

    def check(losses: Sequence[Tensor]) -> None:
        for actual, loss in zip(losses, exact[:2], strict=True):
            assert_close(actual, loss.to(actual.dtype))

    def contender(name: str, losses: Losses) -> Contender:
        def call() -> Sequence[Tensor]:
            box_loss, class_loss = losses(*maps)
            if backward:
                torch.autograd.grad(box_loss + class_loss, [*maps[0], *maps[1]])
            return box_loss, class_loss

        return Contender(name, call, check)

    side_by_side(
        f"multibox_loss on maps, {'forward + backward' if backward else 'forward'}, B=8, "
        f"C={classes}, {memory_format}",
        [
            contender("ssd_fast", lambda d, x: ops.multibox_loss(d, x, *targets)[:2]),
            contender(
                "permute + cat",
                lambda d, x: ops.multibox_loss(rows_of(d, 4), rows_of(x, classes), *targets)[:2],
            ),
        ],
    )


def rows_of(maps: list[Tensor], channels: int) -> Tensor:
    """(B, P, K) of the heads' maps, as every SSD makes them."""
    levels = [level.permute(0, 2, 3, 1).reshape(level.size(0), -1, channels) for level in maps]
    return torch.cat(levels, dim=1)
