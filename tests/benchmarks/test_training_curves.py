# SPDX-License-Identifier: BSD-3-Clause
"""The training curves: what is summed up and drawn, and what counts as outside the network."""

from pathlib import Path

import pytest
import torch

from benchmarks import training_curves
from benchmarks.training_curves import CONTROL, Stopwatch, draw, step, summarize


def curve(loss: float, seconds: float) -> dict[str, list[float]]:
    """Twelve steps, of which the first two took long."""
    times = [9.0, 9.0, *[seconds] * 10]
    return {
        "bbox_regression": [loss] * 12,
        "classification": [2 * loss] * 12,
        "seconds": times,
        "outside": [x / 100 for x in times],
    }


CURVES = {"ssd_fast": curve(1.01, 0.5), "torchvision": curve(1.0, 0.6), CONTROL: curve(0.98, 0.6)}


def test_summary() -> None:
    summary = summarize(CURVES)
    assert summary["seconds_of_a_step"] == {"ssd_fast": 0.5, "torchvision": 0.6}
    assert summary["seconds_outside_the_network"] == {"ssd_fast": 0.005, "torchvision": 0.006}
    assert summary["loss_of_the_last_ten_steps"]["torchvision"] == pytest.approx(3)
    apart = summary["relative_difference_to_torchvision"]
    assert apart["ssd_fast"]["largest"] == pytest.approx(0.01)
    assert apart[CONTROL]["median"] == pytest.approx(0.02)


def test_the_drawing_shows_all_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib, of the extra train")
    machine = {"cpu": "a processor", "torch": "2.0", "date": "today"}
    report = {
        "batch": 4,
        "conditions": machine,
        "summary": summarize(CURVES),
        "curves": CURVES,
    }
    draw(report, tmp_path / "curves.svg")
    drawn = (tmp_path / "curves.svg").read_text()
    for text in ("classification", "bbox_regression", CONTROL, "5.0 ms, torchvision's 6.0 ms"):
        assert text in drawn


def test_a_step_has_a_part_outside_the_network(torchvision, monkeypatch) -> None:
    """On a clock that counts its readings: each part of the network takes one tick."""
    readings = iter(range(10_000))
    monkeypatch.setattr(training_curves.time, "process_time", lambda: float(next(readings)))
    model = training_curves.build().train()
    watch = Stopwatch(model)
    targets = [{"boxes": torch.tensor([[10.0, 10, 200, 200]]), "labels": torch.tensor([1])}] * 2
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    found = step(model, optimizer, watch, list(torch.rand(2, 3, 320, 320)), targets)
    assert found["classification"] > 0
    assert watch.inside == 14  # transform, backbone and 6 + 6 layers of the heads
    # Each was entered and left between readings; of the gradient one reading is outside.
    assert found["outside"] == 29 - 14 + 1
