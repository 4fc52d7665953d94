# SPDX-License-Identifier: BSD-3-Clause
"""What is installed is what this tree holds, and importing it stays light."""

import ast
import hashlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import ssd_fast
import ssd_fast.kernels
from ssd_fast import _C

ROOT = Path(__file__).resolve().parents[1]
REBUILD = "run `pip install -e .` in the checkout again"


def files(folder: str, *suffixes: str) -> list[str]:
    """Paths in the tree, relative to its root, in one order on every machine."""
    found = (path for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def test_compiled_module_is_of_this_tree():
    digest = hashlib.sha256()
    for name in sorted([*files("csrc", ".cpp", ".cu", ".cuh", ".h"), "setup.py"]):
        digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes() + b"\0")
    assert _C.source_hash == digest.hexdigest()[:16], f"{_C.__file__} is stale: {REBUILD}"


@pytest.mark.parametrize(
    ("package", "folder"), [(ssd_fast, "ssd_fast"), (ssd_fast.kernels, "kernels")]
)
def test_python_files_are_of_this_tree(package: ModuleType, folder: str):
    assert package.__file__ is not None
    installed = Path(package.__file__).parent
    for name in files(folder, ".py", ".pyi"):
        copy = installed / Path(name).relative_to(folder)
        assert copy.is_file(), f"{copy} is missing: {REBUILD}"
        assert copy.read_bytes() == (ROOT / name).read_bytes(), f"{copy} is stale: {REBUILD}"


def test_every_compiled_operator_is_registered():
    pattern = re.compile(r"STABLE_TORCH_LIBRARY_IMPL\(ssd_fast,\s*(\w+),.*?\n}", re.DOTALL)
    compiled = set()
    for name in files("csrc", ".cpp"):
        if name.startswith("csrc/cuda/") and not _C.with_cuda:
            continue
        for block in pattern.finditer((ROOT / name).read_text()):
            for op in re.findall(r'm\.impl\(\s*"(\w+)"', block[0]):
                compiled.add((f"ssd_fast::{op}", block[1]))
    assert compiled or not files("csrc/cpu", ".cpp")
    for op, key in sorted(compiled):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(op, key), f"{op} has no {key} kernel"


