# SPDX-License-Identifier: BSD-3-Clause
"""Inference with SSD300-VGG16: one network, the postprocessing of each system.

The network's weights are random, so postprocessing gets seeded outputs of a trained one's kind
after the network has run on the image.
"""

import pytest
import torch

from benchmarks.cases import make_case
from benchmarks.detectors import FLAT, detect_contenders
from benchmarks.harness import Contender, SideBySide
from ssd_fast.models import ssd300_vgg16


@pytest.mark.parametrize("scores", ["trained", "flat"])
def test_inference(side_by_side: SideBySide, scores: str) -> None:
    case = make_case(1, 21, flat=scores == "flat")
    model = ssd300_vgg16(21, width=1.0 if side_by_side.timing else 0.125).eval()
    images = torch.rand(1, 3, 300, 300)

    def after_the_network(contender: Contender) -> Contender:
        @torch.inference_mode()
        def call() -> object:
            model.head_maps(images)
            return contender.call()

        return Contender(contender.name, call, contender.check)

    contenders = detect_contenders(case, FLAT, share=0.99)
    side_by_side(
        f"inference, SSD300-VGG16, B=1, C=21, float32, {scores} scores",
        [after_the_network(contender) for contender in contenders],
        caches=["hot"],
        threads=torch.get_num_threads(),
    )
