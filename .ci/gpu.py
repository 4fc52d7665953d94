# SPDX-License-Identifier: BSD-3-Clause
"""What `make gpu` does on a machine with a GPU: stages that do not cost each other their results.

    python .ci/gpu.py [--full] [--results DIR] [--dry-run]

Build, CUDA tests, compute-sanitizer, benchmarks; with --full the build and the whole table of
benchmarks, a part of nine minutes at a time. Every stage runs whatever became of those before, has
a limit of its own, and leaves its output in the results folder, finished or not: at most eight
files. Needs no network and nothing but the standard library. Exit status: 75 there is more to
measure (with --full whatever failed, so that the next run goes on), 1 something failed, 0 all is
well. make itself exits with 2 for both and prints `Error 75` or `Error 1`.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIME_IS_UP = 75
NO_TESTS = 5  # of pytest
LOG_BYTES = 12 * 2**20
PYTEST = ["-m", "pytest", "-v", "--durations=10", "--continue-on-collection-errors"]
PYTEST += ["-p", "no:cacheprovider", "-o", "faulthandler_timeout=60"]
# Of these folders every test is for the GPU; of the others, those that take it as their device.
ON_A_GPU = ["tests/cuda", "tests/kernels", "tests/ops"]
SMALL = "tests/cuda/small_kernels.py"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
# A finding makes compute-sanitizer exit with this; a device it cannot check makes it say so.
FINDING = 99
CANNOT_RUN = ("Device not supported", "not supported on this device", "Unable to initialize")


@dataclass(frozen=True)
class Command:
    """A process of a stage.

    Args:
        name: of it in the report.
        arguments: of the process.
        log: the file that gets its output; processes of a stage may share one.
        environment: variables set for it alone.
    """

    name: str
    arguments: list[str]
    log: str
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """Processes that run beside each other, at most `limit` seconds."""

    name: str
    limit: int
    commands: list[Command]


def plan(results: Path, *, full: bool = False, python: str = sys.executable) -> list[Stage]:
    """The stages, in order."""
    install = [python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-v", "."]
    build = Stage("build", 120, [Command("pip install", install, "build.log")])
    measure = [python, "-m", "benchmarks.gpu", "--report", str(results / report_name(full))]
    if full:
        measure += ["--full", "--seconds", "370"]
        return [build, Stage("benchmarks", 410, [Command("full", measure, "benchmarks.log")])]

    tests = [python, *PYTEST]
    skip = [f"--ignore=tests/kernels/test_{name}.py" for name in ("compiled", "interpreted")]
    others = [f"--ignore={folder}" for folder in ON_A_GPU]
    log = "tests.log"
    checks = [
        Command("tests/cuda", [*tests, "tests/cuda"], log),
        Command("tests/kernels", [*tests, "tests/kernels", *skip], log),
        Command("tests/ops", [*tests, "tests/ops", "-k", "cuda"], log),
        Command("other tests", [*tests, "tests", *others, "-k", "cuda"], log),
        Command("small kernels", [python, SMALL], log),
    ]
    sanitizer = shutil.which("compute-sanitizer", path=_cuda_path()) or "compute-sanitizer"
    # Without torch's cache every tensor is an allocation, whose bounds and first reads are checked.
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    sanitize = [
        Command(
            tool,
            [sanitizer, f"--tool={tool}", f"--error-exitcode={FINDING}", python, SMALL],
            f"{tool}.log",
            alone,
        )
        for tool in SANITIZERS
    ]
    measure += ["--seconds", "120"]
    return [
        build,
        Stage("tests", 165, checks),
        Stage("sanitizers", 100, sanitize),
        Stage("benchmarks", 145, [Command("headline", measure, "benchmarks.log")]),
    ]


def report_name(full: bool) -> str:
    """The JSON of the results."""
    return "gpu-full.json" if full else "gpu.json"


def _cuda_path() -> str:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    folders = [os.environ.get("PATH", ""), f"{home}/bin", f"{home}/compute-sanitizer"]
    return os.pathsep.join(folders)


def run_stage(stage: Stage, results: Path, scratch: Path) -> dict[str, str]:
    """Runs the commands of a stage beside each other; returns what became of each."""
    started = time.monotonic()
    running: dict[str, subprocess.Popen[bytes]] = {}
    outcomes: dict[str, str] = {}
    logs = {command.name: scratch / f"{i}.log" for i, command in enumerate(stage.commands)}
    for command in stage.commands:
        with logs[command.name].open("wb") as log:
            log.write(f"$ {' '.join(command.arguments)}\n".encode())
            log.flush()
            environment = {**os.environ, "PYTHONUNBUFFERED": "1", **command.environment}
            try:
                running[command.name] = subprocess.Popen(
                    command.arguments,
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                outcomes[command.name] = f"did not run: {error.strerror}: {command.arguments[0]}"
                log.write(outcomes[command.name].encode())
    for name, process in running.items():
        try:
            code = process.wait(max(0.0, started + stage.limit - time.monotonic()))
            outcome = outcome_of(code, logs[name].read_text(errors="replace"))
        except subprocess.TimeoutExpired:
            outcome = f"FAILED: stopped after {stage.limit} s"
        _end(process)
        outcomes[name] = f"{outcome} ({time.monotonic() - started:.0f} s)"
    for path in {command.log for command in stage.commands}:
        parts = [logs[command.name] for command in stage.commands if command.log == path]
        (results / path).write_bytes(b"\n".join(_shortened(part.read_bytes()) for part in parts))
    return outcomes


def outcome_of(code: int, output: str) -> str:
    """What an exit status means."""
    if code == 0:
        return "ok"
    if code == NO_TESTS:
        return "ok: no test for a GPU there"
    if code == TIME_IS_UP:
        return "more to measure"
    if code == FINDING:
        return "FAILED: it found errors"
    if any(reason in output for reason in CANNOT_RUN):
        return "did not run: this device cannot be checked"
    return f"FAILED: exit status {code}"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process and those it started; nothing where they have ended."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(5)
        except (ProcessLookupError, PermissionError):
            return
        except subprocess.TimeoutExpired:
            continue


def _shortened(log: bytes) -> bytes:
    """The beginning and the end of a log that is too long."""
    limit = LOG_BYTES // 5
    if len(log) <= limit:
        return log
    return log[: limit // 2] + b"\n[...]\n" + log[-limit // 2 :]


def write_outcomes(report: Path, outcomes: dict[str, dict[str, str]]) -> list[str]:
    """Adds what became of the stages to the report; returns the report's table."""
    content = json.loads(report.read_text()) if report.exists() else {}
    content["commit"] = os.environ.get("COMMIT") or content.get("commit", "unknown")
    content["stages"] = outcomes
    report.write_text(json.dumps(content, indent=1) + "\n")
    table: list[str] = content.get("summary", ["nothing was measured"])
    return table


