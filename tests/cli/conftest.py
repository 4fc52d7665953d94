# SPDX-License-Identifier: BSD-3-Clause
"""A small VOC folder, and runs of commands with what they printed."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ssd_fast.cli import main
from ssd_fast.data import ShapesDataset
from ssd_fast.engine.trainer import Trainer

# Of a training that takes a second.
TINY = ("--width", 0.03, "--batch-size", 2, "--steps", 4, "--precision", "float32", "--warmup", 1)
_ANNOTATION = """<annotation><filename>{name}.png</filename>
<size><width>{side}</width><height>{side}</height><depth>3</depth></size>{objects}</annotation>"""
_OBJECT = """<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{box[0]}</xmin>
<ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


class Result(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def ssd_fast(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Runs a command in this process."""

    def run(*arguments: object) -> Result:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run


def write_voc(root: Path, sets: dict[str, int]) -> Path:
    """Writes generated scenes as a VOC folder; the first annotation holds a box without area."""
    from PIL import Image

    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    scenes = ShapesDataset(sum(sets.values()), size=96, seed=3)
    number = 0
    for name, count in sets.items():
        names = [f"scene{number + i}" for i in range(count)]
        (root / f"ImageSets/Main/{name}.txt").write_text("\n".join(names) + "\n")
        for stem in names:
            image, target = scenes[number]
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / f"JPEGImages/{stem}.png")
            objects = [
                _OBJECT.format(name=scenes.class_names[label - 1], box=[round(v) for v in box])
                for box, label in zip(
                    target["boxes"].tolist(), target["labels"].tolist(), strict=True
                )
            ]
            if number == 0:
                objects.append(_OBJECT.format(name="circle", box=[30, 30, 30, 50]))
            text = _ANNOTATION.format(name=stem, side=96, objects="".join(objects))
            (root / f"Annotations/{stem}.xml").write_text(text)
            number += 1
    return root


@pytest.fixture(scope="session")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images to train on, two each to validate on and to test on."""
    return write_voc(tmp_path_factory.mktemp("voc") / "cells", {"train": 4, "val": 2, "test": 2})


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a model of the shapes that was never trained."""
    import torch

    from ssd_fast.engine.weights import save_weights
    from ssd_fast.models import ssd300_vgg16

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "shapes.safetensors"
    save_weights(path, ssd300_vgg16(4, width=0.03, norm=True), ShapesDataset(1).class_names)
    return path


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report's figures take a second a run, and test_report.py looks at them."""
    from ssd_fast.engine import report_files

    names = ("precision_recall", "f1", "confusion_matrix", "sizes")
    monkeypatch.setattr(report_files, "draw_figures", lambda *_: dict.fromkeys(names, b""))


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """Sends this process a signal in the middle of a step."""
    run = Trainer.run

    def interrupted(self: Trainer) -> Iterator[object]:
        for report in run(self):
            if report.step == step:
                os.kill(os.getpid(), number)
            yield report

    monkeypatch.setattr(Trainer, "run", interrupted)
