# SPDX-License-Identifier: BSD-3-Clause
"""nms: over boxes that overlap at random, in clusters of twenty, or hardly at all."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.harness import Contender, SideBySide
from benchmarks.peers import amdegroot, qfgaohao
from benchmarks.peers.torchvision_installed import installed_torchvision
from benchmarks.yardsticks import Work
from ssd_fast import ops
from ssd_fast.ops.nms import nms_reference
from ssd_fast.testing import CROWDS, crowded_boxes, seeded

IOU_THRESHOLD = 0.45
PYTHON_LIMIT = 1000  # boxes: from there on the Python loops take seconds
TURNS = 16  # sets: a processor learns the branches of a few hundred boxes by heart


@pytest.mark.parametrize("crowd", CROWDS)
@pytest.mark.parametrize("count", [200, 1000, 5000, 20_000])
def test_nms(side_by_side: SideBySide, count: int, crowd: str) -> None:
    turns = TURNS if count <= PYTHON_LIMIT and side_by_side.timing else 1
    sets = [crowded_boxes(crowd, count, seeded(count + turn)) for turn in range(turns)]
    expected = [nms_reference(boxes, scores, IOU_THRESHOLD) for boxes, scores in sets]

    def keeps(turn: int, kept: Tensor) -> None:
        assert torch.equal(kept, expected[turn]), "other boxes are kept"

    def keeps_scores(turn: int, kept: Tensor) -> None:
        assert torch.equal(kept[:, 4], sets[turn][1][expected[turn]]), "other boxes are kept"

    contenders = [
        in_turn(
            "ssd_fast", lambda boxes, scores: ops.nms(boxes, scores, IOU_THRESHOLD), sets, keeps
        )
    ]
    installed = installed_torchvision()
    if installed is not None:
        nms = installed.nms
        contenders.append(
            in_turn(
                "torchvision", lambda boxes, scores: nms(boxes, scores, IOU_THRESHOLD), sets, keeps
            )
        )
    if count <= PYTHON_LIMIT:
        contenders.append(
            in_turn(
                "amdegroot",
                lambda boxes, scores: amdegroot.nms(boxes, scores, IOU_THRESHOLD, top_k=count),
                sets,
                lambda turn, result: keeps(turn, result[0][: result[1]]),
            )
        )
        # In a unit so small that the 1e-5 it adds to every union decides nothing.
        rows = [(torch.cat([boxes * 1e4, scores[:, None]], 1),) for boxes, scores in sets]
        contenders.append(
            in_turn(
                "qfgaohao",
                lambda boxes: qfgaohao.hard_nms(boxes, IOU_THRESHOLD, candidate_size=count),
                rows,
                keeps_scores,
            )
        )
    side_by_side(f"nms, N={count}, {crowd}", contenders, work=Work(read=20 * count))


def in_turn(
    name: str,
    function: Callable[..., Any],
    inputs: Sequence[tuple[Tensor, ...]],
    check: Callable[[int, Any], None],
) -> Contender:
    """A contender that takes the inputs in turn; all of its results are checked."""
    turns = itertools.cycle(inputs)

    def check_all(_: Any) -> None:
        for turn, arguments in enumerate(inputs):
            check(turn, function(*arguments))

    return Contender(name, lambda: function(*next(turns)), check_all)
