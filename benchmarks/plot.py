# SPDX-License-Identifier: BSD-3-Clause
"""Makes the table and the chart from committed measurements; nothing in them is typed.

    python -m benchmarks.plot FILE.json [--only PATTERN] [--into README.md] [--table]

prints a Markdown table and draws a chart, `FILE.svg`, of the groups whose title matches; with
`--into` the table also takes the place of what stands between the markers `<!-- figures -->` and
`<!-- end of figures -->`, with `--table` nothing is drawn.
"""

import argparse
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FIGURES = "figures"  # between the markers <!-- figures --> and <!-- end of figures -->
BASELINE_COLOR, PEER_COLOR = "#1a7f5a", "#9aa5b1"


@dataclass(frozen=True)
class Row:
    """One contender's times in a group, in seconds."""

    contender: str
    median: float
    q1: float
    q3: float


@dataclass(frozen=True)
class Group:
    """Contenders that were measured together.

    Args:
        title: what was compared, and with which caches.
        baseline: the contender that the others are measured against.
        rows: all of them, in the order of the rounds.
        limit: what no implementation can leave out, in words, and its seconds; None if unknown.
    """

    title: str
    baseline: str
    rows: tuple[Row, ...]
    limit: tuple[str, float] | None = None

    def ratio(self, row: Row) -> float:
        """How many times the baseline's median it took."""
        return row.median / next(r.median for r in self.rows if r.contender == self.baseline)


def read(path: Path) -> tuple[list[Group], dict[str, Any]]:
    """The groups of a pytest-benchmark report that `side_by_side` measured, and the report."""
    report: dict[str, Any] = json.loads(path.read_text())
    rows: dict[str, list[Row]] = {}
    baselines: dict[str, str] = {}
    limits: dict[str, tuple[str, float]] = {}
    for entry in report["benchmarks"]:
        facts, stats = entry["extra_info"], entry["stats"]
        title = entry["group"]
        rows.setdefault(title, []).append(
            Row(facts["contender"], stats["median"], stats["q1"], stats["q3"])
        )
        baselines[title] = facts["baseline"]
        if "limit" in facts:
            limits[title] = facts["limit"], facts["limit_seconds"]
    groups = [Group(t, baselines[t], tuple(rows[t]), limits.get(t)) for t in rows]
    return groups, report


def duration(seconds: float) -> str:
    """A duration with three digits, in s, ms or us."""
    if seconds >= 0.9995:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def times(ratio: float) -> str:
    """A ratio with two digits."""
    return f"{ratio:.0f}x" if ratio >= 9.95 else f"{ratio:.1f}x"


def table(groups: list[Group]) -> str:
    """A Markdown table: one line a group, one column a contender; limits last, if there are any."""
    names = list(dict.fromkeys(row.contender for group in groups for row in group.rows))
    limited = any(group.limit for group in groups)
    heads = [*names, "yardstick (the first column takes)"] if limited else names
    lines = [
        "| " + " | ".join(["", *heads]) + " |",
        "|---|" + "---:|" * len(heads),
    ]
    for group in groups:
        by_name = {row.contender: row for row in group.rows}
        cells = []
        for name in names:
            row = by_name.get(name)
            if row is None:
                cells.append("")
            elif name == group.baseline:
                cells.append(f"**{duration(row.median)}**")
            else:
                cells.append(f"{duration(row.median)} ({times(group.ratio(row))})")
        if limited:
            cells.append(limit_cell(group))
        lines.append("| " + " | ".join([group.title, *cells]) + " |")
    return "\n".join(lines)


def limit_cell(group: Group) -> str:
    """The yardstick of a group in words, its time, and how many times that its baseline takes."""
    if group.limit is None:
        return ""
    what, seconds = group.limit
    ours = next(row.median for row in group.rows if row.contender == group.baseline)
    return f"{what}: {duration(seconds)} ({times(ours / seconds)})"


