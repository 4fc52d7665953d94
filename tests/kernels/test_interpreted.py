# SPDX-License-Identifier: BSD-3-Clause
"""Runs the launchers' tests under Triton's interpreter; they must launch every kernel."""

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ssd_fast.kernels

triton = pytest.importorskip("triton", reason="needs Triton")


def test_kernels_interpreted(request) -> None:
    """The launchers' tests pass on CPU tensors, and no kernel is left out."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
    command += ["-W", "ignore::RuntimeWarning", str(Path(__file__).parent)]
    if request.config.getoption("--full"):
        command.append("--full")
    # NumPy's threads gain nothing on small blocks.
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command, env=environment, cwd=request.config.rootpath, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    launched = re.search(r"^launched: (.*)$", run.stdout, re.MULTILINE)
    assert launched is not None, run.stdout
    missing = _kernels() - set(launched[1].split())
    assert not missing, f"no interpreted test launches {missing}"


def _kernels() -> set[str]:
    """All kernels of the package: what Triton compiles and a launcher may launch."""
    names = set()
    for module in pkgutil.iter_modules(ssd_fast.kernels.__path__):
        members = vars(importlib.import_module(f"ssd_fast.kernels.{module.name}"))
        names |= {
            name
            for name, member in members.items()
            if isinstance(member, triton.runtime.JITFunction) and name.endswith("_kernel")
        }
    return names
