# SPDX-License-Identifier: BSD-3-Clause
"""Compiles `ssd_fast._C`, one module on the LibTorch stable ABI, with ninja.

Build-time environment: `SSD_FAST_CUDA=0` leaves CUDA out, `SSD_FAST_CUDA=1` or `FORCE_CUDA=1` fails
without nvcc (unset: CUDA is compiled when nvcc is there); `TORCH_CUDA_ARCH_LIST` as in PyTorch;
`MAX_JOBS` limits the parallel jobs; `CXX`, `CXXFLAGS`, `LDFLAGS`, `CUDA_HOME` as usual.
"""

import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TARGET = "2.11"  # the oldest torch that the module loads on
TARGET_MACRO = "-DTORCH_TARGET_VERSION=0x020b000000000000"
STANDARD = "-std=c++17"
# Integer results must be equal on every machine, so each float operation rounds once: no
# contraction to fused multiply-add, no -ffast-math. -fno-math-errno changes no value.
EXACT = ["-fno-fast-math", "-ffp-contract=off", "-fno-math-errno"]
CXX_FLAGS = [
    STANDARD,
    "-O2",
    "-fvect-cost-model=dynamic",  # the part of -O3 that pays here; the rest doubles the build
    *EXACT,
    "-DNDEBUG",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",  # vectors wider than the registers never cross a function that is not inlined
]
# Passes of GCC that take a quarter of the kernels' build and make none of them faster.
GCC_FLAGS = ["-fno-tree-pre", "-fno-tree-vrp", "-fno-gcse", "-fno-code-hoisting"]
GCC_FLAGS += ["-fno-ipa-icf", "-fno-ipa-cp", "-fno-ipa-sra", "-fno-ipa-vrp"]
# GCC 12 warns of its own AVX-512 header, 750 times (GCC bug 105593).
GCC_FLAGS += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
QUICK = ["-O0"]  # module.cpp: nothing runs in it, and pybind11 compiles in less time
# The files of csrc/isa are compiled once for each of these, from the plainest to the best; the
# module chooses when it runs.
INSTRUCTION_SETS: dict[str, list[str]] = {"portable": []}
if platform.machine() in {"x86_64", "AMD64"}:
    INSTRUCTION_SETS["portable"] = ["-O1"]  # for processors of before 2013: not worth a slow build
    INSTRUCTION_SETS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    INSTRUCTION_SETS["avx512"] = [
        *INSTRUCTION_SETS["avx2"],
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
    ]
NVCC_FLAGS = [STANDARD, "-O3", "-fmad=false", "-DNDEBUG", "-Xcompiler=-fPIC,-fvisibility=hidden"]
NVCC_FLAGS += [f"-Xcompiler={','.join(EXACT)}", "-cudart=static", "--threads=0"]
# Code for one GPU runs on later ones of its generation, and PTX on later generations. Each takes
# two seconds of the build.
ARCHITECTURES = "8.0 9.0+PTX"


@dataclass(frozen=True)
class Command:
    """One compiler call: `arguments` makes `output` from `inputs`."""

    output: Path
    inputs: list[Path]
    arguments: list[str]
    depfile: Path | None = None


class NinjaBuildExt(build_ext):
    """Builds the extension in `build/`, in parallel, and only what changed since the last time."""

    def build_extension(self, ext: Extension) -> None:
        """Compiles, links and copies the module to where setuptools wants it."""
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        folder = ROOT / "build" / f"objects{suffix.removesuffix('.so')}"
        folder.mkdir(parents=True, exist_ok=True)
        module = folder / f"_C{suffix}"
        run(compile_and_link(folder, module), folder)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # A new file, not new bytes in the old one: a process may have that one mapped.
        target.unlink(missing_ok=True)
        shutil.copy2(module, target)


