# SPDX-License-Identifier: BSD-3-Clause
"""Yardsticks of a benchmark: the memory that it moves and PyTorch's exponentials, as fast as here.

Both are measured in the same process, with the caches in the same state and on as many threads as
the contenders, by what PyTorch has: a sum for reading, a fresh tensor of zeros for writing, `exp`
on data that stays in the cache. A yardstick is the longest of the three, as if they overlapped
perfectly. Memory has to be moved; a kernel that needs few of the exponentials exactly is faster.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.harness import Budget, Cache, before, interleave

_ROUNDS = Budget(seconds=0.05, min_rounds=7)
_CACHED_EXPONENTIALS = 1 << 14


@dataclass(frozen=True)
class Work:
    """What a yardstick consists of.

    Args:
        read: bytes of inputs that decide the result.
        written: bytes of results.
        exponentials: values that go through exp where all are computed exactly.
    """

    read: int = 0
    written: int = 0
    exponentials: int = 0

    def yardstick(self, cache: Cache) -> tuple[str, float]:
        """Which of them takes longest, in words, and its seconds."""
        times = {
            f"reading {_amount(self.read)}": reading(self.read, cache),
            f"writing {_amount(self.written)}": writing(self.written),
            f"torch.exp of {self.exponentials / 1e6:.3g} million": exponentials(self.exponentials),
        }
        what = max(times, key=times.__getitem__)
        return what, times[what]


def reading(size: int, cache: Cache) -> float:
    """Seconds to read so many bytes once."""
    if size == 0:
        return 0.0
    data = torch.zeros(max(size // 4, 1))
    return _median(data.sum, before(cache))


def writing(size: int) -> float:
    """Seconds to write so many bytes into memory that is asked for at each call."""
    if size == 0:
        return 0.0
    return _median(lambda: torch.zeros(max(size // 4, 1)), lambda _: None)


def exponentials(count: int) -> float:
    """Seconds to take so many exponentials of float32 numbers in the cache."""
    if count == 0:
        return 0.0
    data = torch.linspace(-8, 8, _CACHED_EXPONENTIALS)
    out = torch.empty_like(data)
    seconds = _median(lambda: torch.exp(data, out=out), before("hot"))
    return seconds * count / _CACHED_EXPONENTIALS


def _median(call: Callable[[], object], prepare: Callable[[Callable[[], object]], object]) -> float:
    return statistics.median(row[0] for row in interleave([call], prepare, _ROUNDS))


def _amount(size: int) -> str:
    return f"{size / 1e6:.3g} MB"
