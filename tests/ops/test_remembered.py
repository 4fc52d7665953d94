# SPDX-License-Identifier: BSD-3-Clause
"""What options come to is remembered, and never taken for what others come to."""

from typing import Any

import pytest
import torch

from ssd_fast.ops import detect, match
from ssd_fast.ops._remembered import remembered
from ssd_fast.testing import random_boxes, seeded

BOXES = random_boxes(3, seeded(0))
OFFSETS = torch.tensor([0, 3])


@pytest.fixture
def asked() -> list[tuple[Any, ...]]:
    """What the function below was called with."""
    return []


@pytest.fixture
def answer(asked: list[tuple[Any, ...]]):
    def checked(*options: Any) -> tuple[Any, ...]:
        asked.append(options)
        if options[0] == "wrong":
            raise ValueError("wrong")
        return tuple(map(type, options))

    return remembered(checked)


def test_the_same_options_are_looked_at_once(answer, asked) -> None:
    for _ in range(3):
        assert answer(0.5, None) == (float, type(None))
        assert answer("last", (0.1, 0.2)) == (str, tuple)
    assert len(asked) == 2


@pytest.mark.parametrize("others", [(1, True, 1.0), (0, False, 0.0)])
def test_equal_options_of_other_types_are_others(answer, others) -> None:
    for _ in range(2):
        for option in others:
            assert answer(option) == (type(option),)


def test_what_may_change_and_what_was_wrong_are_looked_at_anew(answer, asked) -> None:
    variances = [0.1, 0.2]
    for _ in range(2):
        assert answer(variances) == (list,)
        assert answer((variances, 0.3)) == (tuple,)
        with pytest.raises(ValueError, match="wrong"):
            answer("wrong")
    assert len(asked) == 6


def test_an_error_does_not_depend_on_the_calls_before() -> None:
    for _ in range(2):
        match(BOXES, BOXES, OFFSETS, strict=True)
        with pytest.raises(ValueError, match="strict: expected True or False, got 1"):
            match(BOXES, BOXES, OFFSETS, strict=1)
    heads = torch.zeros(1, 3, 4), torch.zeros(1, 3, 2), BOXES
    detect(*heads, top_k=5)
    with pytest.raises(ValueError, match=r"top_k: expected a whole number .* got 5\.0"):
        detect(*heads, top_k=5.0)
