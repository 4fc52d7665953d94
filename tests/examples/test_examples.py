# SPDX-License-Identifier: BSD-3-Clause
"""Every example runs at toy size and is as short as its README says."""

import math
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(name, *arguments)`: the losses that an example's main gives, started in a folder."""
    monkeypatch.chdir(tmp_path)
    return lambda name, *arguments: runpy.run_path(str(FOLDER / name))["main"](arguments)


def test_plain_loop_learns(run, capsys):
    losses = run("plain_loop.py", "--steps", "20")
    assert sum(losses[-5:]) < sum(losses[:5])
    assert "labels" in capsys.readouterr().out


def test_torchvision_reference(run, torchvision, capsys):
    losses = run("torchvision_reference.py", "--steps", "2", "--batch-size", "2")
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert "'loss': 'ssd_fast.ops.multibox_loss'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("lightning_module.py", ["lightning"]),
        ("huggingface_trainer.py", ["transformers", "accelerate"]),
    ],
)
@pytest.mark.filterwarnings("ignore")  # those packages' own
def test_frameworks(run, name, packages):
    for package in packages:
        pytest.importorskip(package, reason=f"needs {package}")
    losses = run(name, "--steps", "2", "--batch-size", "2")
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)


def test_they_are_short_and_listed():
    listed = (FOLDER / "README.md").read_text()
    examples = list(FOLDER.glob("*.py"))
    assert len(examples) >= 4
    for example in examples:
        assert len(example.read_text().splitlines()) < 80, example.name
        assert f"({example.name})" in listed
    assert len(examples) == listed.count(".py](")