def test_import_is_light():
    code = (
        "import sys, torch; before = set(sys.modules); import ssd_fast;"
        "print(*sorted(set(sys.modules) - before))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert "ssd_fast._C" in loaded
    heavy = {"triton", "torchvision", "matplotlib", "PIL", "tyro", "rich", "onnx", "sympy"}
    assert not heavy & {name.partition(".")[0] for name in loaded}


def test_version_is_a_literal():
    tree = ast.parse((ROOT / "ssd_fast/__init__.py").read_text())
    values = [
        node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and [ast.unparse(target) for target in node.targets] == ["__version__"]
    ]
    assert values == [ssd_fast.__version__] == [importlib.metadata.version("ssd_fast")]


def test_core_depends_on_torch_alone():
    requirements = importlib.metadata.requires("ssd_fast") or []
    assert [line for line in requirements if "extra ==" not in line] == ["torch>=2.11"]


def test_build_facts():
    assert _C.torch_target == "2.11"
    assert _C.compiler.split()[0] in {"gcc", "clang"}
    assert _C.with_cuda == bool(_C.cuda_version) == bool(_C.cuda_architectures)


def load(file: str) -> ModuleType:
    """A file of the build as a module."""
    pytest.importorskip("setuptools", minversion="77", reason="needs setuptools>=77 to build")
    spec = importlib.util.spec_from_file_location(f"ssd_fast_{Path(file).stem}", ROOT / file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """The functions of setup.py."""
    return load("setup.py")


def test_isolated_build_takes_the_installed_torch(monkeypatch):
    backend = load("build_backend.py")
    for hook in ("get_requires_for_build_wheel", "get_requires_for_build_editable"):
        monkeypatch.setattr(backend.build_meta, hook, lambda _settings: [])
        # What pip sets for an isolated build must not hide the environment's own torch.
        monkeypatch.setenv("PYTHONPATH", "/nowhere")
        monkeypatch.setenv("PYTHONNOUSERSITE", "1")
        assert backend._target_site() == str(Path(torch.__file__).parents[1])
        assert getattr(backend, hook)() == []
        with monkeypatch.context() as patch:
            patch.setattr(backend, "_target_site", lambda: "")
            assert getattr(backend, hook)() == ["torch>=2.11"]


def test_rounding_flags_come_after_the_users(build: ModuleType, monkeypatch, tmp_path):
    monkeypatch.setenv("CXXFLAGS", "-ffast-math -ffp-contract=fast")
    monkeypatch.setenv("SSD_FAST_CUDA", "0")
    for command in build.compile_and_link(tmp_path, tmp_path / "_C.so")[:-1]:
        last = {flag: place for place, flag in enumerate(command.arguments)}
        assert last["-ffast-math"] < last["-fno-fast-math"]
        assert last["-ffp-contract=fast"] < last["-ffp-contract=off"]


def test_only_operators_get_the_target_version(build: ModuleType, monkeypatch, tmp_path):
    monkeypatch.setenv("SSD_FAST_CUDA", "0")
    commands = build.compile_and_link(tmp_path, tmp_path / "_C.so")[:-1]
    assert {c.inputs[0].parent.name: build.TARGET_MACRO in c.arguments for c in commands} in (
        {"csrc": False, "cpu": True, "isa": False},
        {"csrc": False, "isa": False},
    )


def test_better_instruction_sets_are_linked_later(build: ModuleType, monkeypatch, tmp_path):
    """Of a function that two objects hold the linker keeps the first: any machine must run it."""
    monkeypatch.setenv("SSD_FAST_CUDA", "0")
    *compiled, link = build.compile_and_link(tmp_path, tmp_path / "_C.so")
    flags = {c.output: [a for a in c.arguments if a.startswith("-m")] for c in compiled}
    counts = [len(flags[output]) for output in link.inputs]
    assert counts == sorted(counts)
    wanted = [[f for f in own if f.startswith("-m")] for own in build.INSTRUCTION_SETS.values()]
    assert set(counts) == {len(own) for own in wanted}


@pytest.mark.parametrize(
    ("names", "flags"),
    [
        (["9.0"], ["-gencode=arch=compute_90,code=sm_90"]),
        (["9.0a"], ["-gencode=arch=compute_90a,code=sm_90a"]),
        (
            ["12.0+PTX"],
            [
                "-gencode=arch=compute_120,code=sm_120",
                "-gencode=arch=compute_120,code=compute_120",
            ],
        ),
    ],
)
def test_architectures(build: ModuleType, names: list[str], flags: list[str]):
    assert build.gencode(names) == flags


def test_rejects_an_unknown_architecture(build: ModuleType):
    with pytest.raises(SystemExit, match=r"TORCH_CUDA_ARCH_LIST: 'Hoper' is not like 9.0"):
        build.gencode(["Hoper"])


def test_cuda_asked_for_without_nvcc_fails(build: ModuleType, monkeypatch):
    monkeypatch.setattr(build.shutil, "which", lambda *_, **__: None)
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match="nvcc not found"):
        build.find_nvcc()
    monkeypatch.setenv("SSD_FAST_CUDA", "0")
    assert build.find_nvcc() is None


def test_failing_compiler_fails_the_build(build: ModuleType, monkeypatch, tmp_path, capfd):
    broken = tmp_path / "broken.cpp"
    broken.write_text("#error no such luck\n")
    output = tmp_path / "broken.o"
    compiling = build.Command(output, [broken], ["c++", "-c", str(broken), "-o", str(output)])
    linking = build.Command(tmp_path / "module.so", [output], ["false"])
    for ninja in (build.find_ninja(), None):
        monkeypatch.setattr(build, "find_ninja", lambda ninja=ninja: ninja)
        with pytest.raises(SystemExit, match="the build failed"):
            build.run([compiling, linking], tmp_path)
        assert "no such luck" in "".join(capfd.readouterr())


def test_a_compiler_that_is_not_there_is_named(build: ModuleType):
    with pytest.raises(SystemExit, match=r"compiler 'no-c\+\+' was not found; .* with CXX"):
        build.is_gcc(["no-c++", "-O2"])


@pytest.mark.parametrize("target", ["demo", "test"])
def test_readme_gives_the_command_of_make(target: str):
    rule = re.search(rf"^{target}:.*\n\t(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert rule is not None
    assert rule[1] in (ROOT / "README.md").read_text().splitlines()


def test_hooks_pin_what_ci_pins():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    hooks = re.findall(r"[\w-]+==[\d.]+", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks
    for hook in hooks:
        assert any(pin.partition(";")[0].strip() == hook for pin in pins), hook
