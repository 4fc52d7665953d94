# SPDX-License-Identifier: BSD-3-Clause
"""heads_loss: one clear error for bad input."""

import pytest
from torch import Tensor

from ssd_fast.ops import heads_loss

from .heads_cases import make_heads, make_targets

GOOD = make_heads().map(Tensor.detach)


TARGETS = make_targets()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"features": [GOOD.features[0][0], *GOOD.features[1:]]}, r"features\[0\]: expected \(B"),
        ({"features": [x.double() for x in GOOD.features]}, r"features\[0\]: expected float32"),
        (
            {"features": [GOOD.features[0], *(x.half() for x in GOOD.features[1:])]},
            r"features\[1\]: expected float32, float16 or bfloat16, one dtype",
        ),
        ({"features": GOOD.features[:2]}, "delta_weights: expected one with its bias"),
        ({"features": []}, "delta_weights: expected one with its bias, .* at least one"),
        ({"logit_biases": []}, "logit_weights: expected one with its bias, or None"),
        (
            {"delta_weights": [x[:, :, :2] for x in GOOD.delta_weights]},
            r"delta_weights\[0\]: expected \(K, 5, 3, 3\) for features\[0\]",
        ),
        (
            {"logit_biases": [x[1:] for x in GOOD.logit_biases]},
            r"logit_biases\[0\]: expected \(24,\) or None, got \(23,\)",
        ),
        (
            {"logit_weights": [x.to("meta") for x in GOOD.logit_weights]},
            r"logit_weights\[0\]: expected on cpu like features\[0\], got meta",
        ),
        (
            {
                "logit_weights": [x[1:] for x in GOOD.logit_weights],
                "logit_biases": [x[1:] for x in GOOD.logit_biases],
            },
            r"logits\[0\]: expected a multiple of 4 channels",
        ),
    ],
)
def test_bad_heads_are_named(changed, message) -> None:
    """One error that says what would fit."""
    with pytest.raises(ValueError, match=message):
        heads_loss(*GOOD._replace(**changed), *TARGETS)


def test_bad_targets_and_options_are_named() -> None:
    """As `multibox_loss` does."""
    priors, *rest = TARGETS
    with pytest.raises(ValueError, match="priors: expected one for each of the 376 rows"):
        heads_loss(*GOOD, priors[1:], *rest)
    with pytest.raises(ValueError, match="offsets: expected 3 numbers"):
        heads_loss(*GOOD, priors, *rest[:2], rest[2][1:])
    with pytest.raises(ValueError, match="beta: expected"):
        heads_loss(*GOOD, *TARGETS, beta=-1.0)
