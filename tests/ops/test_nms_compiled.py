# SPDX-License-Identifier: BSD-3-Clause
"""nms.cu compiles ahead of time, without spills and without inexact arithmetic."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
KERNELS = {"prepare_keys", "suppress_segments", "compare_tile", "sweep_tile", "collect_kept"}


@pytest.fixture(scope="module")
def compile_device_code():
    """`compile_device_code(architecture, *flags, output)`: what nvcc says of the kernels."""
    pytest.importorskip("setuptools", reason="needs setuptools, to read the flags of setup.py")
    spec = importlib.util.spec_from_file_location("ssd_fast_build", ROOT / "setup.py")
    build = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = build  # where its dataclass looks itself up
    spec.loader.exec_module(build)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SSD_FAST_CUDA", raising=False)
        patch.delenv("FORCE_CUDA", raising=False)
        nvcc = build.find_nvcc()
    if nvcc is None:
        pytest.skip("needs nvcc")

    def run(architecture, *flags, output):
        torch_include = Path(torch.__file__).parent / "include"
        command = [nvcc, *build.NVCC_FLAGS, f"-arch={architecture}", *flags, build.TARGET_MACRO]
        command += ["-I", str(ROOT / "csrc"), "-isystem", str(torch_include)]
        command += [str(ROOT / "csrc/cuda/nms.cu"), "-o", str(output)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stderr

    return run


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_no_kernel_spills(compile_device_code, tmp_path, architecture):
    """Prints the registers and the shared memory of each."""
    report = compile_device_code(
        architecture, "-cubin", "-Xptxas=-v", output=tmp_path / "nms.cubin"
    )
    pattern = re.compile(
        r"Function properties for (\S+)\n\s*(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads\n.*Used (\d+) registers(?:.*?(\d+) bytes smem)?"
    )
    found = {}
    for name, *numbers in pattern.findall(report):
        kernel = next(kernel for kernel in KERNELS if kernel in name)
        stack, stores, loads, registers, shared = (int(number or 0) for number in numbers)
        print(f"{kernel:18} {architecture} {registers:3} registers {shared:6} bytes shared")
        found[kernel] = stack + stores + loads
        assert shared <= 48 * 1024
    assert found == dict.fromkeys(KERNELS, 0)


def test_every_operation_rounds_once(compile_device_code, tmp_path):
    """No fused multiply-add, no approximate division, nothing flushed to zero."""
    ptx = tmp_path / "nms.ptx"
    compile_device_code("compute_90", "-ptx", output=ptx)
    code = ptx.read_text()
    assert {name for name in KERNELS if re.search(rf"\.entry \w*{name}", code)} == KERNELS
    assert "div.rn.f32" in code
    assert not re.findall(r"\b(fma\.\S+|div\.full\S*|\S+\.approx\S*|\S+\.ftz\S*)", code)
