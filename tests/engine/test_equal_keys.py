# SPDX-License-Identifier: BSD-3-Clause
"""Rows of equal key meet each other once, and know how many come before them."""

import pytest
import torch

from ssd_fast.engine.equal_keys import candidate_rounds, rank


@pytest.mark.parametrize(
    ("key", "other"),
    [([3, 1, 3, 2, 9], [0, 1, 1, 3, 3, 3, 7]), ([1, 2], []), ([], [1, 2]), ([5, 5], [4, 6])],
)
def test_rounds_pair_each_row_with_its_candidates_in_order(key: list[int], other: list[int]):
    rounds = candidate_rounds(torch.tensor(key).long(), torch.tensor(other).long())
    pairs = [list(zip(*map(torch.Tensor.tolist, pair), strict=True)) for pair in rounds]
    expected = [(i, j) for i, k in enumerate(key) for j, o in enumerate(other) if k == o]
    assert sorted(pair for this in pairs for pair in this) == expected
    for j, this in enumerate(pairs):
        assert this == [(i, other.index(key[i]) + j) for i, _ in this]


def test_ranks_count_the_rows_before():
    assert rank(torch.tensor([7, 3, 7, 7, 3])).tolist() == [0, 0, 1, 2, 1]