def compile_and_link(folder: Path, module: Path) -> list[Command]:
    """Returns the commands that make the module."""
    torch, version = find_torch()
    nvcc = find_nvcc() if sorted((ROOT / "csrc/cuda").glob("*.cu")) else None
    architectures = cuda_architectures(nvcc) if nvcc else []
    cxx = shlex.split(os.environ.get("CXX", "c++"))
    flags = [*shlex.split(os.environ.get("CXXFLAGS", "")), *CXX_FLAGS]
    if is_gcc(cxx):
        flags += GCC_FLAGS
    includes = ["-I", str(ROOT / "csrc"), "-isystem", str(torch / "include")]

    module_flags = ["-isystem", pybind11_include(torch)]
    module_flags += ["-isystem", sysconfig.get_path("include")]
    facts = {
        "SSD_FAST_SOURCE_HASH": source_hash(),
        "SSD_FAST_TORCH_TARGET": TARGET,
        "SSD_FAST_TORCH_HEADERS": version,
        "SSD_FAST_CUDA_VERSION": cuda_version(nvcc) if nvcc else "",
        "SSD_FAST_CUDA_ARCHITECTURES": " ".join(architectures),
    }
    module_flags += [f'-D{name}="{value}"' for name, value in facts.items()]

    commands = []
    for source, isa in sources(folder, cuda=nvcc is not None):
        name = f"{source.name}.{isa}.o" if isa else f"{source.name}.o"
        output = folder / source.parent.name / name
        output.parent.mkdir(parents=True, exist_ok=True)
        depfile = output.with_suffix(".d")
        if source.suffix == ".cu":
            assert nvcc is not None
            start = [nvcc, *NVCC_FLAGS, *gencode(architectures), TARGET_MACRO, *includes]
        elif isa:
            start = [*cxx, *flags, f"-DSSD_FAST_ISA={isa}", *INSTRUCTION_SETS[isa], *includes]
        elif source.parent.name == "cpu":
            start = [*cxx, *flags, TARGET_MACRO, *includes]
        else:  # pybind11 and torch headers do not meet: see csrc/module.cpp
            start = [*cxx, *flags, *module_flags, *QUICK]
        end = ["-MMD", "-MF", str(depfile), "-c", str(source), "-o", str(output)]
        commands.append(Command(output, [source], [*start, *end], depfile))

    objects = [command.output for command in commands]
    commands.append(Command(module, objects, link(cxx, nvcc, objects, module, torch / "lib")))
    return commands


def is_gcc(cxx: list[str]) -> bool:
    """Whether the compiler is GCC, under whatever name; others stop at its names of passes."""
    if shutil.which(cxx[0]) is None:
        raise SystemExit(
            f"ssd_fast: the C++ compiler {cxx[0]!r} was not found; install one, at least gcc 11 or"
            " clang 14, or name it with CXX"
        )
    version = subprocess.run([*cxx, "--version"], check=False, capture_output=True, text=True)
    return "Free Software Foundation" in version.stdout


def link(
    cxx: list[str], nvcc: str | None, objects: list[Path], module: Path, lib: Path
) -> list[str]:
    """Returns the link command: with CUDA it is nvcc's, which knows where its cudart is."""
    flags = shlex.split(os.environ.get("LDFLAGS", ""))
    ends = [*map(str, objects), "-o", str(module), f"-L{lib}", "-ltorch_cpu", "-lc10"]
    if nvcc:
        flags = [re.sub("^-Wl,", "-Xlinker=", flag) for flag in flags]  # nvcc knows -L and -l
        # No kernel calls one of another file, so there is nothing to link for the device.
        return [nvcc, "-shared", "-nodlink", "-cudart=static", *flags, *ends]
    shared = (
        ["-bundle", "-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-shared"]
    )
    return [*cxx, *shared, *flags, *ends]


def sources(folder: Path, cuda: bool) -> list[tuple[Path, str]]:
    """Returns the files to compile, in the order to link, each with its instruction set or "".

    Two objects may hold a copy of one function of the standard library, and the linker keeps the
    first: so that every machine can run it, better instruction sets come later.
    """
    csrc = ROOT / "csrc"
    # What launches CUDA kernels is host code as well, of the same headers.
    found = [csrc / "module.cpp", join_sources(folder, "cpu", *(["cuda"] if cuda else []))]
    found += sorted((csrc / "cuda").glob("*.cu")) if cuda else []
    kernels = join_sources(folder, "isa")
    return [(source, "") for source in found] + [(kernels, isa) for isa in INSTRUCTION_SETS]


def join_sources(folder: Path, name: str, *more: str) -> Path:
    """Writes a file that includes all of csrc/<name>/*.cpp and of `more`, and returns it.

    Torch's and the standard headers, read once instead of once an operator, are most of the time.
    """
    folders = [ROOT / "csrc" / part for part in (name, *more)]
    found = [path for part in folders for path in sorted(part.glob("*.cpp"))]
    lines = [f'#include "{path}"\n' for path in found]
    joined = folder / name / "all.cpp"
    joined.parent.mkdir(parents=True, exist_ok=True)
    if not joined.exists() or joined.read_text() != "".join(lines):
        joined.write_text("".join(lines))
    return joined


def source_hash() -> str:
    """Returns a hash of all that shapes the module; tests/test_packaging.py computes it again."""
    digest = hashlib.sha256()
    suffixes = {".cpp", ".cu", ".cuh", ".h"}
    files = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in suffixes]
    for path in sorted(
        [*files, ROOT / "setup.py"], key=lambda path: path.relative_to(ROOT).as_posix()
    ):
        digest.update(
            path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0"
        )
    return digest.hexdigest()[:16]