def provenance(report: dict[str, Any]) -> str:
    """One sentence: machine, versions, load, commit, day."""
    machine, commit = report["machine_info"], report["commit_info"]
    dirty = " with uncommitted changes" if commit.get("dirty") else ""
    return (
        f"{machine['cpu']['brand_raw']}, {machine['torch']['cpu_capability']}, torch "
        f"{machine['torch']['version']}, {machine['ssd_fast']['compiler']}, "
        f"load average {machine['conditions']['load_average']}, "
        f"commit {commit['id'][:7]}{dirty}, {report['datetime'][:10]}"
    )


def chart(groups: list[Group], caption: str, path: Path) -> None:
    """Writes bars on a logarithmic axis: medians, with the quartiles as whiskers."""
    import matplotlib as mpl

    mpl.use("Agg")
    # Text stays text, and two runs on the same numbers write the same bytes.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "ssd_fast", "font.size": 9})
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter

    sizes = [len(group.rows) for group in groups]
    figure, axes = plt.subplots(
        len(groups),
        figsize=(7.5, 0.25 * sum(sizes) + 0.45 * len(groups) + 0.5),
        gridspec_kw={"height_ratios": sizes},
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, group in zip(axes[:, 0], groups, strict=True):
        milliseconds = [1e3 * row.median for row in group.rows]
        whiskers = [
            [1e3 * (row.median - row.q1) for row in group.rows],
            [1e3 * (row.q3 - row.median) for row in group.rows],
        ]
        ours = [row.contender == group.baseline for row in group.rows]
        axis.barh(
            range(len(group.rows)),
            milliseconds,
            xerr=whiskers,
            color=[BASELINE_COLOR if own else PEER_COLOR for own in ours],
            error_kw={"linewidth": 0.8, "ecolor": "#3d4852"},
            height=0.7,
        )
        for position, (row, own) in enumerate(zip(group.rows, ours, strict=True)):
            label = duration(row.median) + ("" if own else f"  {times(group.ratio(row))}")
            axis.text(1e3 * row.q3 * 1.12, position, label, va="center", fontsize=8)
        axis.set_yticks(range(len(group.rows)), [row.contender for row in group.rows])
        axis.set_xscale("log")
        axis.invert_yaxis()
        axis.set_title(group.title, loc="left", fontsize=9, fontweight="bold")
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    low, high = (
        1e3 * pick(row.median for group in groups for row in group.rows) for pick in (min, max)
    )
    axes[-1, 0].set_xlim(10 ** math.floor(math.log10(low)), high * 8)  # room for the last label
    axes[-1, 0].xaxis.set_major_formatter(lambda ms, _: duration(ms / 1e3))
    axes[-1, 0].xaxis.set_minor_formatter(NullFormatter())
    axes[-1, 0].set_xlabel("median and quartiles, logarithmic")
    figure.supxlabel(caption, fontsize=7, color="#606f7b", x=0.01, ha="left")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def insert(content: str, text: str, name: str = FIGURES) -> str:
    """Puts content between the markers of a text.

    Args:
        content: a table, as a rule.
        text: with `<!-- name -->` and `<!-- end of name -->`.
        name: of the markers.

    Raises:
        ValueError: the markers are not there.
    """
    opening, closing = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, begin, rest = text.partition(opening)
    _, end, after = rest.partition(closing)
    if not begin or not end:
        raise ValueError(f"expected the markers {opening} and {closing}")
    return f"{before}{opening}\n{content}\n{closing}{after}"


def figures(path: Path, only: str = "") -> tuple[str, list[Group], str]:
    """The table with its origin as Markdown, the groups it shows, and the origin alone."""
    groups, report = read(path)
    groups = [group for group in groups if re.search(only, group.title)]
    origin = provenance(report)
    return f"{table(groups)}\n\n{origin}.", groups, origin


def main() -> None:
    """Reads, prints, draws and inserts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="a report of pytest-benchmark")
    parser.add_argument("--only", default="", help="regular expression for the titles to show")
    parser.add_argument("--into", type=Path, help="a text with the markers for the table")
    parser.add_argument("--table", action="store_true", help="draw no chart")
    arguments = parser.parse_args()
    text, groups, origin = figures(arguments.file, arguments.only)
    print(text)
    if not arguments.table:
        chart(groups, origin, arguments.file.with_suffix(".svg"))
    if arguments.into:
        arguments.into.write_text(insert(text, arguments.into.read_text()))


if __name__ == "__main__":
    main()
