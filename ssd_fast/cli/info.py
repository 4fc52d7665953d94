# SPDX-License-Identifier: BSD-3-Clause
"""`ssd-fast info`: what is installed, what was compiled, and what runs where."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

import ssd_fast
import ssd_fast.ops
from ssd_fast.ops._library import library

__all__ = ["Info", "Version"]

_EXTRAS = {
    "train": ("tyro", "rich", "Pillow", "defusedxml", "matplotlib", "safetensors", "numpy"),
    "export": ("onnx", "onnxscript", "onnxruntime"),
}


@dataclass(frozen=True)
class Version:
    """Prints the version."""

    def run(self) -> int:
        """Prints one line."""
        print(f"ssd_fast {ssd_fast.__version__}")
        return 0


@dataclass(frozen=True)
class Info:
    """Prints versions, what was compiled, and which kernel serves which device."""

    def run(self) -> int:
        """Prints the facts as `name: value` lines and a table of operators."""
        for name, value in _facts():
            print(f"{name + ':':<10} {value}")
        print()
        print(f"{'operator':<24} {'CPU':<12} {'CUDA':<12} other devices")
        for operator in _operators():
            cpu, cuda, other = (_kernel(operator, key) for key in ("CPU", "CUDA", "XPU"))
            print(f"{operator:<24} {cpu:<12} {cuda:<12} {other}")
        return 0


def _facts() -> Iterator[tuple[str, str]]:
    """Versions and hardware, each with the reason where something is missing."""
    from ssd_fast.engine.precision import choose_precision

    yield "ssd_fast", f"{ssd_fast.__version__}, Python {platform.python_version()}"
    yield "torch", torch.__version__
    yield "compiled", _compiled()
    capability = torch.backends.cpu.get_cpu_capability()
    precision = choose_precision(torch.device("cpu"))
    yield "CPU", f"{platform.machine()}, {capability}, {torch.get_num_threads()} threads"
    yield "precision", f"on this CPU {precision}"
    yield "GPU", _gpu()
    yield "Triton", _triton()
    for extra, packages in _EXTRAS.items():
        yield extra, _packages(extra, packages)


def _compiled() -> str:
    facts = ssd_fast._C
    cuda = f"CUDA {facts.cuda_version} for {facts.cuda_architectures}"
    if not facts.with_cuda:
        cuda = "no CUDA kernels"
    return (
        f"{facts.compiler}, torch {facts.torch_headers}, for {facts.torch_target} and later; {cuda}"
    )


def _gpu() -> str:
    if torch.version.cuda is None and torch.version.hip is None:
        return "none: this torch was built for the CPU only"
    if not torch.cuda.is_available():
        return f"none: torch has CUDA {torch.version.cuda} but finds no GPU or driver"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _triton() -> str:
    if find_spec("triton") is None:
        return "not installed"
    return f"{version('triton')}" + ("" if torch.cuda.is_available() else ", no GPU to use it on")


def _packages(extra: str, packages: tuple[str, ...]) -> str:
    """The packages of an extra with their versions, or the command that adds it."""
    found, missing = [], []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        return f"without {', '.join(missing)}: pip install 'ssd_fast[{extra}]'"
    return ", ".join(found)


def _operators() -> list[str]:
    """The names of all operators, from the dispatcher."""
    prefix = "ssd_fast::"
    names = torch._C._dispatch_get_all_op_names()
    return sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))


def _kernel(operator: str, key: str) -> str:
    """What serves an operator under a dispatch key."""
    name = f"ssd_fast::{operator}"
    if torch._C._dispatch_has_kernel_for_dispatch_key(name, key):
        if key != "CPU":
            return "kernel"
        return "PyTorch" if f"ssd_fast/{operator}/CPU" in library._op_impls else "C++"
    if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeExplicitAutograd"):
        return "reference"
    return "none"
