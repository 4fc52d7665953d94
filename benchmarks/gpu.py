# SPDX-License-Identifier: BSD-3-Clause
"""Times the operators on a GPU beside the naive designs: for `make gpu` and `make gpu-full`.

    python -m benchmarks.gpu [--full] [--report FILE] [--seconds LIMIT] [--device cpu]

The report is written after every row. A second run with the same device and commit goes on where
the first one stopped, so a limit of time costs nothing. Results are checked against the reference
before they are timed, losses where images hold 1 to 8 objects; who fails gets a row that says so
and, like who is not installed, is not tried again. A row that hangs, or breaks the device for this
process, ends the process. Exit status: 76 for that, and 75 where time is up: rows are left, run it
again; then 1 where any row failed, else 0.
"""

import argparse
import contextlib
import faulthandler
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import ssd_fast
from benchmarks import gpu_rows
from benchmarks.device_timing import Times, copy_bandwidth
from benchmarks.peers.torchvision_installed import NotInstalledError

TIME_IS_UP = 75  # EX_TEMPFAIL
TRY_AGAIN = 76
HEADLINE = {
    "batches": (32, 128, 8),
    "classes": (21, 81),
    "objects": ("1-8",),
    "boxes": (200, 1000, 5000, 20_000, 100_000),
}
FULL = {
    "batches": (32, 128, 8, 1),
    "classes": (21, 81, 91),
    "objects": ("1-8", "8-40", "100", "none"),
    "boxes": (200, 1000, 5000, 20_000, 100_000),
}
REHEARSAL = {"batches": (1,), "classes": (3,), "objects": ("1-8",), "boxes": (200,)}


@dataclass(frozen=True)
class Row:
    """One thing to measure.

    Args:
        group: what is compared.
        name: who does it.
        measure: checks and times it.
        bytes: that a perfect implementation would move.
        images: that a call works on, where their number is what is asked for.
    """

    group: str
    name: str
    measure: Callable[[], Times]
    bytes: int | None = None
    images: int | None = None

    @property
    def key(self) -> str:
        """Its name in the report."""
        return f"{self.group} / {self.name}"


class Report:
    """Rows on disk, complete after every one.

    Args:
        path: of the JSON.
        facts: of this run; rows of another device, commit, build or torchvision are forgotten.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {**facts, "rows": {}}
        if path.exists():
            earlier = json.loads(path.read_text())
            same = ("device", "commit", "source_hash", "torch", "torchvision")
            if all(earlier.get(name) == facts[name] for name in same):
                self.content = {**earlier, **facts, "rows": earlier.get("rows", {})}

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """What was measured, by key."""
        rows: dict[str, dict[str, Any]] = self.content["rows"]
        return rows

    def add(self, row: Row, result: dict[str, Any]) -> None:
        """Adds a row and writes the report, whole or not at all."""
        known = {"group": row.group, "name": row.name, "bytes": row.bytes, "images": row.images}
        self.rows[row.key] = {**known, **result}
        self.write()

    def write(self) -> None:
        """Writes the report."""
        self.content["summary"] = summary(self.content)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_suffix(".part")
        unfinished.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(unfinished, self.path)


def facts_of(device: torch.device) -> dict[str, Any]:
    """What times depend on."""
    gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if gpu else platform.processor() or "cpu",
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "commit": os.environ.get("COMMIT") or _output("git", "rev-parse", "HEAD") or "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "torchvision": _version("torchvision"),
        "ssd_fast": ssd_fast.__version__,
        "source_hash": ssd_fast._C.source_hash,
        "cuda_architectures": ssd_fast._C.cuda_architectures,
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def _output(*command: str) -> str:
    """What a command prints, or nothing."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip() if run.returncode == 0 else ""


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def rows_of(table: dict[str, Any], device: torch.device, *, full: bool) -> Iterator[Row]:
    """Everything to measure, the most wanted first; inputs are made when a row is measured."""
    for batch in table["batches"]:
        # Who works on the same inputs follow each other: making them takes seconds.
        for classes in table["classes"]:
            for objects in table["objects"]:
                for name in gpu_rows.loss_names(full, batch, classes, objects):
                    yield gpu_rows.loss_row(Row, name, batch, classes, objects, device)
                if objects == "1-8":
                    for name in gpu_rows.DETECTORS:
                        yield gpu_rows.detect_row(Row, name, batch, classes, "trained", device)
            for name in gpu_rows.DETECTORS:
                # Torchvision takes seconds for the largest batch.
                if full or batch <= 32 or name != "torchvision":
                    yield gpu_rows.detect_row(Row, name, batch, classes, "flat", device)
        if batch == table["batches"][0]:
            for count in table["boxes"]:
                for crowd in gpu_rows.crowds(full):
                    for name in gpu_rows.SUPPRESSORS:
                        yield gpu_rows.nms_row(Row, name, count, crowd, device)
            if device.type == "cuda" and not full:
                for name in gpu_rows.NETWORKS:
                    yield gpu_rows.network_row(Row, name, device)
    for classes in table["classes"]:
        for name in gpu_rows.FOCAL_LOSSES:
            yield gpu_rows.focal_row(Row, name, table["batches"][0], classes, device)
    if full:
        for name in gpu_rows.NETWORKS:
            yield gpu_rows.network_row(Row, name, device, compiled=True)
    elif device.type == "cuda":
        yield gpu_rows.loss_row(Row, gpu_rows.COMPILED, 32, 21, "1-8", device)


