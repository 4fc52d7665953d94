# SPDX-License-Identifier: BSD-3-Clause
"""Draws how cost grows, from a report of `bench_scaling.py`.

    pytest benchmarks/bench_scaling.py --benchmark-json=FILE.json
    python -m benchmarks.curves FILE.json

draws `FILE.svg`: a panel for each quantity, a line a contender, both axes logarithmic.
"""

import argparse
import re
from pathlib import Path

from benchmarks.plot import BASELINE_COLOR, PEER_COLOR, Group, duration, provenance, read

_POINT = re.compile(r"(?P<what>.*): (?P<quantity>\w+)=(?P<value>\d+), (?P<cache>cold|hot)")
_STYLES = ("-", "--", ":", "-.")

Curves = dict[str, dict[str, list[tuple[int, float]]]]


def curves(groups: list[Group]) -> Curves:
    """Panels by title; in each, the (value, median seconds) of each contender, by value."""
    panels: Curves = {}
    for group in groups:
        found = _POINT.fullmatch(group.title)
        if found is None:
            continue
        title = f"{found['what']}, {found['cache']}, by {found['quantity']}"
        for row in group.rows:
            line = panels.setdefault(title, {}).setdefault(row.contender, [])
            line.append((int(found["value"]), row.median))
    for lines in panels.values():
        for line in lines.values():
            line.sort()
    return panels


def draw(panels: Curves, baseline: str, caption: str, path: Path) -> None:
    """Writes the panels as one SVG.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not panels:
        raise ValueError("no row is of `bench_scaling.py`: its titles end in ': quantity=number'")
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "ssd_fast", "font.size": 9})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(panels), figsize=(7.5, 2.6 * len(panels)), squeeze=False, layout="constrained"
    )
    for axis, (title, lines) in zip(axes[:, 0], panels.items(), strict=True):
        peers = iter(_STYLES)
        for name, line in lines.items():
            own = name == baseline
            axis.loglog(
                [value for value, _ in line],
                [1e3 * seconds for _, seconds in line],
                marker="o",
                markersize=3,
                linestyle="-" if own else next(peers),
                color=BASELINE_COLOR if own else PEER_COLOR,
                label=name,
            )
        ticks = [value for value, _ in next(iter(lines.values()))]
        axis.set_xticks(ticks, [str(value) for value in ticks])
        axis.minorticks_off()
        axis.yaxis.set_major_formatter(lambda ms, _: duration(ms / 1e3))
        axis.set_title(title, loc="left", fontsize=9, fontweight="bold")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    figure.supxlabel(caption, fontsize=7, color="#606f7b", x=0.01, ha="left")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Reads and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="a report of pytest-benchmark")
    arguments = parser.parse_args()
    groups, report = read(arguments.file)
    path = arguments.file.with_suffix(".svg")
    draw(curves(groups), groups[0].baseline, provenance(report), path)
    print(path)


if __name__ == "__main__":
    main()
