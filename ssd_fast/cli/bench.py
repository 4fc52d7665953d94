# SPDX-License-Identifier: BSD-3-Clause
"""`ssd-fast bench`: the benchmarks of a checkout, as a table, a JSON file and a chart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Bench"]


@dataclass(frozen=True)
class Bench:
    """Times every operator beside the naive versions; needs a checkout of the repository."""

    only: str = "multibox_loss or detect or nms"
    """Names of benchmarks, in pytest's words; '' for all of them (half an hour)."""
    seconds: float = 0.3
    """Time for each contender; at least five rounds are measured."""
    output: Path = Path("ssd-fast-bench.json")
    """Report of pytest-benchmark; the chart goes beside it, with .svg."""

    def run(self) -> int:
        """Checks the results, times them, prints the table and draws the chart."""
        import subprocess
        import sys

        from ssd_fast.cli.extras import require

        root = checkout()
        require("benchmarks", "pytest", "pytest_benchmark")
        require("the chart", "matplotlib")
        if not 0 <= self.seconds < float("inf"):
            raise ValueError(f"--seconds: expected a time, 0 or more, got {self.seconds}")
        report = self.output.resolve()
        report.parent.mkdir(parents=True, exist_ok=True)
        timing = [f"--benchmark-max-time={self.seconds}", f"--benchmark-json={report}"]
        steps = (
            ["pytest", "-q", "benchmarks", "-k", self.only, *timing],
            ["benchmarks.plot", str(report)],
        )
        for module in steps:
            done = subprocess.run(
                [sys.executable, "-m", *module],
                cwd=root,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
            # Of pytest, only why it failed: its own table compares nothing.
            if done.returncode or module is steps[-1]:
                print(done.stdout, end="")
            if done.returncode:
                return done.returncode
        print(f"\n{report}\n{report.with_suffix('.svg')}")
        return 0


def checkout() -> Path:
    """The folder of the repository that this package was imported from.

    Raises:
        ValueError: it was not: an installed package has no benchmarks.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / "harness.py").is_file():
        raise ValueError(
            "bench: the benchmarks are in the repository and not in the installed package; clone"
            " it, `pip install -e '.[test,train]'` there, and run `ssd-fast bench` again"
        )
    return root
