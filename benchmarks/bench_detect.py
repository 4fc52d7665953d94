# SPDX-License-Identifier: BSD-3-Clause
"""detect: softmax or sigmoids, threshold, decoding, NMS and the best of each image.

Trained scores are what a user waits for in production, flat ones what an evaluation after the first
epoch has to get through.
"""

import pytest

from benchmarks.cases import make_case, without_background
from benchmarks.detectors import FLAT, SIGMOIDS, TRAINED, detect_contenders
from benchmarks.harness import SideBySide
from benchmarks.yardsticks import Work


@pytest.mark.parametrize("classes", [21, 81])
@pytest.mark.parametrize("batch", [1, 8])
def test_detect_trained(side_by_side: SideBySide, batch: int, classes: int) -> None:
    case = make_case(batch, classes)
    side_by_side(
        f"detect, B={batch}, C={classes}, trained scores",
        detect_contenders(case, TRAINED),
        work=Work(read=4 * case.logits.numel()),
    )


@pytest.mark.parametrize("classes", [20, 80])
def test_detect_sigmoid(side_by_side: SideBySide, classes: int) -> None:
    case = without_background(make_case(8, classes + 1))
    side_by_side(
        f"detect, B=8, C={classes}, trained scores, sigmoid",
        detect_contenders(case, SIGMOIDS),
        work=Work(read=4 * case.logits.numel()),
    )


@pytest.mark.parametrize("classes", [21, 81])
def test_detect_flat(side_by_side: SideBySide, classes: int) -> None:
    case = make_case(1, classes, flat=True)
    contenders = detect_contenders(case, FLAT, share=0.99)
    exponentials = Work(read=4 * case.logits.numel(), exponentials=case.logits.numel())
    side_by_side(f"detect, B=1, C={classes}, flat scores", contenders, work=exponentials)
