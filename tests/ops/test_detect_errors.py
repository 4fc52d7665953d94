# SPDX-License-Identifier: BSD-3-Clause
"""detect: one clear error for each way to call it wrongly, and memory guarded below."""

import math

import numpy as np
import pytest
import torch

from ssd_fast.ops.detect import detect, detect_reference
from ssd_fast.testing import random_boxes, seeded


def apart(n):
    """Unit squares that do not touch, so that nothing is suppressed."""
    x = 2 * torch.arange(float(n))
    return torch.stack((x, torch.zeros_like(x), x + 1, torch.ones_like(x)), dim=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"deltas": torch.zeros(2, 5, 3)}, r"deltas\[0\]: expected \(B, P, 4\), got \(2, 5, 3\)"),
        ({"deltas": torch.zeros(2, 4, 4)}, r"logits\[0\]: expected 4 rows"),
        ({"deltas": None}, r"deltas\[0\]: expected .*, got NoneType None"),
        ({"logits": [None]}, r"logits\[0\]: expected .*, got NoneType None"),
        ({"deltas": []}, r"logits: expected as many levels as deltas"),
        ({"deltas": torch.zeros(2, 5, 4).double()}, r"deltas\[0\]: expected float32, float16"),
        ({"logits": torch.zeros(3, 5, 3)}, r"logits\[0\]: expected .* with B = 2"),
        ({"logits": torch.zeros(2, 5, 3).long()}, r"logits\[0\]: expected float32, float16"),
        ({"logits": torch.zeros(2, 5, 3, device="meta")}, r"logits: expected on cpu like priors"),
        ({"priors": apart(4)}, r"priors: expected one for each of the 5 rows"),
        ({"priors": apart(5).double()}, r"priors: expected float32"),
        ({"background_index": 3}, r"background_index: expected from 0 to 2 for 3 classes, got 3"),
        ({"background_index": 1.0}, r"background_index: expected a whole number from 0 .* got 1.0"),
        ({"score_threshold": math.nan}, r"score_threshold: expected a number.*nan"),
        ({"iou_threshold": math.nan}, r"iou_threshold: expected a number.*nan"),
        ({"score_threshold": torch.ones(3)}, r"score_threshold: expected a number.*got \(3,\)"),
        ({"score_threshold": np.ones(3)}, r"score_threshold: expected a number.*got ndarray"),
        ({"max_log_scale": math.nan}, r"max_log_scale: expected a number.*nan"),
        ({"max_log_scale": "4.1"}, r"max_log_scale: expected a number.*None.*got str '4.1'"),
        ({"top_k": -1}, r"top_k: expected a whole number from 0 to .*, got -1"),
        ({"max_detections": -1}, r"max_detections: expected a whole number from 0 to .*, got -1"),
        ({"variances": (0.1, 0.2, 0.3)}, r"variances: expected 2 or 4"),
        ({"clip": (0, 0, 1)}, r"clip: expected 4 numbers"),
        ({"clip": (0, 0, -1, 1)}, r"clip: expected 4 numbers.*x1 <= x2"),
        ({"clip": (0, 0, math.nan, 1)}, r"clip: expected 4 numbers"),
        ({"clip": torch.zeros(3, 4)}, r"clip: expected \(2, 4\), bounds for each image"),
        ({"clip": torch.zeros(2, 4).half()}, r"clip: expected float32"),
        ({"clip": torch.zeros(2, 4, device="meta")}, r"clip: expected on cpu like priors"),
    ],
)
def test_rejects(change, message):
    arguments = {
        "deltas": torch.zeros(2, 5, 4),
        "logits": torch.zeros(2, 5, 3),
        "priors": apart(5),
    }
    with pytest.raises(ValueError, match=message):
        detect(**(arguments | change))


def test_rejects_maps_that_do_not_fit():
    deltas, logits = [torch.zeros(1, 8, 2, 2)], [torch.zeros(1, 6, 2, 2)]
    assert detect(deltas, logits, apart(8)).counts.tolist() == [16]
    with pytest.raises(ValueError, match=r"logits\[0\]: expected a multiple of 2 channels"):
        detect(deltas, [torch.zeros(1, 7, 2, 2)], apart(8))
    with pytest.raises(ValueError, match=r"deltas\[0\]: expected 4 channels for each box"):
        detect([torch.zeros(1, 7, 2, 2)], logits, apart(8))
    with pytest.raises(ValueError, match=r"logits\[1\]: expected 3 classes"):
        detect(deltas * 2, [*logits, torch.zeros(1, 8, 2, 2)], apart(16))


@pytest.mark.parametrize(
    "change",
    [
        {0: [torch.zeros(2, 4, 4)]},
        {1: [torch.zeros(1, 5, 3)]},
        {1: [torch.zeros(2, 5, 3).double()]},
        {2: apart(4)},
        {4: -1},
        {6: -1},
        {7: [0.1]},
        {8: 3},
        {8: -1},
        {9: [0.0, 1.0]},
        {10: torch.zeros(1, 4)},
        {12: 4},
        {12: -1},
        {13: 0.0},
    ],
)
def test_the_operator_guards_memory_itself(change):
    arguments = [[torch.zeros(2, 5, 4)], [torch.zeros(2, 5, 3)], apart(5), 0.01, 9, 0.45, 9]
    arguments += [[0.1, 0.2], 0, None, None, 4.0, 0, 0.5]
    torch.ops.ssd_fast.detect(*arguments)
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises((RuntimeError, ValueError), match=r"expected|other rows"):
        torch.ops.ssd_fast.detect(*arguments)


def test_a_background_counted_from_the_last_class():
    """As the loss counts it; below the first class there is none."""
    generator = seeded(0)
    deltas, logits = torch.randn(2, 2, 50, 4, generator=generator)
    priors = random_boxes(50, generator)
    for operator in (detect, detect_reference):
        last = operator(deltas, logits, priors, background_index=3)
        for found, expected in zip(
            operator(deltas, logits, priors, background_index=-1), last, strict=True
        ):
            assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="background_index: expected from -4 to 3"):
        detect(deltas, logits, priors, background_index=-5)
