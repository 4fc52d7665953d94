# SPDX-License-Identifier: BSD-3-Clause
"""The seeded inputs are what the benchmarks say they are."""

import pytest
import torch

from benchmarks.cases import make_case
from ssd_fast.boxes import box_iou
from ssd_fast.ops.nms import nms_reference
from ssd_fast.testing import crowded_boxes, seeded


def test_no_matching_decision_of_a_case_is_close() -> None:
    case = make_case(4, 21)
    for boxes in case.boxes:
        iou = box_iou(boxes, case.priors)
        best, second = iou.topk(2, dim=1).values.unbind(1)
        assert (second < 0.994 * best).all()
        assert ((iou - 0.5).abs() > 0.003).all()
        rivals = iou.topk(min(2, len(boxes)), dim=0).values
        assert ((rivals[-1] < 0.994 * rivals[0]) | (rivals[-1] < 0.5) | (len(boxes) == 1)).all()


def test_a_case_is_the_same_each_time() -> None:
    first = make_case(1, 21)
    make_case.cache_clear()
    second = make_case(1, 21)
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.objects.boxes, second.objects.boxes)


@pytest.mark.parametrize("classes", [21, 81])
def test_trained_outputs_are_sure_of_the_background_and_flat_ones_of_nothing(classes: int) -> None:
    trained = make_case(4, classes).logits.softmax(2)
    assert 0.95 < (trained[..., 0] > 0.99).float().mean() < 0.99
    confident = (trained[..., 1:] > 0.01).any(2).sum(1)
    assert confident.min() >= 20
    assert confident.max() <= 250
    flat = make_case(1, classes, flat=True).logits.softmax(2)
    assert (flat[..., 1:] > 0.01).float().mean() > 0.9


@pytest.mark.parametrize(
    ("crowd", "least", "most"),
    [("random", 0.5, 0.7), ("clustered", 0.05, 0.1), ("sparse", 0.97, 1)],
)
@pytest.mark.parametrize("count", [200, 2000])
def test_the_fraction_nms_keeps_is_fixed(crowd: str, least: float, most: float, count: int) -> None:
    boxes, scores = crowded_boxes(crowd, count, seeded(0))
    assert len(scores.unique()) == count
    assert least <= len(nms_reference(boxes, scores, 0.45)) / count <= most
