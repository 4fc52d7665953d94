# SPDX-License-Identifier: BSD-3-Clause
"""decode: boxes of all priors of a batch. No detector of ours needs it; others call it."""

import pytest
import torch
from torch import Tensor

from benchmarks.cases import IMAGE_SIZE, make_case
from benchmarks.harness import Contender, SideBySide
from benchmarks.peers import amdegroot, lufficc, torchvision_ssd
from benchmarks.peers.torchvision_installed import installed_torchvision
from benchmarks.yardsticks import Work
from ssd_fast import ops
from ssd_fast.ops.decode import decode_reference
from ssd_fast.testing import assert_close

VARIANCES = amdegroot.VARIANCE


@pytest.mark.parametrize("batch", [1, 8])
def test_decode(side_by_side: SideBySide, batch: int) -> None:
    case = make_case(batch, 21)
    deltas, priors, xywh, pixels = case.deltas, case.priors, case.priors_xywh, case.priors_pixels
    expected = decode_reference(deltas.double(), priors.double(), VARIANCES)
    installed = installed_torchvision()
    decode_single = installed.decode if installed else torchvision_ssd.decode_boxes

    def decodes(actual: Tensor) -> None:
        assert_close(actual, expected, what="boxes")

    def lufficc_boxes() -> Tensor:
        centre_size = lufficc.convert_locations_to_boxes(deltas, xywh, *VARIANCES)
        return lufficc.center_form_to_corner_form(centre_size)

    side_by_side(
        f"decode, B={batch}",
        [
            Contender("ssd_fast", lambda: ops.decode(deltas, priors), decodes),
            Contender(
                "amdegroot",
                lambda: [amdegroot.decode(image, xywh, VARIANCES) for image in deltas],
                lambda images: decodes(torch.stack(images)),
            ),
            Contender(
                "torchvision" if installed else "torchvision (re-written)",
                lambda: [decode_single(image, pixels) for image in deltas],
                lambda images: decodes(torch.stack(images) / IMAGE_SIZE),
            ),
            Contender("lufficc", lufficc_boxes, decodes),
        ],
        work=Work(read=4 * deltas.numel(), written=4 * deltas.numel()),
    )
