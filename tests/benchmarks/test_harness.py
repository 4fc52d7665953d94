# SPDX-License-Identifier: BSD-3-Clause
"""The harness times in turn, refuses wrong results and reports every contender."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import detectors
from benchmarks.cases import Case, make_case
from benchmarks.detectors import DetectSystem
from benchmarks.harness import Budget, Contender, before, check, interleave, repeat
from benchmarks.losses import LossSystem, loss_contenders, of_amdegroot, ssd_fast

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    """A clock that only moves when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds

        return call


def test_rounds_are_interleaved_and_preparation_is_not_timed() -> None:
    clock, order = Clock(), []
    calls = [clock.takes(1), clock.takes(2), clock.takes(3)]

    def prepare(call: Callable[[], None]) -> None:
        order.append(calls.index(call))
        clock.now += 100

    rounds = interleave(calls, prepare, Budget(seconds=0, min_rounds=4), timer=clock)
    assert rounds == [[1, 2, 3]] * 4
    assert order == [0, 1, 2] * 4


def test_measuring_stops_when_the_time_is_spent() -> None:
    clock = Clock()
    rounds = interleave(
        [clock.takes(1), clock.takes(4)], lambda _: None, Budget(seconds=25, min_rounds=2), clock
    )
    assert len(rounds) == 10  # 50 s for two contenders, 5 s a round


def test_a_hot_call_follows_one_of_its_own_and_a_cold_one_does_not() -> None:
    calls = []
    before("cold")(lambda: calls.append("own"))
    assert calls == []
    before("hot")(lambda: calls.append("own"))
    assert set(calls) == {"own"}


@pytest.mark.parametrize(("milliseconds", "expected"), [(1, 10), (4, 3), (10, 1), (5000, 1)])
def test_a_hot_call_follows_ten_milliseconds_of_its_own(milliseconds: int, expected: int) -> None:
    clock, count = Clock(), 0

    def call() -> None:
        nonlocal count
        count += 1
        clock.now += milliseconds

    repeat(call, timer=lambda: clock.now / 1000)
    assert count == expected


def test_a_wrong_result_is_refused_by_name() -> None:
    def is_one(result: int) -> None:
        assert result == 1, f"expected 1, got {result}"

    check(Contender("right", lambda: 1, is_one))
    with pytest.raises(AssertionError, match="sloppy is not timed: expected 1, got 2"):
        check(Contender("sloppy", lambda: 2, is_one))


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(1, 21)


@pytest.mark.parametrize("backward", [False, True])
def test_losses_of_another_normalisation_are_refused(case: Case, backward: bool) -> None:
    def halved(case: Case) -> LossSystem:
        amdegroot = of_amdegroot(case)
        return LossSystem("halved", lambda d, x: [loss / 2 for loss in amdegroot.losses(d, x)])

    right, wrong = loss_contenders(case, [of_amdegroot, halved], backward=backward)
    check(right)
    with pytest.raises(AssertionError, match="halved is not timed"):
        check(wrong)


def test_gradients_of_a_single_missing_row_are_refused(case: Case) -> None:
    (ours,) = loss_contenders(case, [ssd_fast], backward=True)
    deltas, logits = ours.call()
    ours.check((deltas, logits))
    mined = (logits[0, :, 0] < 0).nonzero()[:, 0]
    easy = mined[case.logits[0, mined, 0].argmin()]  # far from the boundary: a hard negative
    logits[0, easy] = 0
    with pytest.raises(AssertionError, match="gradient of the logits"):
        ours.check((deltas, logits))


def test_a_benchmark_writes_one_row_a_contender(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pytest", "benchmarks/bench_mine.py", "-q", "-k", "1"]
    command += ["--benchmark-max-time=0", "--benchmark-min-rounds=2", f"--benchmark-json={report}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    written = json.loads(report.read_text())
    assert written["machine_info"]["torch"]["version"] == torch.__version__
    assert "node" not in written["machine_info"]
    rows = {(row["group"], row["name"]): row for row in written["benchmarks"]}
    groups = {group for group, _ in rows}
    assert groups == {f"mine, B=1, 1-8 objects, {cache}" for cache in ("cold", "hot")}
    for group in groups:
        assert {name for other, name in rows if other == group} == {
            "ssd_fast",
            "lufficc",
            "torch.topk by image",
        }
    assert all(row["stats"]["rounds"] == 2 and row["stats"]["median"] > 0 for row in rows.values())


def test_a_missing_or_a_moved_detection_is_refused(case: Case) -> None:
    def short(case: Case) -> DetectSystem:
        ours = detectors.ssd_fast(case)
        return replace(ours, name="short", rows=lambda d: [rows[:-1] for rows in ours.rows(d)])

    def moved(case: Case) -> DetectSystem:
        ours = detectors.ssd_fast(case)
        return replace(ours, name="moved", rows=lambda d: [rows + 0.001 for rows in ours.rows(d)])

    right, *wrong = detectors.detect_contenders(case, [detectors.ssd_fast, short, moved])
    check(right)
    for contender in wrong:
        with pytest.raises(AssertionError, match=f"{contender.name} is not timed"):
            check(contender)
