# SPDX-License-Identifier: BSD-3-Clause
"""mine: the hardest negatives of each image. The peers sort all priors, twice."""

import pytest
import torch
from torch import Tensor

from benchmarks.cases import make_case
from benchmarks.harness import Contender, SideBySide
from benchmarks.peers import lufficc
from benchmarks.yardsticks import Work
from ssd_fast import ops
from ssd_fast.ops.mine import mine_reference


@pytest.mark.parametrize("batch", [1, 8])
def test_mine(side_by_side: SideBySide, batch: int) -> None:
    case = make_case(batch, 21)
    match = ops.match(case.priors, case.objects.boxes, case.objects.offsets)
    loss = -torch.log_softmax(case.logits, 2)[..., 0]
    labels = (match >= 0).long()
    expected = mine_reference(loss, match)

    def selects(actual: Tensor) -> None:
        assert torch.equal(actual, expected), "another set of rows is mined"

    side_by_side(
        f"mine, B={batch}, 1-8 objects",
        [
            Contender("ssd_fast", lambda: ops.mine(loss, match), selects),
            Contender(
                "lufficc",  # a clone, because it overwrites its argument
                lambda: lufficc.hard_negative_mining(loss.clone(), labels, 3),
                lambda mask: selects(mask & (match < 0)),
            ),
            Contender("torch.topk by image", lambda: mine_by_topk(loss, match), selects),
        ],
        work=Work(read=8 * loss.numel(), written=loss.numel()),
    )


def mine_by_topk(loss: Tensor, match: Tensor) -> Tensor:
    """Mining as mmdetection's heads do it: a top-k of the negatives of every image."""
    mined = torch.zeros_like(match, dtype=torch.bool)
    for i in range(loss.size(0)):
        negatives = (match[i] == -1).nonzero()[:, 0]
        count = min(3 * int((match[i] >= 0).sum()), len(negatives))
        mined[i, negatives[loss[i, negatives].topk(count).indices]] = True
    return mined
