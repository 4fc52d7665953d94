# SPDX-License-Identifier: BSD-3-Clause
"""Fused multiply-adds are rounded once on processors that have none, too (csrc/multiply_add.h)."""

import os
import shlex
import subprocess
from pathlib import Path


def test_equals_the_c_library(tmp_path: Path) -> None:
    here = Path(__file__).parent
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Werror", "-Wno-psabi"]
    source = [str(here / "multiply_add.cpp"), "-I", str(here.parent / "csrc")]
    program = str(tmp_path / "multiply_add")
    subprocess.run([*compiler, *flags, *source, "-o", program], check=True)
    *differences, rounded_twice = subprocess.run(
        [program], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert differences == []
    assert int(rounded_twice) > 0  # else nothing here could tell one rounding from two
