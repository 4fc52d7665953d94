# SPDX-License-Identifier: BSD-3-Clause
"""The kernels' sources are C++ for any processor: Clang takes all of them for 64-bit ARM."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[1] / "csrc"


@pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None,
    reason="needs ziglang, a Clang with the headers of other machines: pip install ziglang",
)
def test_the_kernels_are_taken_for_arm(tmp_path):
    headers = sorted(path.name for path in CSRC.glob("*.h"))
    kernels = sorted(f"isa/{path.name}" for path in (CSRC / "isa").glob("*.cpp"))
    assert "nms.h" in headers
    assert "isa/nms.cpp" in kernels
    source = tmp_path / "all.cpp"
    source.write_text("".join(f'#include "{name}"\n' for name in (*headers, *kernels)))
    command = "c++ -target aarch64-linux-gnu -std=c++17 -Wall -Wextra -Werror -O0 -I"
    ran = subprocess.run(
        [sys.executable, "-m", "ziglang", *command.split(), CSRC, "-c", source, "-o", "all.o"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"ZIG_GLOBAL_CACHE_DIR": str(tmp_path / "cache")},
    )
    assert ran.returncode == 0, ran.stderr
