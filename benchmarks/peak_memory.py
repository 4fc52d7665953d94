# SPDX-License-Identifier: BSD-3-Clause
"""How much more memory a process needs at its peak while it takes a loss or detects; Linux.

    python -m benchmarks.peak_memory [--json FILE.json] [--into README.md]

prints a Markdown table and draws `FILE.svg`; with `--into` the table also takes the place of what
stands between the markers `<!-- memory -->` and `<!-- end of memory -->`. Each number is of a
process of its own: inputs are made, the call is made once with one image so that code and libraries
are loaded, the high-water mark of the resident memory is reset, and the call is made with the
batch.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import detectors, losses
from benchmarks.cases import make_case
from benchmarks.plot import BASELINE_COLOR, PEER_COLOR, insert

MEMORY = "memory"  # between the markers <!-- memory --> and <!-- end of memory -->
BATCH = 8
SYSTEMS = ("ssd_fast", "torchvision", "amdegroot", "vectorized")
_MAKERS = {
    "ssd_fast": (losses.ssd_fast, detectors.ssd_fast),
    "torchvision": (losses.of_torchvision, detectors.of_torchvision),
    "amdegroot": (losses.of_amdegroot, detectors.of_amdegroot),
    "vectorized": (losses.of_vectorized, None),
}
TASKS = ("forward", "forward + backward", "detect")


def measure(system: str, task: str, classes: int) -> int | None:
    """Bytes of one call in this process; None for a system that has no such task."""
    make_loss, make_detector = _MAKERS[system]
    calls = []
    for batch in (1, BATCH):
        case = make_case(batch, classes)
        if task == "detect":
            found = make_detector and make_detector(case)
            if not found:
                return None
            contender = detectors.detect_contenders(case, [make_detector])[0]
        else:
            backward = task != "forward"
            contender = losses.loss_contenders(case, [make_loss], backward=backward)[0]
        calls.append(contender.call)
    torch.set_num_threads(1)
    warm, call = calls
    warm()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _status("VmRSS")
    result = call()
    peak = _status("VmHWM") - before
    del result
    return peak


def _status(field: str) -> int:
    """Bytes of a field of this process's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(field)


def in_a_process(system: str, task: str, classes: int) -> int | None:
    """The same in a new process."""
    command = [sys.executable, "-m", "benchmarks.peak_memory", "--one", system, task, str(classes)]
    # Freed memory goes back to the system at once, or what the inputs left would hide the peak.
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    peak: int | None = json.loads(run.stdout)
    return peak


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table: one line a task, one column a system, in MB."""
    lines = [f"| B={BATCH} | " + " | ".join(SYSTEMS) + " |", "|---|" + "---:|" * len(SYSTEMS)]
    for title in dict.fromkeys(row["title"] for row in rows):
        peaks = {row["system"]: row["bytes"] for row in rows if row["title"] == title}
        cells = ["" if peaks[s] is None else f"{peaks[s] / 1e6:.1f} MB" for s in SYSTEMS]
        lines.append("| " + " | ".join([title, *cells]) + " |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes a group of bars a task, one bar a system, as SVG."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "ssd_fast", "font.size": 9})
    from matplotlib import pyplot as plt

    bars = [(row["title"], row["system"], row["bytes"]) for row in rows if row["bytes"] is not None]
    figure, axis = plt.subplots(figsize=(7.5, 0.22 * len(bars) + 0.8), layout="constrained")
    colors = [BASELINE_COLOR if system == SYSTEMS[0] else PEER_COLOR for _, system, _ in bars]
    axis.barh(range(len(bars)), [size / 1e6 for _, _, size in bars], color=colors, height=0.7)
    for position, (_, _, size) in enumerate(bars):
        axis.text(size / 1e6, position, f" {size / 1e6:.1f} MB", va="center", fontsize=8)
    names = [f"{title}: {system}" for title, system, _ in bars]
    axis.set_yticks(range(len(bars)), names)
    axis.invert_yaxis()
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_xlabel(f"MB at the peak beyond the inputs, B={BATCH}")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Measures everything, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--into", type=Path, help="a text with the markers for the table")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        system, task, classes = arguments.one
        print(json.dumps(measure(system, task, int(classes))))
        return
    rows = [
        {
            "title": f"{task}, C={classes}",
            "system": system,
            "bytes": in_a_process(system, task, classes),
        }
        for task in TASKS
        for classes in (21, 81)
        for system in SYSTEMS
    ]
    print(table(rows))
    if arguments.json:
        report = {"batch": BATCH, "torch": torch.__version__, "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
        draw(rows, arguments.json.with_suffix(".svg"))
    if arguments.into:
        shown = insert(table(rows), arguments.into.read_text(), MEMORY)
        arguments.into.write_text(shown)


if __name__ == "__main__":
    main()
