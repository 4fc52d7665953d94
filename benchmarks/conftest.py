# SPDX-License-Identifier: BSD-3-Clause
"""The fixture `side_by_side`, and what the JSON says of the machine it was measured on."""

import os
from typing import Any

import pytest
import torch

import ssd_fast
from benchmarks.harness import Budget, SideBySide


@pytest.fixture
def side_by_side(benchmark: Any, request: pytest.FixtureRequest) -> SideBySide:
    """Checks and times contenders in turn; see `benchmarks.harness`."""
    seconds = float(request.config.getoption("benchmark_max_time"))
    min_rounds = int(request.config.getoption("benchmark_min_rounds"))
    return SideBySide(benchmark, Budget(seconds, min_rounds))


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """Seeds every benchmark."""
    torch.manual_seed(0)


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Says what the times depend on, and leaves out the name of the machine."""
    machine_info.pop("node", None)
    compiled = ssd_fast._C
    machine_info["torch"] = {
        "version": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "logical_cpus": os.cpu_count(),
        "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    machine_info["ssd_fast"] = {
        "version": ssd_fast.__version__,
        "compiler": compiled.compiler,
        "torch_headers": compiled.torch_headers,
        "source_hash": compiled.source_hash,
    }
    real_time = hasattr(os, "SCHED_FIFO") and os.sched_getscheduler(0) == os.SCHED_FIFO
    machine_info["conditions"] = {
        "load_average": round(os.getloadavg()[0], 1),
        "scheduler": "real-time" if real_time else "ordinary",
    }
    machine_info["allocator"] = {
        name: value for name, value in os.environ.items() if name.startswith("MALLOC_")
    }


def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    """Keeps what names the commit, not the folder or branch it was checked out to."""
    for key in set(commit_info) - {"id", "time", "dirty"}:
        del commit_info[key]


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Leaves out single durations (medians and quartiles are compared) and equal options."""
    for row in output_json["benchmarks"]:
        row["stats"].pop("data", None)
        row.pop("options", None)
