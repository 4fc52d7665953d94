# SPDX-License-Identifier: BSD-3-Clause
"""A report holds the numbers of its evaluation, is complete in itself, and is found by predict."""

import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssd_fast.data import ShapesDataset
from ssd_fast.engine.evaluation import score_detections
from ssd_fast.engine.report import Report, make_report, read_threshold, weights_digest
from ssd_fast.engine.report_figures import DARK, draw_figures
from ssd_fast.engine.report_files import write_report
from ssd_fast.engine.report_page import Exhibit, render_page

Rows = dict[str, Tensor]
IMAGES = 6
FIGURES = dict.fromkeys(("precision_recall", "f1", "confusion_matrix", "sizes"), b"")


def flawed(dataset: ShapesDataset) -> tuple[list[Rows], list[Rows]]:
    """The truth with scores, one object missed, one mistaken, one made up in the second image."""
    g = torch.Generator().manual_seed(0)
    targets = [dataset[i][1] for i in range(len(dataset))]
    detections = []
    for target in targets:
        n = len(target["labels"])
        scores = 0.5 + 0.5 * torch.rand(n, generator=g)
        detections.append({**target, "scores": scores})
    bad = detections[1]
    bad["boxes"] = torch.cat([bad["boxes"][1:], torch.tensor([[1.0, 1.0, 9.0, 9.0]])])
    bad["labels"] = torch.cat([bad["labels"][1:], torch.tensor([1])])
    bad["scores"] = torch.cat([bad["scores"][1:], torch.tensor([0.9])])
    detections[2]["labels"] = detections[2]["labels"] % 3 + 1
    return detections, targets


def report_of(dataset: ShapesDataset, metric: str = "voc") -> tuple[Report, list[Rows]]:
    detections, targets = flawed(dataset)
    evaluation = score_detections(detections, targets, dataset.class_names, metric=metric)
    return make_report(detections, targets, evaluation, {"weights": "w", "data": "d"}), detections


