# SPDX-License-Identifier: BSD-3-Clause
"""nms: over boxes that overlap at random, in clusters of twenty, or hardly at all."""

import pytest
import torch
from torch import Tensor

from benchmarks.harness import Contender, SideBySide
from benchmarks.limits import Work
from benchmarks.peers import amdegroot, qfgaohao
from benchmarks.peers.torchvision_installed import installed_torchvision
from ssd_fast import ops
from ssd_fast.ops.nms import nms_reference
from ssd_fast.testing import CROWDS, crowded_boxes, seeded

IOU_THRESHOLD = 0.45
PYTHON_LIMIT = 1000  # boxes: from there on the Python loops take seconds


@pytest.mark.parametrize("crowd", CROWDS)
@pytest.mark.parametrize("count", [200, 1000, 5000, 20_000])
def test_nms(side_by_side: SideBySide, count: int, crowd: str) -> None:
    boxes, scores = crowded_boxes(crowd, count, seeded(count))
    expected = nms_reference(boxes, scores, IOU_THRESHOLD)

    def keeps(actual: Tensor) -> None:
        assert torch.equal(actual, expected), "other boxes are kept"

    contenders = [Contender("ssd_fast", lambda: ops.nms(boxes, scores, IOU_THRESHOLD), keeps)]
    installed = installed_torchvision()
    if installed is not None:
        contenders.append(
            Contender("torchvision", lambda: installed.nms(boxes, scores, IOU_THRESHOLD), keeps)
        )
    if count <= PYTHON_LIMIT:
        contenders.append(
            Contender(
                "amdegroot",
                lambda: amdegroot.nms(boxes, scores, IOU_THRESHOLD, top_k=count),
                lambda result: keeps(result[0][: result[1]]),
            )
        )
        # In a unit so small that the 1e-5 it adds to every union decides nothing.
        rows = torch.cat([boxes * 1e4, scores[:, None]], 1)
        contenders.append(
            Contender(
                "qfgaohao",
                lambda: qfgaohao.hard_nms(rows, IOU_THRESHOLD, candidate_size=count),
                lambda kept: keeps_scores(kept[:, 4], scores[expected]),
            )
        )
    side_by_side(f"nms, N={count}, {crowd}", contenders, work=Work(read=20 * count))


def keeps_scores(actual: Tensor, expected: Tensor) -> None:
    assert torch.equal(actual, expected), "other boxes are kept"
