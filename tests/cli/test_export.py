# SPDX-License-Identifier: BSD-3-Clause
"""`ssd-fast export` writes a file that detects as the weights do, and names what is wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssd_fast.engine.weights import load_weights


@pytest.mark.filterwarnings("error::UserWarning:torch.export")
def test_a_program_beside_the_weights(ssd_fast: Callable, weights: Path, tmp_path: Path):
    copied = tmp_path / "detector.safetensors"
    copied.write_bytes(weights.read_bytes())
    result = ssd_fast("export", "--weights", copied, "--to", "torch")
    assert result.status == 0, result.err
    assert "detector.torch.pt2" in result.out.replace("\n", "")
    model, _ = load_weights(copied)
    images = torch.rand(1, 3, 300, 300)
    found = torch.export.load(tmp_path / "detector.torch.pt2").module()(images)
    with torch.no_grad():
        expected = model.detect_padded(images)
    for actual, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, reference)


def test_what_is_wrong_is_one_line(ssd_fast: Callable, weights: Path, tmp_path: Path):
    output = tmp_path / "detector.onnx"
    result = ssd_fast("export", "--weights", weights, "--output", output, "--opset", 11)
    assert result.status == 2
    assert "opset: expected 18 or later, got 11" in result.err
    for kind, name in (("onnx", "a.pt2"), ("torch", "a.onnx")):
        named = ("--to", kind, "--output", tmp_path / name)
        result = ssd_fast("export", "--weights", weights, *named)
        assert result.status == 2
        assert f"{name} is the name of another format than {kind}; add --to" in result.err
    result = ssd_fast("export", "--weights", tmp_path / "nothing.safetensors")
    assert result.status == 2
    assert "no weights at" in result.err
    used = weights.with_name("used")
    used.touch()
    result = ssd_fast("export", "--weights", weights, "--to", "torch", "--output", used / "a.pt2")
    assert result.status == 2
    assert f"cannot write in the output folder {used}" in result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["aoti", "torch"])
@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("tpu", "Expected one of cpu, cuda"),
        ("meta", "Cannot copy out of meta tensor"),
        ("cuda:99", ""),
        ("cpu:x", "Invalid device string"),
        ("hip", "Could not run"),
        ("privateuseone", "No module named"),
    ],
)
def test_a_device_without_data_is_one_line(
    ssd_fast: Callable, weights: Path, tmp_path: Path, kind: str, device: str, reason: str
):
    output = ("--output", tmp_path / "a.pt2")
    result = ssd_fast("export", "--weights", weights, "--to", kind, "--device", device, *output)
    assert result.status == 2
    assert f"--device: cannot use '{device}': {reason}" in result.err
    assert result.err.endswith("; name one of this machine, as cpu or cuda\n")
    assert result.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["aoti", "onnx", "torch"])
def test_a_folder_in_the_way_is_one_line(
    ssd_fast: Callable, weights: Path, tmp_path: Path, kind: str
):
    folder = tmp_path / "detectors"
    folder.mkdir()
    result = ssd_fast("export", "--weights", weights, "--to", kind, "--output", folder)
    assert result.status == 2
    assert f"error: cannot write {folder}: it is a folder; name a file in it\n" in result.err
    assert not list(folder.iterdir())
