# SPDX-License-Identifier: BSD-3-Clause
"""`make gpu` rehearsed without one: its plan, its stages, its benchmarks on tiny inputs."""

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import device_timing, gpu
from benchmarks.peers.torchvision_installed import NotInstalledError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def driver():
    """.ci/gpu.py as a module."""
    spec = importlib.util.spec_from_file_location("ssd_fast_ci_gpu", ROOT / ".ci/gpu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("full", [False, True])
def test_the_plan_fits(driver, tmp_path, full):
    """Nine minutes, eight files, and nothing that is not there."""
    stages = driver.plan(tmp_path, full=full)
    assert sum(stage.limit for stage in stages) <= 540 - 10
    commands = [command for stage in stages for command in stage.commands]
    assert len({command.log for command in commands}) + 1 <= 8
    assert 5 * driver.LOG_BYTES // 5 < 16 * 2**20
    for argument in (a for command in commands for a in command.arguments):
        path = re.sub(r"^--ignore=", "", argument)
        if path.startswith("tests/"):
            assert (ROOT / path).exists(), argument
        if path.startswith("benchmarks."):
            assert importlib.util.find_spec(path) is not None
    assert [driver.SECONDS_LEFT in command.arguments for command in commands].count(True) == 1
    assert (driver.TIME_IS_UP, driver.TRY_AGAIN) == (gpu.TIME_IS_UP, gpu.TRY_AGAIN)


@pytest.mark.parametrize("xdist", [True, False])
def test_every_gpu_test_is_planned(driver, tmp_path, monkeypatch, xdist):
    """A folder that tests only GPUs runs whole; elsewhere `-k cuda` chooses.

    The kernels' compilation takes more than one process a folder: workers, or one for each file.
    """
    monkeypatch.setattr(driver, "find_spec", lambda name: driver if xdist else None)
    commands = [command for stage in driver.plan(tmp_path) for command in stage.commands]
    planned = [set(command.arguments) for command in commands]
    for folder in driver.ON_A_GPU:
        assert any({f"--ignore={folder}", "tests", "cuda"} <= arguments for arguments in planned)
        assert any(folder in arguments for arguments in planned) == xdist
        for path in (ROOT / folder).glob("test_*.py"):
            name = path.relative_to(ROOT).as_posix()
            # An operator's tests run on a GPU where they ask for a device.
            needed = folder != "tests/ops" or "(device" in path.read_text()
            if not xdist and needed and name not in driver.WITHOUT_A_GPU:
                assert any(name in arguments for arguments in planned), name
    assert len({command.name for command in commands}) == len(commands)


def test_make_calls_the_driver():
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^gpu: seen-gpu.*\n\t\$\(PYTHON\) \.ci/gpu\.py --results", makefile, re.M)
    assert re.search(r"^gpu-full: seen-gpu.*\n\t\$\(PYTHON\) \.ci/gpu\.py --full", makefile, re.M)


def test_a_stage_loses_nothing(driver, tmp_path, monkeypatch):
    """What fails, hangs, gives up or is not there is said, and costs the others nothing."""
    python = sys.executable
    monkeypatch.setattr(driver, "LAST_ROW", 0)
    gives_up = "import os, sys; print('seconds', sys.argv[2]); path = sys.argv[1]; "
    gives_up += f"exit(0) if os.path.exists(path) else open(path, 'w'); exit({driver.TRY_AGAIN})"
    arguments = [python, "-c", gives_up, str(tmp_path / "flag"), driver.SECONDS_LEFT]
    hang = "import subprocess, sys, time; print('begun', flush=True);"
    hang += (
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); time.sleep(60)"
    )
    commands = [
        driver.Command("giving up", arguments, "c.log"),
        driver.Command("good", [python, "-c", "print('fine')"], "a.log"),
        driver.Command("bad", [python, "-c", "raise SystemExit('broken')"], "a.log"),
        driver.Command("hanging", [python, "-c", hang], "b.log"),
        driver.Command("missing", ["no-such-program"], "b.log"),
        driver.Command("finding", [python, "-c", f"exit({driver.FINDING})"], "c.log"),
        driver.Command(
            "refused", [python, "-c", "print('= Error: Device not supported'); exit(1)"], "c.log"
        ),
    ]
    scratch, results = tmp_path / "scratch", tmp_path / "results"
    scratch.mkdir()
    results.mkdir()
    started = time.monotonic()
    outcomes = driver.run_stage(driver.Stage("stage", 3, commands), results, scratch)
    assert time.monotonic() - started < 30
    said = {name: re.sub(r" \(\d+ s\)$", "", text) for name, text in outcomes.items()}
    assert said == {
        "good": "ok",
        "bad": "FAILED: exit status 1",
        "hanging": "FAILED: stopped after 3 s",
        "missing": "did not run: No such file or directory: no-such-program",
        "finding": "FAILED: it found errors",
        "giving up": "ok",
        "refused": "did not run: this device cannot be checked",
    }
    assert sorted(path.name for path in results.iterdir()) == ["a.log", "b.log", "c.log"]
    log = (results / "a.log").read_text()
    assert "fine" in log
    assert "broken" in log
    assert "begun" in (results / "b.log").read_text()
    assert len(re.findall(r"^seconds [0-3]$", (results / "c.log").read_text(), re.M)) == 2