def main(arguments: "list[str] | None" = None) -> int:
    """Runs the stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the whole table of benchmarks")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and stop")
    options = parser.parse_args(arguments)
    results = options.results.resolve()
    stages = plan(results, full=options.full)
    if options.dry_run:
        for stage in stages:
            print(f"{stage.name}, at most {stage.limit} s, into {results}:")
            for command in stage.commands:
                print(f"  {command.log}: {' '.join(command.arguments)}")
        return 0
    results.mkdir(parents=True, exist_ok=True)
    if not options.full:  # what an earlier run measured is not this run's
        (results / report_name(full=False)).unlink(missing_ok=True)
    outcomes: dict[str, dict[str, str]] = {}
    for stage in stages:
        print(f"=== {stage.name}, at most {stage.limit} s", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            outcomes[stage.name] = run_stage(stage, results, Path(scratch))
        for name, outcome in outcomes[stage.name].items():
            print(f"    {name}: {outcome}", flush=True)
        table = write_outcomes(results / report_name(options.full), outcomes)
    print(f"=== results in {results}", *table, sep="\n")
    status = status_of(outcomes, full=options.full)
    if options.full:
        print("=== more to measure: run it again" if status == TIME_IS_UP else "=== complete")
    return status


def status_of(outcomes: dict[str, dict[str, str]], *, full: bool) -> int:
    """The exit status: only with --full does another run take up what is left."""
    said = [outcome for stage in outcomes.values() for outcome in stage.values()]
    more = any(outcome.startswith("more") for outcome in said)
    if any(outcome.startswith("FAILED") for outcome in said) and not (full and more):
        return 1
    return TIME_IS_UP if more else 0


if __name__ == "__main__":
    sys.exit(main())
