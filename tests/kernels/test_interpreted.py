# SPDX-License-Identifier: BSD-3-Clause
"""The launchers' tests pass under Triton's interpreter; they must launch every kernel."""

import importlib
import pkgutil
import re

import pytest

import ssd_fast.kernels

triton = pytest.importorskip("triton", reason="needs Triton")


def test_kernels_interpreted(interpreted_tests) -> None:
    """The launchers' tests pass on CPU tensors, and no kernel is left out."""
    process, printed = interpreted_tests
    status = process.wait()
    printed.seek(0)
    output = printed.read()
    assert status == 0, output
    launched = re.search(r"^launched: (.*)$", output, re.MULTILINE)
    assert launched is not None, output
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
