# SPDX-License-Identifier: BSD-3-Clause
"""The laws of cost: what is printed of each, what is timed, and what the times are made into."""

import time
from functools import partial

import pytest
import torch

from benchmarks import scaling_limits
from benchmarks.harness import Budget
from benchmarks.scaling_limits import Law, laws, medians
from ssd_fast import _C

# Microseconds of all that is timed.
TIMES = {
    "8732, 1": 24.0, "8732, 8": 88.0, "8732, 64": 800.0,
    "24564, 1": 36.0, "24564, 8": 176.0, "24564, 64": 800.0,
    "4": 400.0, "8": 1000.0, "16": 1600.0,
    "both": 150.0, "operators": 60.0,
    "loss": 120.0, "read": 40.0, "detect": 150.0, "nothing": 100.0,
    "avx2": 200.0, "avx512": 100.0,
}  # fmt: skip


def test_a_law_says_what_was_measured_beside_its_limit():
    law = Law("match, 8 objects an image", 12.5, 11.0, " us an image")
    assert str(law) == "match, 8 objects an image: 12.5 us an image, at most 11 us an image: MISSED"
    assert Law("nms with AVX2", 70, 33, " %", is_least=True).holds
    assert not Law("nms with AVX2", 30, 33, " %", is_least=True).holds
    assert str(Law("growth", 1.5, 1.5, "x")).endswith("1.5x, at most 1.5x: holds")


def test_medians_are_microseconds_of_each_call():
    found = medians({"none": int, "sleep": partial(time.sleep, 0.003)}, Budget(0.0, 3))
    assert found["sleep"] >= 3000 > found["none"] > 0


def test_every_law_is_made_of_its_times(monkeypatch):
    """What is timed runs, on the instruction set that it is named for; the times are given."""
    best = _C.instruction_sets()[-1]
    results = {}

    def given(calls, budget, cache="hot"):
        for name, call in calls.items():
            results[name] = call()
            assert torch.get_num_threads() == 1
            if name in _C.instruction_sets():
                assert _C.instruction_set() == name
        return {name: TIMES[name] for name in calls}

    monkeypatch.setattr(scaling_limits, "medians", given)
    found = list(laws(Budget(0.0, 1)))
    shares = 7 if best == "avx512" else 0
    expected = [3, 11, 100]  # us an image of 8
    expected += [1.5, 2, 1]  # from 8732 to 24564 priors
    expected += [25]  # 100, 125 and 100 us an image: % apart
    expected += [90, 90]  # autograd's own us
    expected += [3, 1.5] * 2  # of 21 and of 81 classes
    expected += [50] * shares  # % of the speed
    assert [law.value for law in found] == pytest.approx(expected)
    verdicts = [True, True, False, True, False, True, False, False, True]
    verdicts += [True, True, False, True] + [True] * shares
    assert [law.holds for law in found] == verdicts
    unknown = set() if shares else {"avx2", "avx512"}
    assert results.keys() == TIMES.keys() - unknown
    assert _C.instruction_set() == best

    assert results["detect"].counts.sum() > 0
    assert results["nothing"].counts.sum() == 0
    assert results["24564, 8"].shape == (8, 24564)
    both, operators = (results[name] for name in ("both", "operators"))
    for gradient, alone in zip(both, [*operators[0], *operators[1]], strict=True):
        assert torch.equal(gradient, alone)
