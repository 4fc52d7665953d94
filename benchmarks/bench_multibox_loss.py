# SPDX-License-Identifier: BSD-3-Clause
"""multibox_loss: matching, mining and both losses, forward and with the gradients."""

import pytest

from benchmarks.cases import make_case
from benchmarks.harness import SideBySide
from benchmarks.losses import loss_contenders


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("classes", [21, 81])
@pytest.mark.parametrize("batch", [1, 8])
def test_multibox_loss(side_by_side: SideBySide, batch: int, classes: int, backward: bool) -> None:
    case = make_case(batch, classes)
    what = "forward + backward" if backward else "forward"
    side_by_side(
        f"multibox_loss {what}, B={batch}, C={classes}, 1-8 objects",
        loss_contenders(case, backward=backward),
    )


@pytest.mark.parametrize("classes", [21, 81])
def test_multibox_loss_of_crowds(side_by_side: SideBySide, classes: int) -> None:
    case = make_case(8, classes, objects=(8, 40))
    side_by_side(
        f"multibox_loss forward, B=8, C={classes}, 8-40 objects",
        loss_contenders(case, backward=False),
    )