class Page(HTMLParser):
    """The tags of a page, each closed, and what they refer to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "source", "br"):
            self.open.append(tag)
        self.references += [v or "" for k, v in attrs if k in ("src", "srcset", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_folder_holds_page_numbers_and_figures(tmp_path: Path):
    from PIL import Image

    dataset = ShapesDataset(IMAGES, min_objects=3, seed=4)
    report, detections = report_of(dataset)
    files = write_report(tmp_path, report, dataset, detections)
    assert files[0].name == "report.html"
    assert sorted(files) == sorted(tmp_path.iterdir())
    for name in ("precision_recall", "f1", "confusion_matrix", "sizes", "worst_image_1"):
        assert Image.open(tmp_path / f"{name}.png").width > 400
    page = Page()
    page.feed(files[0].read_text())
    assert page.open == []
    assert len(page.references) == 2 * 4 + len(report.worst)
    assert all(re.match(r"data:image/(png|jpeg);base64,", r) for r in page.references)
    text = " ".join(page.text)
    assert f"{report.evaluation.at_50.mean:.3f}" in text
    assert "image 1" in text

    numbers = json.loads((tmp_path / "report.json").read_text())
    assert numbers["metrics"] == report.evaluation.metrics()
    assert [row["name"] for row in numbers["classes"]] == list(dataset.class_names)
    assert numbers["confusion"]["counts"] == report.confusion.counts.tolist()
    assert numbers["worst_images"][0]["index"] in (1, 2)
    assert sum(size["objects"] for size in numbers["sizes"]) == sum(
        row["objects"] for row in numbers["classes"]
    )


def test_pictures_of_an_earlier_report_go_and_nothing_else_does(tmp_path: Path):
    others = {"weights.safetensors", "worst_image_of_mine.png", "worst_image_1.txt", "9.png"}
    for name in (*others, "worst_image_2.png", "worst_image_7.png", "worst_image_12.png"):
        (tmp_path / name).write_text("")
    dataset = ShapesDataset(IMAGES, min_objects=3, seed=4)
    report, detections = report_of(dataset)
    assert len(report.worst) == 2
    files = write_report(tmp_path, report, dataset, detections)
    assert {path.name for path in tmp_path.iterdir()} == others | {path.name for path in files}
    assert (tmp_path / "worst_image_2.png").stat().st_size > 0


def test_errors_are_told_by_image():
    report, _ = report_of(ShapesDataset(IMAGES, min_objects=3, seed=4))
    assert set(report.worst) == {1, 2}
    assert report.describe_image(1, ["a", "b"]) == {
        "index": 1,
        "file": "b",
        "missed": 1,
        "confused": 0,
        "false": 1,
    }
    assert report.describe_image(2, None)["confused"] > 0


def test_names_from_strangers_are_text():
    dataset = ShapesDataset(3)
    dataset.class_names = ("<script>alert(1)</script>", "a & b", "x" * 60)
    report, _ = report_of(dataset)
    page = render_page(report, FIGURES, FIGURES, [Exhibit(b"", "<script>.jpg", '"><script>')])
    assert "<script>" not in page
    assert "&lt;script&gt;.jpg" in page


def test_a_file_whose_name_is_no_utf_8_is_shown(tmp_path: Path):
    dataset = ShapesDataset(3)
    dataset.paths = [tmp_path / os.fsdecode(b"b\xff.png")] * 3
    report, detections = report_of(dataset)
    page, *_ = write_report(tmp_path, report, dataset, detections)
    assert "b\\udcff.png" in page.read_text(encoding="utf-8")


def test_a_name_is_no_formula():
    dataset = ShapesDataset(3)
    dataset.class_names = (r"$5 \foo$", "$", r"\$\foo$")
    report, _ = report_of(dataset)
    assert set(draw_figures(report)) == set(FIGURES)


@pytest.mark.parametrize("metric", ["voc07", "coco"])
def test_every_metric_has_a_report(metric: str):
    report, _ = report_of(ShapesDataset(3), metric)
    page = render_page(report, FIGURES, FIGURES, [])
    assert ("AP small" in page) == (metric == "coco")


@pytest.mark.parametrize("classes", [1, 30])
def test_nothing_found_in_any_number_of_classes_is_drawn(classes: int):
    from PIL import Image

    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}
    truth = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": torch.tensor([1])}
    names = tuple(f"class {i}" for i in range(classes))
    evaluation = score_detections([empty], [truth], names)
    report = make_report([empty], [truth], evaluation, {})
    json.dumps(report.as_dict(), allow_nan=False)
    figures = draw_figures(report, DARK)
    assert all(Image.open(io.BytesIO(figure)).format == "PNG" for figure in figures.values())
    assert figures == draw_figures(report, DARK)


def test_a_broken_object_has_no_size():
    dataset = ShapesDataset(3)
    detections, targets = flawed(dataset)
    evaluation = score_detections(detections, targets, dataset.class_names)
    targets[1]["boxes"][0, 2] = float("nan")
    with pytest.raises(ValueError, match=r"targets\[1\]\['boxes'\]\[0\] is .*nan"):
        make_report(detections, targets, evaluation, {})


def test_the_threshold_is_that_of_the_same_weights(tmp_path: Path):
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"one")
    assert read_threshold(weights) is None
    (tmp_path / "report").mkdir()
    path = tmp_path / "report" / "report.json"
    report = {"score_threshold": 0.25, "weights_sha256": weights_digest(weights)}
    path.write_text(json.dumps(report | {"score_threshold_f1": 0.0}))
    assert read_threshold(weights) is None
    path.write_text(json.dumps(report | {"score_threshold_f1": 0.1}))
    assert read_threshold(weights) == (0.25, path)
    (tmp_path / "report.json").write_text("{")
    assert read_threshold(weights) == (0.25, path)
    weights.write_bytes(b"trained on")
    assert read_threshold(weights) is None
