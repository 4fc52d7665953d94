# SPDX-License-Identifier: BSD-3-Clause
"""match: which object each prior answers for. The peers encode the boxes in the same breath."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.cases import Case, make_case
from benchmarks.harness import Contender, SideBySide
from benchmarks.peers import amdegroot, lufficc, nvidia, torchvision_ssd
from benchmarks.peers.torchvision_installed import installed_torchvision
from benchmarks.yardsticks import Work
from ssd_fast import ops
from ssd_fast.ops.match import match_reference


@pytest.mark.parametrize("objects", [(8, 8), (40, 40)], ids=["8", "40"])
def test_match(side_by_side: SideBySide, objects: tuple[int, int]) -> None:
    case = make_case(8, 21, objects=objects)
    side_by_side(
        f"match, B=8, {objects[0]} objects an image",
        contenders(case),
        work=Work(read=16 * case.priors.size(0), written=4 * 8 * case.priors.size(0)),
    )


def contenders(case: Case) -> list[Contender]:
    boxes, offsets = case.objects.boxes, case.objects.offsets
    expected = match_reference(case.priors.double(), boxes.double(), offsets)
    labels = torch.stack([labels_of(*pair) for pair in zip(expected, case.labels, strict=True)])

    def decides(decision: Callable[..., Tensor], truth: Tensor) -> Callable[..., None]:
        def check(result: object) -> None:
            wrong = int((decision(result) != truth).sum())
            assert wrong == 0, f"{wrong} priors are matched otherwise"

        return check

    transform = lufficc.SSDTargetTransform(case.priors_xywh)
    encoder = nvidia.Encoder(case.default_boxes)
    installed = installed_torchvision()
    match_targets = installed.match if installed else torchvision_ssd.match_targets
    targets, anchors = case.torchvision_targets, [case.priors_pixels] * case.batch
    pairs = list(zip(case.boxes, case.labels, strict=True))
    by_image = decides(lambda images: torch.stack([image[1] for image in images]), labels)
    return [
        Contender(
            "ssd_fast",
            lambda: ops.match(case.priors, boxes, offsets),
            decides(lambda match: match, expected),
        ),
        Contender("amdegroot", lambda: amdegroot_matches(case), decides(lambda t: t, labels)),
        Contender(
            "torchvision" if installed else "torchvision (re-written)",
            lambda: match_targets(targets, anchors),
            decides(torch.stack, expected),
        ),
        Contender("nvidia", lambda: [encoder.encode(*pair) for pair in pairs], by_image),
        Contender("lufficc", lambda: [transform(*pair) for pair in pairs], by_image),
    ]


def amdegroot_matches(case: Case) -> Tensor:
    """The first half of its `MultiBoxLoss.forward`: labels (B, P)."""
    shape = (case.batch, case.priors.size(0))
    loc_t, conf_t = torch.empty(*shape, 4), torch.empty(shape, dtype=torch.long)
    for i, target in enumerate(case.amdegroot_targets):
        truths, labels, priors = target[:, :-1], target[:, -1], case.priors_xywh
        amdegroot.match(0.5, truths, priors, amdegroot.VARIANCE, labels, loc_t, conf_t, i)
    return conf_t


def labels_of(match: Tensor, labels: Tensor) -> Tensor:
    """Label of each prior, 0 for background."""
    return torch.where(match >= 0, labels[match.clamp(min=0).long()], 0)
