# SPDX-License-Identifier: BSD-3-Clause
"""`ssd-fast bench`: a table, a report and a chart from a checkout; a way out elsewhere."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("tyro", reason="needs the train extra")
pytest.importorskip("matplotlib", reason="needs the train extra")

from ssd_fast.cli import bench

IN_A_CHECKOUT = (Path(bench.__file__).parents[2] / "benchmarks/harness.py").is_file()
needs_checkout = pytest.mark.skipif(not IN_A_CHECKOUT, reason="the package is not of a checkout")


@needs_checkout
def test_a_checkout_is_timed(ssd_fast: Callable, tmp_path: Path):
    report = tmp_path / "results" / "mine.json"
    result = ssd_fast("bench", "--only", "test_mine and 1", "--seconds", 0, "--output", report)
    assert result.status == 0
    assert {row["group"] for row in json.loads(report.read_text())["benchmarks"]} == {
        f"mine, B=1, 1-8 objects, {cache}" for cache in ("cold", "hot")
    }
    assert report.with_suffix(".svg").exists()
    assert "yardstick (the first column takes)" in result.out


@needs_checkout
def test_nothing_found_is_a_failure(ssd_fast: Callable, tmp_path: Path):
    result = ssd_fast("bench", "--only", "no_such_benchmark", "--output", tmp_path / "none.json")
    assert result.status == 5  # pytest's: no tests collected
    assert "deselected" in result.out


def test_an_installed_package_says_where_the_benchmarks_are(
    ssd_fast: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "site/ssd_fast/cli/bench.py"))
    result = ssd_fast("bench")
    assert result.status == 2
    assert "clone" in result.err


@needs_checkout
def test_a_negative_time_is_refused(ssd_fast: Callable):
    result = ssd_fast("bench", "--seconds", -1)
    assert result.status == 2
    assert "--seconds" in result.err
