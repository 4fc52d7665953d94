# SPDX-License-Identifier: BSD-3-Clause
"""multibox_loss: one clear error for bad input."""

import math

import pytest
import torch

from ssd_fast.ops import multibox_loss

D, L, PRIORS = torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), torch.zeros(3, 4)


BOXES, LABELS, OFFSETS = torch.zeros(4, 4), torch.zeros(4).long(), torch.tensor([0, 2, 4])


MAP_D, MAP_L = torch.zeros(2, 12, 1, 1), torch.zeros(2, 15, 1, 1)


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ({0: D[0]}, {}, r"deltas\[0\]: expected \(B, P, K\) or .* got \(3, 4\)"),
        ({0: None}, {}, r"deltas\[0\]: expected \(B, P, K\) or .* W\), got NoneType None"),
        ({0: D.numpy()}, {}, r"deltas\[0\]: expected .* got ndarray"),
        ({1: L[..., :0]}, {}, r"logits: expected at least one class, got \(2, 3, 0\)"),
        ({0: D.double()}, {}, r"deltas\[0\]: expected float32, float16 or bfloat16"),
        ({1: L[:1]}, {}, r"logits\[0\]: expected .* with B = 2, got \(1, 3, 5\)"),
        ({1: L[:, :2]}, {}, r"logits\[0\]: expected 3 rows as in deltas\[0\]"),
        ({0: [D, D]}, {}, "logits: expected as many levels as deltas"),
        ({0: [], 1: []}, {}, "logits: expected as many levels as deltas and at least one"),
        ({0: MAP_D}, {}, r"logits\[0\]: expected the layout and map size of deltas\[0\]"),
        ({0: MAP_D, 1: MAP_L[:, :14]}, {}, r"logits\[0\]: expected a multiple of 3 channels"),
        ({0: MAP_D[:, :11], 1: MAP_L}, {}, r"deltas\[0\]: expected 4 channels for each box"),
        ({0: [D, D], 1: [L, L[..., :4]]}, {}, r"logits\[1\]: expected 5 classes as in the levels"),
        ({0: [D, D.half()], 1: [L, L]}, {}, r"deltas\[1\], logits\[1\]: expected one dtype"),
        ({2: PRIORS[:2]}, {}, "priors: expected one for each of the 3 rows of deltas, got 2"),
        ({3: BOXES[:3]}, {}, "labels: expected one for each of the 3 boxes, got 4"),
        ({4: LABELS.int()}, {}, "labels: expected a vector of torch.int64"),
        ({4: None}, {}, "labels: expected a vector of torch.int64, got NoneType None"),
        ({5: OFFSETS[:2]}, {}, "offsets: expected 3 numbers for a batch of 2 images, got 2"),
        ({3: BOXES.to("meta")}, {}, "boxes: expected on cpu like priors, got meta"),
        (
            {},
            {"background_index": 5},
            "background_index: expected from 0 to 4 for 5 classes, got 5",
        ),
        ({}, {"variances": (0.1,)}, "variances: expected 2 or 4 positive"),
        ({}, {"normalizer": "batch"}, "normalizer: expected one of 'positives', 'image', 'none'"),
        ({}, {"beta": -1.0}, "beta: expected .* got -1.0"),
        ({}, {"ratio": math.nan}, "ratio: expected .* got nan"),
        ({}, {"strict": "no"}, "strict: expected True or False, got str 'no'"),
        ({}, {"background_index": 0.5}, "background_index: expected a whole number .* got 0.5"),
        ({}, {"ratio": "3"}, "ratio: expected .* got str '3'"),
        ({}, {"min_negatives": 2.5}, "min_negatives: expected a whole number .* got 2.5"),
    ],
)
def test_rejects(changed, options, message) -> None:
    """One clear error that names the argument, and the level where there are several."""
    arguments = [D, L, PRIORS, BOXES, LABELS, OFFSETS]
    for index, value in changed.items():
        arguments[index] = value
    with pytest.raises(ValueError, match=message):
        multibox_loss(*arguments, **options)