def test_what_failed_is_named(driver):
    """Tests, also of a run that was stopped, and the kernels in which an error was found."""
    alone = "tests/a.py::test_x[1 b] PASSED       [ 50%]\ntests/a.py::test_y FAILED      [100%]\n"
    beside = (
        "[gw0] [ 50%] PASSED tests/a.py::test_x[1 b] \n[gw1] [ 99%] FAILED tests/a.py::test_y\n"
    )
    beside += "[gw1] [ 99%] FAILED tests/a.py::test_y \n"  # again, as its process ended
    for output in (alone, beside):
        expected = "FAILED: exit status 1: 1 failed, 1 passed\n        tests/a.py::test_y"
        assert driver.outcome_of(1, output + "FAILED tests/a.py::test_y - assert 0") == expected
    found = """========= Invalid __global__ read of size 4 bytes
=========     at _match_kernel+0x1f0 in match.py:190
=========     at void at::native::sort<float>(int)+0x30
========= Error: Race reported between Write access at _match_kernel+0x10 in match.py:3
=========     Host Frame: launch [0x123] in libcuda.so"""
    assert driver.outcome_of(driver.FINDING, found) == (
        "FAILED: it found errors\n        _match_kernel, 2 times\n        at::native::sort, 1 times"
    )


def test_long_logs_keep_both_ends(driver):
    log = b"first" + bytes(driver.LOG_BYTES) + b"last"
    short = driver._shortened(log, driver.LOG_BYTES // 5)
    assert len(short) < driver.LOG_BYTES // 5 + 100
    assert short.startswith(b"first")
    assert short.endswith(b"last")


def test_the_benchmarks_resume(tmp_path, monkeypatch, capsys):
    """On the CPU, with tiny inputs: every row is measured once, whatever stops a run."""
    monkeypatch.setattr(device_timing, "MANY", 2)
    monkeypatch.setattr(device_timing, "CACHE_BYTES", 0)
    monkeypatch.setattr(gpu, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setenv("COMMIT", "abc")
    report = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--report", str(report)]
    assert gpu.main([*arguments, "--seconds", "-1"]) == gpu.TIME_IS_UP
    assert json.loads(report.read_text())["rows"] == {}
    status = gpu.main(arguments)
    content = json.loads(report.read_text())
    assert content["commit"] == "abc"
    rows = content["rows"]
    ours = [row for row in rows.values() if row["name"].startswith("ssd_fast")]
    assert len(ours) == 12
    assert all(row["median"] > 0 for row in ours)
    assert status == 0
    assert [row["error"] for row in rows.values() if "error" in row] == []
    assert {row["name"] for row in rows.values() if "skipped" in row} <= {"torchvision"}
    for row in rows.values():
        if "median" in row:
            row["median"] = 123.0
    report.write_text(json.dumps(content))
    gpu.main(arguments)
    again = json.loads(report.read_text())["rows"]
    assert {row["median"] for row in again.values() if "median" in row} == {123.0}
    assert "loss and gradients, B=1" in capsys.readouterr().out
    monkeypatch.setenv("COMMIT", "def")
    assert gpu.main([*arguments, "--seconds", "-1"]) == gpu.TIME_IS_UP
    assert json.loads(report.read_text())["rows"] == {}
    assert os.listdir(tmp_path) == ["gpu.json"]


def test_the_whole_table_is_planned():
    """Every size, and who is compared there; the headline rows are the first of it."""
    device = gpu.torch.device("cuda")
    full = [row.key for row in gpu.rows_of(gpu.FULL, device, full=True)]
    headline = [row.key for row in gpu.rows_of(gpu.HEADLINE, device, full=False)]
    assert len(set(full)) == len(full)
    assert len(set(headline)) == len(headline)
    peers = ("torchvision", "amdegroot", "nvidia", "sgrvinod")
    for batch, classes in itertools.product((1, 8, 32, 128), (21, 81, 91)):
        size = f"B={batch}, C={classes}"
        for objects in ("1-8", "8-40", "100", "none"):
            names = ("ssd_fast", gpu.gpu_rows.GRAPH, *peers[: 1 if objects == "none" else None])
            keys = {f"loss and gradients, {size}, {objects} objects / {name}" for name in names}
            assert keys <= set(full)
            assert (objects == "1-8" and batch > 1 and classes != 91) == (keys <= set(headline))
        for scores in ("trained", "flat"):
            ours = f"detect, {size}, {scores} scores / ssd_fast"
            assert {ours, ours.replace("ssd_fast", "torchvision")} <= set(full)
            assert (batch > 1 and classes != 91) == (ours in headline)
    for count in (200, 1000, 5000, 20_000, 100_000):
        for crowd in ("random", "random, 80 classes"):
            keys = {f"nms, N={count}, {crowd} / {name}" for name in ("ssd_fast", "torchvision")}
            assert keys <= set(full) & set(headline)
    compiled = gpu.gpu_rows.COMPILED
    assert f"loss and gradients, B=32, C=21, 1-8 objects / {compiled}" in set(full) & set(headline)
    networks = [key for key in full if key.startswith("SSD300-VGG16")]
    assert len(networks) == 6
    assert all("compiled, bfloat16, B=32" in key for key in networks)


def test_the_table_says_how_much_less():
    def row(group, name, median, peak=None, size=None, images=None):
        row = {"group": group, "name": name, "bytes": size, "images": images}
        return {**row, "median": median, "peak_bytes": peak}

    rows = [
        row("loss", "ssd_fast", 1e-4, 2e6),
        row("loss", gpu.gpu_rows.GRAPH, 5e-5, 2e6, 100e6),
        row("loss", "torchvision", 5e-3, 20e6),
        row("SSD300-VGG16, training", gpu.gpu_rows.ALONE, 0.095, images=32),
        row("SSD300-VGG16, training", "ssd_fast", 0.1, images=32),
    ]
    facts = {"device": "GPU", "driver": "1", "torch": "2", "copy_bandwidth": 3e12}
    table = gpu.summary({**facts, "rows": {str(i): row for i, row in enumerate(rows)}})
    assert table[2:] == [
        "loss: ssd_fast 100 us 2.0 MB, ssd_fast in a CUDA graph 50 us = 1.50 x the bytes' time,"
        " torchvision 50.0x (10.0x memory)",
        "SSD300-VGG16, training: the network alone 337 images/s,"
        " ssd_fast 320 images/s (5.0 % not the network's)",
    ]


def test_failing_rows_hold_up_nothing(tmp_path, monkeypatch, capsys):
    """They are tried once, and count when nothing is left; who is not installed never does."""
    tried = []
    times = device_timing.Times(1.0, 1.0, 1.0, 1, None)

    def row(name, outcome=times):
        def measure():
            tried.append(name)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return gpu.Row("group", name, measure)

    facts = dict.fromkeys(("device", "driver", "commit", "source_hash", "torch", "torchvision"), "")
    path = tmp_path / "gpu.json"
    absent = row("absent", NotInstalledError("peer is not installed"))
    broken = row("broken", ValueError("it broke"))
    never, long = -1.0, time.monotonic() + 60

    def run(rows, deadline):
        return gpu.run(iter(rows), gpu.Report(path, facts), deadline)

    assert run([absent, row("good")], long) == 0
    assert run([absent, row("good"), broken], long) == 1
    assert run([absent, row("good"), broken, row("late")], never) == gpu.TIME_IS_UP
    assert run([absent, row("good"), broken, row("late")], long) == 1
    assert tried == ["absent", "good", "broken", "late"]
    content = json.loads(path.read_text())
    assert content["rows"]["group / absent"]["skipped"] == "peer is not installed"
    assert content["rows"]["group / broken"]["error"] == "ValueError: it broke"
    assert "absent skipped" in content["summary"][-1]
    assert "broken FAILED" in content["summary"][-1]

    monkeypatch.setattr(gpu, "_device_works", lambda: False)  # as after an illegal access
    rows = [row("fatal", RuntimeError("illegal access")), row("after")]
    assert run(rows, long) == gpu.TRY_AGAIN
    assert "run it again" in capsys.readouterr().out
    assert run(rows, long) == 1
    assert tried[4:] == ["fatal", "after"]


def test_a_row_that_hangs_ends_the_process(tmp_path):
    """It is written down, so that the next process goes on behind it."""
    path = tmp_path / "gpu.json"
    script = f"""
import time
from pathlib import Path
from benchmarks import gpu
facts = dict.fromkeys(("device", "driver", "commit", "source_hash", "torch", "torchvision"), "")
times = gpu.Times(1.0, 1.0, 1.0, 1, None)
rows = [gpu.Row("group", "hangs", lambda: time.sleep(60)), gpu.Row("group", "good", lambda: times)]
report = gpu.Report(Path({str(path)!r}), facts)
raise SystemExit(gpu.run(iter(rows), report, time.monotonic() + 60, row_limit=0.1))
"""
    for status in (gpu.TRY_AGAIN, 1):
        run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60, check=False)
        assert run.returncode == status
    rows = json.loads(path.read_text())["rows"]
    assert rows["group / hangs"]["error"] == "TimeoutError: not measured within 0 s"
    assert rows["group / good"]["median"] == 1.0


@pytest.mark.parametrize(
    ("said", "full", "status"),
    [
        (["ok", "ok"], True, 0),
        (["ok", "FAILED: exit status 1"], True, 1),
        (["ok", "more to measure"], True, 75),
        (["FAILED: exit status 1", "more to measure"], True, 75),
        (["FAILED: exit status 1", "more to measure"], False, 1),  # nobody goes on with that one
        (["ok", "more to measure"], False, 75),
    ],
)
def test_the_exit_status(driver, said, full, status):
    outcomes = {str(i): {"command": outcome} for i, outcome in enumerate(said)}
    assert driver.status_of(outcomes, full=full) == status


def test_absent_torchvision_is_skipped(tmp_path, monkeypatch):
    """Its rows say so wherever it is called itself."""
    device = gpu.torch.device("cpu")
    monkeypatch.setattr(gpu.gpu_rows, "installed_torchvision", lambda: None)
    rows = [
        gpu.gpu_rows.nms_row(gpu.Row, "torchvision", 200, "random", device),
        gpu.gpu_rows.detect_row(gpu.Row, "torchvision", 1, 3, "trained", device),
        gpu.gpu_rows.network_row(gpu.Row, "inference, torchvision", device),
    ]
    for row in rows:
        with pytest.raises(NotInstalledError, match="torchvision"):
            row.measure()
