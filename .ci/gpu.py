# SPDX-License-Identifier: BSD-3-Clause
"""What `make gpu` does on a machine with a GPU: stages that do not cost each other their results.

    python .ci/gpu.py [--full] [--results DIR] [--dry-run]

Build, CUDA tests, compute-sanitizer, benchmarks; with --full the build and the whole table of
benchmarks, a part of nine minutes at a time. Every stage runs whatever became of those before, has
a limit of its own, and leaves its output in the results folder, finished or not: at most eight
files. Needs no network and nothing but the standard library; with pytest-xdist and pytest-timeout
a test that breaks the GPU's context or hangs costs no other test its verdict, without them those of
its file. Exit status: 75 there is more to measure (with --full whatever failed, so that the next
run goes on), 1 something failed, 0 all is well. make itself exits with 2 for both and prints
`Error 75` or `Error 1`.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIME_IS_UP = 75
TRY_AGAIN = 76  # a process that cannot go on, but another can take up what is left
SECONDS_LEFT = "{seconds}"  # among a command's arguments: what its stage has, less the last row
LAST_ROW = 20  # seconds
NO_TESTS = 5  # of pytest
LOG_BYTES = 12 * 2**20
PYTEST = ["-m", "pytest", "-v", "--durations=10", "--continue-on-collection-errors"]
PYTEST += ["-p", "no:cacheprovider", "-o", "faulthandler_timeout=60"]
# Of these folders every test is for the GPU; of the others, those that take it as their device.
# With how many processes pytest-xdist runs each.
ON_A_GPU = {"tests/cuda": 4, "tests/kernels": 4, "tests/ops": 6}
WITHOUT_A_GPU = ("tests/kernels/test_compiled.py", "tests/kernels/test_interpreted.py")
SMALL = "tests/cuda/small_kernels.py"
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
# A finding makes compute-sanitizer exit with this; a device it cannot check makes it say so.
FINDING = 99
NAMED = 12  # tests, or kernels, at most
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
    # A distribution's own Python (PEP 668) takes no package otherwise, and there torch may be.
    willing = {"PIP_BREAK_SYSTEM_PACKAGES": "1"}
    build = Stage("build", 120, [Command("pip install", install, "build.log", willing)])
    measure = [python, "-m", "benchmarks.gpu", "--report", str(results / report_name(full))]
    measure += ["--seconds", SECONDS_LEFT]
    if full:
        measure += ["--full"]
        return [build, Stage("benchmarks", 410, [Command("full", measure, "benchmarks.log")])]

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
    return [
        build,
        Stage("tests", 170, _checks(python)),
        Stage("sanitizers", 95, sanitize),
        Stage("benchmarks", 145, [Command("headline", measure, "benchmarks.log")]),
    ]


def _checks(python: str) -> list[Command]:
    """The tests, in processes beside each other.

    They compile six hundred forms of the kernels, more than half a second of a processor each: a
    process for each of three folders would not end within the stage. Where pytest-xdist is missing,
    each file of tests has one.
    """
    tests = [python, *PYTEST, *_isolation()]
    alone = {"OMP_NUM_THREADS": "1"}  # of so many processes none shall take all processors
    commands = []
    for folder, workers in ON_A_GPU.items():
        chosen = ["-k", "cuda"] if folder == "tests/ops" else []
        if find_spec("xdist") is not None:
            # Who ends early is replaced by another.
            spread = [f"--numprocesses={workers}", "--max-worker-restart=200"]
            skipped = [f"--ignore={name}" for name in WITHOUT_A_GPU]
            parts = {folder: [*spread, folder, *skipped, *chosen]}
        else:
            parts = {name: [name, *chosen] for name in _files(folder)}
        commands += [
            Command(name, [*tests, *arguments], "tests.log", alone)
            for name, arguments in parts.items()
        ]
    others = [f"--ignore={folder}" for folder in ON_A_GPU]
    return [
        *commands,
        Command("other tests", [*tests, "tests", *others, "-k", "cuda"], "tests.log", alone),
        Command("small kernels", [python, SMALL], "tests.log"),
    ]


def _files(folder: str) -> list[str]:
    """The files of a folder whose tests a GPU can run."""
    paths = sorted((ROOT / folder).glob("test_*.py"))
    if folder == "tests/ops":
        paths = [path for path in paths if re.search(r"\bdevice\b", path.read_text())]
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    return [name for name in names if name not in WITHOUT_A_GPU]


def _isolation() -> list[str]:
    """A test that hangs ends its process: no other way out of a call that waits for the GPU."""
    return (
        [] if find_spec("pytest_timeout") is None else ["--timeout=90", "--timeout-method=thread"]
    )


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
    deadline = started + stage.limit
    running: dict[str, subprocess.Popen[bytes]] = {}
    outcomes: dict[str, str] = {}
    logs = {command.name: scratch / f"{i}.log" for i, command in enumerate(stage.commands)}
    for command in stage.commands:
        try:
            running[command.name] = _start(command, logs[command.name], deadline)
        except OSError as error:
            outcomes[command.name] = f"did not run: {error.strerror}: {command.arguments[0]}"
            with logs[command.name].open("a") as log:
                log.write(outcomes[command.name])
    for command in stage.commands:
        if command.name not in running:
            continue
        try:
            code = running[command.name].wait(max(0.0, deadline - time.monotonic()))
            while code == TRY_AGAIN and time.monotonic() < deadline - LAST_ROW:
                running[command.name] = _start(command, logs[command.name], deadline)
                code = running[command.name].wait(max(0.0, deadline - time.monotonic()))
            outcome = outcome_of(code, logs[command.name].read_text(errors="replace"))
        except subprocess.TimeoutExpired:
            _interrupt(list(running.values()))
            output = logs[command.name].read_text(errors="replace")
            outcome = f"FAILED: stopped after {stage.limit} s{_tests_in(output)}"
        _end(running.pop(command.name))
        outcomes[command.name] = f"{outcome} ({time.monotonic() - started:.0f} s)"
    for path in {command.log for command in stage.commands}:
        parts = [logs[command.name] for command in stage.commands if command.log == path]
        limit = LOG_BYTES // max(5, len(parts))
        (results / path).write_bytes(b"\n".join(_shortened(x.read_bytes(), limit) for x in parts))
    return outcomes


def _start(command: Command, log_path: Path, deadline: float) -> "subprocess.Popen[bytes]":
    """Starts a command, whose output goes behind what its log holds."""
    seconds = str(max(0, int(deadline - time.monotonic()) - LAST_ROW))
    arguments = [seconds if a == SECONDS_LEFT else a for a in command.arguments]
    with log_path.open("ab") as log:
        log.write(f"$ {' '.join(arguments)}\n".encode())
        log.flush()
        return subprocess.Popen(
            arguments,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **command.environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def outcome_of(code: int, output: str) -> str:
    """What an exit status means."""
    if code == 0:
        return f"ok{_tests_in(output)}"
    if code == NO_TESTS:
        return "ok: no test for a GPU there"
    if code in (TIME_IS_UP, TRY_AGAIN):
        return "more to measure"
    if code == FINDING:
        return f"FAILED: it found errors{_kernels_in(output)}"
    if any(reason in output for reason in CANNOT_RUN):
        return "did not run: this device cannot be checked"
    return f"FAILED: exit status {code}{_tests_in(output)}"


def _tests_in(output: str) -> str:
    """What pytest has said of its tests so far: how many, and which failed."""
    verdicts: dict[str, str] = {}
    for line in output.splitlines():
        beside = re.match(r"\[gw\d+\] \[ *\d+%\] ([A-Z]+) (.+?) *$", line)
        alone = re.match(r"(tests/.+?) (PASSED|FAILED|SKIPPED|ERROR|XFAIL) .*\[ *\d+%\]$", line)
        if beside:
            verdicts[beside[2]] = beside[1]
        elif alone:
            verdicts[alone[1]] = alone[2]
    counts = sorted(Counter(verdicts.values()).items())
    failed = [name for name, verdict in verdicts.items() if verdict in ("FAILED", "ERROR")]
    said = ", ".join(f"{count} {verdict.lower()}" for verdict, count in counts)
    listed = "".join(f"\n        {name}" for name in failed[:NAMED])
    more = f"\n        and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
    return f": {said}{listed}{more}" if said else ""


def _kernels_in(output: str) -> str:
    """The kernels in which compute-sanitizer found errors: torch's, too, are looked at."""
    counts = Counter(re.findall(r"\bat (?:\w+ )*?([a-zA-Z_][\w:]*)[(<+]", output))
    return "".join(f"\n        {name}, {count} times" for name, count in counts.most_common(NAMED))


def _interrupt(processes: "list[subprocess.Popen[bytes]]") -> None:
    """Asks processes to end, as Ctrl-C would: pytest then says what failed, and why."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    while any(process.poll() is None for process in processes) and time.monotonic() < asked + 8:
        time.sleep(0.1)


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


def _shortened(log: bytes, limit: int) -> bytes:
    """The beginning and the end of a log that is too long."""
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
