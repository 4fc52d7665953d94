# SPDX-License-Identifier: BSD-3-Clause
"""IoU thresholds are any sequence of numbers above 0 and at most 1."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from ssd_fast.engine.average_precision import average_precisions, mean_average_precision
from ssd_fast.engine.iou_thresholds import read_iou_threshold, read_iou_thresholds


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor, np.array])
def test_any_sequence_of_numbers_serves(kind: Any):
    box = torch.tensor([[0.0, 0, 10, 10]])
    target = {"boxes": box, "labels": torch.tensor([1])}
    half = torch.tensor([[0.0, 0, 10, 5]])
    detection = target | {"boxes": half, "scores": torch.tensor([0.9])}
    thresholds = kind([0.5, 0.75])
    assert read_iou_thresholds(thresholds) == [0.5, 0.75]
    results = average_precisions([detection], [target], num_classes=2, iou_thresholds=thresholds)
    assert [result.mean for result in results] == [1.0, 0.0]
    mean = mean_average_precision([detection], [target], num_classes=2, iou_thresholds=thresholds)
    assert mean == 0.5


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), torch.tensor(0.5)])
def test_one_number_serves(value: Any):
    assert read_iou_threshold("iou_threshold", value) == 0.5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (0.5, "iou_thresholds: expected one or more numbers .*got float 0.5"),
        (torch.tensor(0.5), "iou_thresholds: expected one or more"),
        ((), "iou_thresholds: expected one or more"),
        (None, "iou_thresholds: .*NoneType"),
        ("0.5", "iou_thresholds: .*str '0.5'"),
        ([0.5, 0.0], r"iou_thresholds\[1\]: expected a number above 0 and at most 1.*0.0"),
        ([1.01], r"iou_thresholds\[0\]: .*1.01"),
        (torch.tensor([0.5, math.nan]), r"iou_thresholds\[1\]: .*nan"),
        (torch.zeros(1, 2), r"iou_thresholds\[0\]: .*list"),
        ([None], r"iou_thresholds\[0\]: .*NoneType"),
    ],
)
def test_rejects_others(values: Any, message: str):
    with pytest.raises(ValueError, match=message):
        mean_average_precision([], [], num_classes=2, iou_thresholds=values)
