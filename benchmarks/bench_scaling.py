# SPDX-License-Identifier: BSD-3-Clause
"""How cost grows with the batch, the objects of an image, the priors, and the boxes of NMS.

`python -m benchmarks.curves` draws a line a contender from the report.
"""

import pytest
from torch import Tensor

from benchmarks.cases import Case, make_case
from benchmarks.harness import Contender, SideBySide
from benchmarks.losses import loss_contenders, of_amdegroot, of_torchvision, ssd_fast
from benchmarks.peers.torchvision_installed import installed_torchvision
from ssd_fast import ops, priors
from ssd_fast.ops.nms import nms_reference
from ssd_fast.testing import crowded_boxes, decided_objects, seeded, trained_outputs

SYSTEMS = (ssd_fast, of_amdegroot, of_torchvision)


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16, 32])
def test_batch(side_by_side: SideBySide, batch: int) -> None:
    compare_losses(side_by_side, make_case(batch, 21), f"batch={batch}", small=batch == 1)


@pytest.mark.parametrize("objects", [1, 4, 16, 64])
def test_objects(side_by_side: SideBySide, objects: int) -> None:
    case = make_case(4, 21, objects=(objects, objects))
    compare_losses(side_by_side, case, f"objects={objects}", small=objects == 1)


@pytest.mark.parametrize("grid", [150, 300, 512])
def test_priors(side_by_side: SideBySide, grid: int) -> None:
    boxes = {150: priors.ssd300()[::4], 300: priors.ssd300(), 512: priors.ssd512()}[grid]
    truth = decided_objects(4, boxes, seeded(1), counts=(1, 8), classes=21)
    case = Case(truth, boxes, *trained_outputs(truth, boxes, seeded(2), classes=21))
    compare_losses(side_by_side, case, f"priors={len(boxes)}", small=grid == 150)


@pytest.mark.parametrize("count", [200, 1000, 5000, 20_000, 50_000])
def test_boxes(side_by_side: SideBySide, count: int) -> None:
    if count > 1000 and not side_by_side.timing:
        pytest.skip("nothing but larger: its results are checked when it is timed")
    boxes, scores = crowded_boxes("random", count, seeded(count))
    expected = nms_reference(boxes, scores, 0.45)

    def keeps(actual: Tensor) -> None:
        assert actual.equal(expected), "other boxes are kept"

    contenders = [Contender("ssd_fast", lambda: ops.nms(boxes, scores, 0.45), keeps)]
    installed = installed_torchvision()
    if installed is not None:
        contenders.append(
            Contender("torchvision", lambda: installed.nms(boxes, scores, 0.45), keeps)
        )
    side_by_side(f"nms, random: N={count}", contenders, caches=["hot"])


def compare_losses(side_by_side: SideBySide, case: Case, point: str, *, small: bool) -> None:
    if not small and not side_by_side.timing:
        pytest.skip("nothing but larger: its results are checked when it is timed")
    side_by_side(
        f"multibox_loss forward + backward, C=21: {point}",
        loss_contenders(case, SYSTEMS, backward=True),
        caches=["cold"],
    )
