# SPDX-License-Identifier: BSD-3-Clause
"""Rows of equal key: each with those of another list, and how many come before each."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["candidate_rounds", "rank"]


def candidate_rounds(key: Tensor, other: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs rows with all others of their key, in rounds.

    Round j pairs every row that has more than j candidates with its j-th, so that memory stays at a
    few numbers a row however many candidates there are.

    Args:
        key: (n,) int64.
        other: (m,) int64, ascending.

    Yields:
        Rows of `key`, ascending, and a row of `other` for each; a row's candidates ascend.
    """
    first, count = _span(key, other)
    rows = count.nonzero().squeeze(1)
    j = 0
    while rows.numel():
        yield rows, first[rows] + j
        j += 1
        rows = rows[count[rows] > j]


def rank(key: Tensor) -> Tensor:
    """How many rows before each one have the same key, (n,)."""
    ordered, order = key.sort(stable=True)
    return torch.empty_like(key).scatter_(0, order, _rank_in_run(ordered))


def _rank_in_run(ordered: Tensor) -> Tensor:
    """The same of an ascending key."""
    at = torch.arange(ordered.numel())
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    return at - torch.where(starts, at, 0).cummax(0).values


def _span(key: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """First row of each key among the ascending `other` (D,), and how many follow it (D,)."""
    first = torch.searchsorted(other, key)
    if other.numel() == 0:
        return first, torch.zeros_like(first)
    length = other.unique_consecutive(return_counts=True)[1]
    run = length.repeat_interleave(length)
    at = first.clamp(max=other.numel() - 1)
    return first, torch.where(other[at] == key, run[at], 0)
