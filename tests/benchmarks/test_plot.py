# SPDX-License-Identifier: BSD-3-Clause
"""The table and the chart say what the measurements say."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import peak_memory, plot

ROOT = Path(__file__).resolve().parents[2]


def entry(group: str, contender: str, median: float) -> dict[str, Any]:
    return {
        "group": group,
        "extra_info": {"contender": contender, "baseline": "ours", "cache": "cold", "threads": 1},
        "stats": {"median": median, "q1": 0.9 * median, "q3": 1.2 * median},
    }


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "loss.json"
    content = {
        "machine_info": {
            "cpu": {"brand_raw": "A CPU"},
            "torch": {"version": "2.13.0", "cpu_capability": "AVX2"},
            "ssd_fast": {"compiler": "gcc 12.2.0"},
            "conditions": {"load_average": 0.5, "scheduler": "ordinary"},
        },
        "commit_info": {"id": "0123456789", "dirty": True},
        "datetime": "2026-01-31T12:00:00+00:00",
        "benchmarks": [
            entry("loss, cold", "ours", 0.0005),
            entry("loss, cold", "theirs", 0.02),
            entry("detect, cold", "ours", 0.000025),
            entry("detect, cold", "others", 0.00004),
        ],
    }
    path.write_text(json.dumps(content))
    return path


def test_the_table_has_a_line_a_group_and_a_column_a_contender(report: Path) -> None:
    groups, _ = plot.read(report)
    assert plot.table(groups).splitlines() == [
        "|  | ours | theirs | others |",
        "|---|---:|---:|---:|",
        "| loss, cold | **500 µs** | 20 ms (40x) |  |",
        "| detect, cold | **25 µs** |  | 40 µs (1.6x) |",
    ]


def test_a_limit_is_named_beside_its_ratio(report: Path) -> None:
    content = json.loads(report.read_text())
    for row in content["benchmarks"][:2]:
        row["extra_info"] |= {"limit": "reading 6 MB", "limit_seconds": 0.00025}
    report.write_text(json.dumps(content))
    lines = plot.table(plot.read(report)[0]).splitlines()
    assert lines[0].endswith("| yardstick (the first column takes) |")
    assert lines[2].endswith("| reading 6 MB: 250 µs (2.0x) |")
    assert lines[3].endswith("|  |")


def test_the_report_says_where_it_comes_from(report: Path) -> None:
    _, content = plot.read(report)
    assert plot.provenance(content) == (
        "A CPU, AVX2, torch 2.13.0, gcc 12.2.0, load average 0.5, "
        "commit 0123456 with uncommitted changes, 2026-01-31"
    )


def test_the_command_prints_the_table_and_draws_the_same_chart_twice(
    report: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib, of the extra train")
    readme = report.with_name("README.md")
    readme.write_text("above\n<!-- figures -->old<!-- end of figures -->\nbelow\n")
    monkeypatch.setattr(sys, "argv", ["plot", str(report), "--into", str(readme)])
    plot.main()
    printed = capsys.readouterr().out.strip()
    assert "20 ms (40x)" in printed
    shown = f"<!-- figures -->\n{printed}\n<!-- end of figures -->"
    assert readme.read_text() == f"above\n{shown}\nbelow\n"
    drawn = report.with_suffix(".svg").read_text()
    assert "detect, cold" in drawn
    assert "20 ms  40x" in drawn
    plot.main()
    assert report.with_suffix(".svg").read_text() == drawn


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.5, "2.5 s"), (1.0, "1 s"), (0.3841, "384 ms"), (0.00178, "1.78 ms"), (3.7e-5, "37 µs")],
)
def test_durations_have_three_digits_and_a_unit(seconds: float, text: str) -> None:
    assert plot.duration(seconds) == text


def test_titles_select_the_groups(report: Path) -> None:
    text, groups, _ = plot.figures(report, only="^det.*cold$")
    assert [group.title for group in groups] == ["detect, cold"]
    assert "loss" not in text


def test_a_text_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="expected the markers <!-- figures -->"):
        plot.insert("table", "no markers here")


RESULTS = ROOT / "benchmarks/results"
COMMAND = re.compile(r"benchmarks\.plot (\S+)(?: --only '(.+)')? --into (\S+)")


COMMANDS = COMMAND.findall((RESULTS / "README.md").read_text())


def test_every_text_with_a_table_has_its_command() -> None:
    texts = [
        path
        for path in (ROOT / "README.md", *RESULTS.glob("*.md"))
        if f"<!-- {plot.FIGURES} -->" in path.read_text()
    ]
    assert {ROOT / text for _, _, text in COMMANDS} == set(texts)
    assert len(COMMANDS) == len(texts) == 5


@pytest.mark.parametrize(("measured", "only", "text"), COMMANDS)
def test_a_text_shows_the_committed_measurements(measured: str, only: str, text: str) -> None:
    figures, _, _ = plot.figures(ROOT / measured, only)
    shown = (ROOT / text).read_text()
    assert plot.insert(figures, shown) == shown


def test_the_committed_peaks_of_memory_are_shown(tmp_path: Path) -> None:
    rows = json.loads((RESULTS / "peak_memory.json").read_text())["rows"]
    shown = (RESULTS / "README.md").read_text()
    assert plot.insert(peak_memory.table(rows), shown, peak_memory.MEMORY) == shown
    pytest.importorskip("matplotlib", reason="needs matplotlib, of the extra train")
    peak_memory.draw(rows, tmp_path / "peaks.svg")
    assert "forward + backward, C=81: torchvision" in (tmp_path / "peaks.svg").read_text()


def test_peaks_of_memory_are_written_where_the_command_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib, of the extra train")
    readme, measured = tmp_path / "README.md", tmp_path / "peaks.json"
    shutil.copy(RESULTS / "README.md", readme)
    monkeypatch.setattr(peak_memory, "in_a_process", lambda *_: 3_140_000)
    command = ["peak_memory", "--json", str(measured), "--into", str(readme)]
    monkeypatch.setattr(sys, "argv", command)
    peak_memory.main()
    assert "| detect, C=81 | 3.1 MB | 3.1 MB | 3.1 MB | 3.1 MB |\n<!-- end" in readme.read_text()
    rows = json.loads(measured.read_text())["rows"]
    assert plot.insert(peak_memory.table(rows), readme.read_text(), "memory") == readme.read_text()
    assert readme.read_text() != (RESULTS / "README.md").read_text()
