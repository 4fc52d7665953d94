# SPDX-License-Identifier: BSD-3-Clause
"""The demo, cut short."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest


def test_the_demo_writes_what_it_promises(
    ssd_fast: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    result = ssd_fast("demo", "--steps", 2, "--scenes", 3, "--width", 0.03)
    assert result.status == 0
    lines = result.out.splitlines()
    assert re.fullmatch(r"mAP@0\.5 [01]\.\d{3}", lines[-1])
    assert re.search(r"in (bfloat16|float32) \(", lines[0])
    folder = tmp_path / "ssd-fast-demo"
    names = {"detections.png", "training.png", "metrics.json", "weights.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    metrics = json.loads((folder / "metrics.json").read_text())
    assert lines[-1] == f"mAP@0.5 {metrics['map_50']:.3f}"
    for name in ("detections.png", "training.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 300

    again = ssd_fast("eval", "--weights", folder / "weights.safetensors", "--data", "shapes")
    assert again.status == 0
    assert again.out.splitlines()[-1].startswith("mAP@0.5 ")


def test_a_folder_that_cannot_be_written_is_named_before_training(
    ssd_fast: Callable, tmp_path: Path
):
    (tmp_path / "file").touch()
    result = ssd_fast("demo", "--output", tmp_path / "file" / "demo")
    assert result.status == 2
    assert "step" not in result.out
    (line,) = result.err.splitlines()
    assert line.startswith("ssd-fast: error: cannot write in the output folder")
    assert "--output" in line
