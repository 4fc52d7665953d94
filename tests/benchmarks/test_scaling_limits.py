# SPDX-License-Identifier: BSD-3-Clause
"""The laws of cost: what is printed of each, and that all are measured."""

from benchmarks.harness import Budget
from benchmarks.scaling_limits import Law, laws
from ssd_fast import _C


def test_a_law_says_what_was_measured_beside_its_limit():
    law = Law("match, 8 objects an image", 12.5, 11.0, " us an image")
    assert str(law) == "match, 8 objects an image: 12.5 us an image, at most 11 us an image: MISSED"
    assert Law("nms with AVX2", 70, 33, " %", is_least=True).holds
    assert not Law("nms with AVX2", 30, 33, " %", is_least=True).holds
    assert str(Law("growth", 1.5, 1.5, "x")).endswith("1.5x, at most 1.5x: holds")


def test_every_law_is_measured():
    """Once each; how fast, a test cannot tell."""
    best = _C.instruction_sets()[-1]
    found = list(laws(Budget(0.0, 1)))
    shares = 7 if best == "avx512" else 0
    assert len(found) == 9 + shares
    assert all(law.value >= 0 for law in found)
    assert _C.instruction_set() == best
