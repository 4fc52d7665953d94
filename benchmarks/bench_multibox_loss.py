# SPDX-License-Identifier: BSD-3-Clause
"""multibox_loss: matching, mining and both losses, forward and with the gradients."""

import pytest
import torch

from benchmarks.cases import Case, make_case
from benchmarks.harness import SideBySide
from benchmarks.losses import (
    SYSTEMS,
    loss_contenders,
    of_amdegroot,
    of_compiled,
    of_torchvision,
    ssd_fast,
)
from benchmarks.yardsticks import Work

FEW = (ssd_fast, of_amdegroot, of_torchvision)
WITHOUT_OBJECTS = (ssd_fast, of_torchvision)  # the others fail on empty images


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("classes", [21, 81])
@pytest.mark.parametrize("batch", [1, 8, 32])
def test_multibox_loss(side_by_side: SideBySide, batch: int, classes: int, backward: bool) -> None:
    if batch == 32 and not side_by_side.timing:
        pytest.skip("nothing but larger: its results are checked when it is timed")
    case = make_case(batch, classes)
    side_by_side(
        f"multibox_loss {direction(backward)}, B={batch}, C={classes}, 1-8 objects",
        loss_contenders(case, SYSTEMS if batch < 32 else FEW, backward=backward),
        work=work_of(case, backward),
    )


@pytest.mark.parametrize(
    ("objects", "classes"),
    [((0, 0), 21), ((8, 40), 21), ((8, 40), 81), ((100, 100), 21)],
    ids=["none-21", "8-40-21", "8-40-81", "100-21"],
)
def test_multibox_loss_by_objects(
    side_by_side: SideBySide, objects: tuple[int, int], classes: int
) -> None:
    case = make_case(8, classes, objects=objects)
    few, many = objects
    count = "no" if many == 0 else str(few) if few == many else f"{few}-{many}"
    side_by_side(
        f"multibox_loss forward, B=8, C={classes}, {count} objects",
        loss_contenders(case, SYSTEMS if many else WITHOUT_OBJECTS, backward=False),
        work=work_of(case),
    )


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_multibox_loss_on_two_threads(side_by_side: SideBySide, backward: bool) -> None:
    case = make_case(8, 21)
    side_by_side(
        f"multibox_loss {direction(backward)}, B=8, C=21, 1-8 objects, 2 threads",
        loss_contenders(case, FEW, backward=backward),
        threads=2,
        work=work_of(case, backward),
    )


@pytest.mark.parametrize("classes", [21, 81])
def test_multibox_loss_of_bfloat16(side_by_side: SideBySide, classes: int) -> None:
    case = make_case(8, classes).of(torch.bfloat16)
    side_by_side(
        f"multibox_loss forward, B=8, C={classes}, 1-8 objects, bfloat16",
        loss_contenders(case, FEW, backward=False),
        work=work_of(case),
    )


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_multibox_loss_and_torch_compile(side_by_side: SideBySide, backward: bool) -> None:
    if not side_by_side.timing:
        pytest.skip("compiles for a minute: its results are checked when it is timed")
    case = make_case(8, 21)
    side_by_side(
        f"multibox_loss {direction(backward)}, B=8, C=21, 1-8 objects, against torch.compile",
        loss_contenders(case, (ssd_fast, of_compiled), backward=backward),
        work=work_of(case, backward),
    )


def direction(backward: bool) -> str:
    return "forward + backward" if backward else "forward"


def work_of(case: Case, backward: bool = False) -> Work:
    """Every logit is read and, unless it is the background's, goes through exp."""
    size = case.logits.numel() * case.logits.element_size()
    gradients = size + case.deltas.numel() * case.deltas.element_size()
    return Work(
        read=size,
        written=gradients if backward else 0,
        exponentials=case.logits.numel() - case.logits[..., 0].numel(),
    )
