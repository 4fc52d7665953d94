# SPDX-License-Identifier: BSD-3-Clause
"""Times contenders side by side: checked first, then interleaved, with cold or with warm caches.

One process, one thread unless said otherwise, rounds a, b, c, a, b, c: whatever slows the machine
down slows every contender down. A contender whose result is not the reference's is not timed.

* cold: 128 MB are swept through the caches, untimed, before every single call. What a network does
  between two losses.
* hot: calls are repeated; one is timed after 10 ms of untimed calls of its own, at least one. What
  the work costs with all that it reads in the caches that can hold it. The lower bound.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from benchmarks.yardsticks import Work

Cache = Literal["cold", "hot"]

SWEEP_BYTES = 128 * 2**20
WARM_SECONDS = 0.01  # after a slow contender, a fast one takes ten calls to find its data again
MAX_ROUNDS = 100


@dataclass(frozen=True)
class Contender:
    """One way of doing the work that a benchmark compares.

    Args:
        name: as the tables show it.
        call: the work, without arguments; what is timed.
        check: raises AssertionError unless it gets a result of `call` that is the reference's.
    """

    name: str
    call: Callable[[], Any]
    check: Callable[[Any], None]


@dataclass(frozen=True)
class Budget:
    """How long to measure: for `seconds` a contender, but at least `min_rounds` rounds."""

    seconds: float = 1.0
    min_rounds: int = 5


class SideBySide:
    """What the fixture `side_by_side` gives to a benchmark: call it with the contenders.

    Args:
        benchmark: the fixture of pytest-benchmark, whose report gets one row a contender.
        budget: how long to measure.
    """

    def __init__(self, benchmark: Any, budget: Budget) -> None:
        self.benchmark = benchmark
        self.budget = budget

    @property
    def timing(self) -> bool:
        """Whether times are wanted; under `--benchmark-disable` results are checked alone."""
        return not self.benchmark.disabled

    def __call__(
        self,
        title: str,
        contenders: Sequence[Contender],
        *,
        caches: Sequence[Cache] = ("cold", "hot"),
        threads: int = 1,
        work: "Work | None" = None,
    ) -> None:
        """Checks all contenders, then times them.

        Args:
            title: what is compared; the name of the group in the report.
            contenders: who is compared; the first is the one the others are measured against.
            caches: the states of the caches to time with, a group of rows each.
            threads: of PyTorch.
            work: what a yardstick in the report is made of, see `benchmarks.yardsticks`.
        """
        self.benchmark._mode = "side_by_side"  # or pytest-benchmark warns of an unused fixture
        with threads_of_torch(threads):
            for contender in contenders:
                check(contender)
            for cache in caches if self.timing else ():
                rounds = interleave([c.call for c in contenders], before(cache), self.budget)
                facts: dict[str, Any] = {
                    "cache": cache,
                    "threads": threads,
                    "baseline": contenders[0].name,
                }
                if work is not None:
                    facts["limit"], facts["limit_seconds"] = work.yardstick(cache)
                for contender, durations in zip(contenders, zip(*rounds, strict=True), strict=True):
                    self._report(f"{title}, {cache}", contender.name, durations, facts)

    def _report(
        self, group: str, name: str, durations: Sequence[float], facts: dict[str, Any]
    ) -> None:
        """Adds a row to the report.

        pytest-benchmark times one function a test and has no public way in for times taken
        together, so this goes through the method that its own `pedantic` uses.
        """
        row = copy.copy(self.benchmark)
        row.name, row.group = name, group
        row.fullname = f"{self.benchmark.fullname}::{facts['cache']}::{name}"
        row.extra_info = {"contender": name, **facts}
        stats = row._make_stats(iterations=1)
        for duration in durations:
            stats.update(duration)


def check(contender: Contender) -> None:
    """Runs a contender once and refuses it, by name, if its result is not the reference's."""
    result = contender.call()
    try:
        contender.check(result)
    except AssertionError as error:
        raise AssertionError(f"{contender.name} is not timed: {error}") from error


def before(cache: Cache) -> Callable[[Callable[[], Any]], object]:
    """What happens, untimed, before each timed call; it is given that call."""
    if cache == "hot":
        return repeat
    swept = torch.zeros(SWEEP_BYTES // 4)
    return lambda call: swept.add_(1)


def repeat(call: Callable[[], Any], timer: Callable[[], float] = time.perf_counter) -> None:
    """Calls until the caches hold what the call reads: for `WARM_SECONDS`, at least once."""
    stop = timer() + WARM_SECONDS
    call()
    while timer() < stop:
        call()


def interleave(
    calls: Sequence[Callable[[], Any]],
    prepare: Callable[[Callable[[], Any]], object],
    budget: Budget,
    timer: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Times the calls in turn, round after round.

    Args:
        calls: what to time.
        prepare: runs, untimed, before each call, with that call.
        budget: when to stop.
        timer: a clock in seconds.

    Returns:
        The durations in seconds, one list a round, in the order of the calls.
    """
    rounds: list[list[float]] = []
    stop = timer() + budget.seconds * len(calls)
    while len(rounds) < budget.min_rounds or (timer() < stop and len(rounds) < MAX_ROUNDS):
        durations = []
        for call in calls:
            prepare(call)
            start = timer()
            call()
            durations.append(timer() - start)
        rounds.append(durations)
    return rounds


@contextmanager
def threads_of_torch(count: int) -> Iterator[None]:
    """Runs PyTorch on `count` threads for a while."""
    previous = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(previous)
