# SPDX-License-Identifier: BSD-3-Clause
"""The program as a whole: help, version, missing extras, errors in one line."""

import dataclasses
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("tyro", reason="needs the train extra")

import ssd_fast as package
from ssd_fast.cli import main
from ssd_fast.cli.bench import Bench
from ssd_fast.cli.check import Check
from ssd_fast.cli.demo import Demo
from ssd_fast.cli.evaluate import Evaluate
from ssd_fast.cli.export import Export
from ssd_fast.cli.predict import Predict
from ssd_fast.cli.train import Train


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_version(ssd_fast: Callable):
    result = ssd_fast("--version")
    assert result == (0, f"ssd_fast {package.__version__}\n", "")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for command in ("demo", "check", "train", "eval", "predict", "export", "bench", "info"):
        assert f"• {command} " in out


@pytest.mark.parametrize("command", [Demo, Check, Train, Evaluate, Predict, Export, Bench])
def test_every_option_has_help(command: type):
    source = inspect.getsource(command)
    for field in dataclasses.fields(command):
        assert re.search(rf'\n    {field.name}: [^\n]*\n    """[A-Za-z]', source), field.name


@pytest.mark.parametrize("arguments", [["fly"], ["train", "--lr", "1"], ["eval"]])
def test_wrong_options_end_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err


def test_help_loads_nothing_heavy(tmp_path: Path):
    heavy = ("matplotlib", "PIL", "safetensors", "triton", "torchvision", "ssd_fast.engine")
    code = f"""
import sys
from ssd_fast.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
print("LOADED", [m for m in sys.modules if m in {heavy!r}])
"""
    result = python("-c", code, cwd=tmp_path)
    assert result.stdout.splitlines()[-1] == "LOADED []", result.stderr


BLOCK = """
import importlib.machinery, sys
class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in {names!r}:
            return super().find_spec(name, path, target)
sys.meta_path = [Finder if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
from ssd_fast.cli import main
sys.exit(main({arguments!r}))
"""
TRAIN = ("tyro", "rich", "PIL", "defusedxml", "matplotlib", "safetensors")


def test_info_needs_no_extra(tmp_path: Path):
    result = python("-c", BLOCK.format(names=TRAIN, arguments=["info"]), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert package.__version__ in result.stdout


def test_a_missing_parser_is_named(tmp_path: Path):
    result = python("-c", BLOCK.format(names=("tyro",), arguments=["demo"]), cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "tyro" in line
    assert "pip install 'ssd_fast[train]'" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["demo"], "matplotlib"),
        (["train", "--data", "shapes"], "safetensors"),
        (["eval", "--weights", "w", "--data", "shapes"], "rich"),
        (["predict", "--weights", "w", "a.jpg"], "PIL"),
    ],
)
def test_a_missing_extra_is_named(
    ssd_fast: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    missing: str,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ssd_fast.cli.extras.find_spec", lambda name: name != missing or None)
    result = ssd_fast(*arguments)
    assert result.status == 2
    (line,) = result.err.splitlines()
    assert missing in line
    assert "pip install 'ssd_fast[train]'" in line
    assert not list(tmp_path.iterdir())


def test_the_module_runs(tmp_path: Path):
    result = python("-m", "ssd_fast.cli", "eval", "--weights", "none", "--data", "x", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == "ssd-fast: error: no weights at none\n"


def test_a_fault_of_the_program_shows_its_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ssd_fast.cli.info._facts", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["info"])


def test_info_says_what_runs_where(ssd_fast: Callable):
    import torch

    result = ssd_fast("info")
    assert result.status == 0
    assert f"torch:     {torch.__version__}" in result.out
    rows = {row.split()[0]: row.split()[1:] for row in result.out.splitlines() if row}
    for operator in ("match", "mine", "multibox_loss", "decode", "nms", "detect"):
        assert rows[operator][0] == "C++"
        assert rows[operator][2] == "reference"
    assert rows["heads_loss_backward"] == ["PyTorch", "reference", "reference"]
    if not package._C.with_cuda:
        assert "no CUDA kernels" in result.out
