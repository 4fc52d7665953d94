# SPDX-License-Identifier: BSD-3-Clause
"""Inference with SSD300-VGG16: the network and the postprocessing of each system.

In float32, and as it should be run: in bfloat16 and channels_last, beside float32.

The network's weights are random, so postprocessing gets seeded outputs of a trained one's kind
after the network has run on the image.
"""

import copy
from collections.abc import Callable

import pytest
import torch

from benchmarks.cases import make_case
from benchmarks.detectors import FLAT, detect_contenders
from benchmarks.harness import Contender, SideBySide
from ssd_fast.models import ssd300_vgg16


@pytest.mark.parametrize("scores", ["trained", "flat"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_inference(side_by_side: SideBySide, dtype: torch.dtype, scores: str) -> None:
    case = make_case(1, 21, flat=scores == "flat")
    model = ssd300_vgg16(21, width=1.0 if side_by_side.timing else 0.125).eval()
    fast = copy.deepcopy(model).to(memory_format=torch.channels_last)
    images = torch.rand(1, 3, 300, 300)
    in_place = images.to(memory_format=torch.channels_last)

    def in_float32() -> None:
        model.head_maps(images)

    def in_bfloat16() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            fast.head_maps(in_place)

    def after(network: Callable[[], None], contender: Contender, suffix: str = "") -> Contender:
        @torch.inference_mode()
        def call() -> object:
            network()
            return contender.call()

        return Contender(contender.name + suffix, call, contender.check)

    contenders = detect_contenders(case, FLAT, share=0.99)
    if dtype == torch.float32:
        title, timed = "float32", [after(in_float32, contender) for contender in contenders]
    else:
        title = "bfloat16 and channels_last"
        timed = [after(in_bfloat16, contender) for contender in contenders]
        timed += [after(in_float32, contender, ", float32") for contender in contenders[1:]]
    side_by_side(
        f"inference, SSD300-VGG16, B=1, C=21, {title}, {scores} scores",
        timed,
        caches=["hot"],
        threads=torch.get_num_threads(),
    )