def find_torch() -> tuple[Path, str]:
    """Finds the torch whose headers to use without importing it: its folder and version."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("ssd_fast: no torch to build against; run `pip install torch` first")
    folder = Path(spec.submodule_search_locations[0])
    version = re.search(r"__version__ = '([^']+)'", (folder / "version.py").read_text())
    if version is None:
        raise SystemExit(f"ssd_fast: {folder}/version.py names no version; reinstall torch")
    numbers = tuple(int(part) for part in version[1].split(".")[:2])
    if numbers < tuple(int(part) for part in TARGET.split(".")):
        raise SystemExit(f"ssd_fast: torch {version[1]} is installed, at least {TARGET} is needed")
    return folder, version[1]


def pybind11_include(torch: Path) -> str:
    """Returns pybind11's headers, or the copy that torch brings when pybind11 is not installed."""
    if importlib.util.find_spec("pybind11") is None:
        return str(torch / "include")
    import pybind11

    return str(pybind11.get_include())


def find_nvcc() -> str | None:
    """Returns nvcc when CUDA is to be compiled; fails when it was asked for and there is none."""
    wish = os.environ.get("SSD_FAST_CUDA", os.environ.get("FORCE_CUDA") or None)
    if wish is not None and wish.lower() in {"0", "off", "no", "false"}:
        return None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc", path=f"{home}/bin") if home else None
    nvcc = nvcc or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if nvcc is None and wish is not None:
        raise SystemExit("ssd_fast: CUDA was asked for and nvcc not found; set CUDA_HOME")
    return nvcc


def cuda_version(nvcc: str) -> str:
    """Returns the release of nvcc, such as "13.0"."""
    text = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    release = re.search(r"release ([\d.]+)", text)
    return release[1] if release else "unknown"


def cuda_architectures(nvcc: str) -> list[str]:
    """Returns the architectures to compile for: those asked for, or all of ours that nvcc knows."""
    if asked := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return re.split(r"[;,\s]+", asked.strip())
    known = subprocess.run([nvcc, "--list-gpu-arch"], check=True, capture_output=True, text=True)
    numbers = set(re.findall(r"compute_(\d+)", known.stdout))
    return [name for name in ARCHITECTURES.split() if re.sub(r"\D", "", name) in numbers]


def gencode(architectures: list[str]) -> list[str]:
    """Returns nvcc's flags for architectures such as "9.0", "9.0a" and "12.0+PTX"."""
    flags = []
    for name in architectures:
        number = name.removesuffix("+PTX").replace(".", "")
        if not re.fullmatch(r"\d{2,3}[af]?", number):
            raise SystemExit(f"ssd_fast: TORCH_CUDA_ARCH_LIST: {name!r} is not like 9.0 or 9.0+PTX")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def run(commands: list[Command], folder: Path) -> None:
    """Runs the commands with ninja, or without memory of earlier builds where there is no ninja."""
    jobs = int(os.environ.get("MAX_JOBS") or 0) or os.cpu_count() or 1
    ninja = find_ninja()
    if ninja is None:
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(execute, [command.arguments for command in commands[:-1]]))
        execute(commands[-1].arguments)
        return
    lines = ["ninja_required_version = 1.5"]
    for index, command in enumerate(commands):
        line = shlex.join(command.arguments).replace("$", "$$")
        lines += [
            f"rule step{index}",
            f"  command = {line}",
            f"  description = {command.output.name}",
        ]
        if command.depfile:
            lines += [f"  depfile = {ninja_path(command.depfile)}", "  deps = gcc"]
        inputs = " ".join(ninja_path(path) for path in command.inputs)
        lines.append(f"build {ninja_path(command.output)}: step{index} {inputs}")
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    execute([ninja, "-C", str(folder), f"-j{jobs}"])


def find_ninja() -> str | None:
    """Returns the ninja program of the build environment or of the machine."""
    if importlib.util.find_spec("ninja") is not None:
        import ninja

        program = shutil.which("ninja", path=ninja.BIN_DIR)
        if program:
            return program
    return shutil.which("ninja")


def ninja_path(path: Path) -> str:
    """Returns the path as ninja's grammar wants it."""
    return re.sub(r"([$ :])", r"$\1", str(path))


def execute(arguments: list[str]) -> None:
    """Runs one command; its failure is the build's."""
    if code := subprocess.run(arguments, check=False).returncode:
        raise SystemExit(f"ssd_fast: the build failed ({code}): {shlex.join(arguments)}")


if __name__ == "__main__":
    kernels = find_packages("kernels")
    setup(
        # The folder `kernels` is `ssd_fast.kernels` once installed.
        packages=[
            *find_packages(include=["ssd_fast", "ssd_fast.*"]),
            "ssd_fast.kernels",
            *(f"ssd_fast.kernels.{name}" for name in kernels),
        ],
        package_dir={"ssd_fast": "ssd_fast", "ssd_fast.kernels": "kernels"},
        ext_modules=[Extension("ssd_fast._C", sources=[])],
        cmdclass={"build_ext": NinjaBuildExt},
    )
