# SPDX-License-Identifier: BSD-3-Clause
"""Fused multiply-adds are rounded once on processors that have none, too (csrc/multiply_add.h)."""

import os
import platform
import shlex
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPILER = shlex.split(os.environ.get("CXX", "c++"))
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Werror", "-Wno-psabi"]
SOURCE = [str(HERE / "multiply_add.cpp"), "-I", str(HERE.parent / "csrc")]


def test_equals_the_c_library(tmp_path: Path) -> None:
    program = str(tmp_path / "multiply_add")
    subprocess.run([*COMPILER, *FLAGS, *SOURCE, "-o", program], check=True)
    *differences, rounded_twice = subprocess.run(
        [program], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert differences == []
    assert int(rounded_twice) > 0  # else nothing here could tell one rounding from two


@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="a flag of x86-64")
def test_compiles_for_processors_with_fma_and_without_avx2() -> None:
    """AMD's of 2012, which CXXFLAGS may ask for."""
    subprocess.run([*COMPILER, *FLAGS, "-mfma", *SOURCE, "-c", "-o", os.devnull], check=True)
