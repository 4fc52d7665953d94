# SPDX-License-Identifier: BSD-3-Clause
import pytest
import torch

from ssd_fast.engine.average_precision import average_precision


def test_a_curve_worked_by_hand() -> None:
    # Three objects; ranked: true, false, true. The envelope is 1 up to recall 1/3, then 2/3.
    target = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]]),
        "labels": torch.tensor([1, 1, 1]),
    }
    detection = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [60, 60, 70, 70], [20, 20, 30, 30]]),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
        "labels": torch.tensor([1, 1, 1]),
    }
    area = average_precision([detection], [target], num_classes=2)
    assert area.mean == pytest.approx(1 / 3 + 2 / 3 / 3)
    voc07 = average_precision([detection], [target], num_classes=2, method="voc07")
    assert voc07.mean == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)