def run(rows: Iterator[Row], report: Report, deadline: float, row_limit: float = 120) -> int:
    """Measures what the report lacks until the time is up; returns the exit status."""
    failed = left = 0
    for row in rows:
        if row.key in report.rows:
            failed += "error" in report.rows[row.key]
            continue
        if time.monotonic() > deadline:
            left += 1
            continue
        try:
            with _watched(row, report, row_limit):
                result = row.measure().row()
            print(f"{row.key}: {result['median'] * 1e6:.1f} us", flush=True)
        except NotInstalledError as error:
            result = {"skipped": str(error)}
            print(f"{row.key}: skipped, {error}", flush=True)
        except Exception as error:  # a peer, or a kernel, that fails must not cost the other rows
            result = {"error": f"{type(error).__name__}: {error}"[:2000]}
            failed += 1
            print(f"{row.key}: {result['error'][:300]}", flush=True)
        report.add(row, result)
        if "error" in result and not _device_works():
            print("the device is broken for this process, run it again for the rows that are left")
            return TRY_AGAIN
    print(f"{left} rows are left, run it again to measure them" if left else "nothing is left")
    return TIME_IS_UP if left else 1 if failed else 0


@contextlib.contextmanager
def _watched(row: Row, report: Report, limit: float) -> Iterator[None]:
    """Ends the process, and says so in the report, where a row takes too long.

    Nothing else gets out of a call that waits for a kernel without end.
    """

    def give_up() -> None:
        report.add(row, {"error": f"TimeoutError: not measured within {limit:.0f} s"})
        print(f"{row.key}: not measured within {limit:.0f} s", flush=True)
        faulthandler.dump_traceback(sys.stdout, all_threads=True)
        os._exit(TRY_AGAIN)

    timer = threading.Timer(limit, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _device_works() -> bool:
    """Whether this process can go on: after an illegal access every later call fails, too."""
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def summary(content: dict[str, Any]) -> list[str]:
    """A short table: ours, and how many times ours the others take."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for row in content["rows"].values():
        groups.setdefault(row["group"], {})[row["name"]] = row
    bandwidth = content.get("copy_bandwidth")
    lines = [f"{content['device']}, driver {content['driver']}, torch {content['torch']}"]
    lines += [f"copies move {bandwidth / 1e12:.2f} TB/s"] if bandwidth else []
    for group, rows in groups.items():
        cells = [
            f"{name} {'skipped' if 'skipped' in row else 'FAILED'}"
            if "median" not in row
            else _images_cell(name, row, rows)
            if group.startswith("SSD300")
            else _cell(name, row, rows.get("ssd_fast", {}), bandwidth)
            for name, row in rows.items()
        ]
        lines.append(f"{group}: {', '.join(cells)}")
    return lines


def _cell(name: str, row: dict[str, Any], ours: dict[str, Any], bandwidth: float | None) -> str:
    """The time of a row, or how many times ours; likewise of the memory beyond the inputs."""
    memory, our_memory = row["peak_bytes"], ours.get("peak_bytes")
    if name.startswith("ssd_fast") or "median" not in ours:
        cell = f"{name} {row['median'] * 1e6:.0f} us"
        if "graph" not in name:
            return f"{cell} {memory / 1e6:.1f} MB" if memory else cell
        if row["bytes"] and bandwidth:
            cell += f" = {row['median'] * bandwidth / row['bytes']:.2f} x the bytes' time"
        return cell
    cell = f"{name} {row['median'] / ours['median']:.1f}x"
    return f"{cell} ({memory / our_memory:.1f}x memory)" if memory and our_memory else cell


def _images_cell(name: str, row: dict[str, Any], rows: dict[str, dict[str, Any]]) -> str:
    """Images a second, and the share of the time that is not the network's."""
    cell = f"{name} {row['images'] / row['median']:.0f} images/s"
    alone = rows.get(gpu_rows.ALONE, {}).get("median")
    if alone is None or name == gpu_rows.ALONE:
        return cell
    return f"{cell} ({100 * (1 - alone / row['median']):.1f} % not the network's)"


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--full", action="store_true", help="the whole table")
    parser.add_argument("--report", type=Path, default=Path("benchmarks/results/gpu.json"))
    parser.add_argument("--seconds", type=float, default=150, help="start no row after that")
    parser.add_argument("--device", default="cuda", help="cpu: a rehearsal on tiny inputs")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + options.seconds
    device = torch.device(options.device)
    table = FULL if options.full else HEADLINE
    if device.type != "cuda":
        table = REHEARSAL
    elif not torch.cuda.is_available():
        parser.exit(2, f"no GPU: torch {torch.__version__} finds none\n")
    report = Report(options.report, facts_of(device))
    report.content.setdefault("copy_bandwidth", copy_bandwidth(device))
    report.write()
    with torch.random.fork_rng(devices=[]):
        rows = rows_of(table, device, full=options.full)
        status = run(rows, report, deadline, 120 if options.full else 45)
    print(*summary(report.content), sep="\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
