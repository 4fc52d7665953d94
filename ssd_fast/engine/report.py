# SPDX-License-Identifier: BSD-3-Clause
"""report: everything that an evaluation says, as numbers, figures and one page."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssd_fast.data.default_device import cpu_by_default
from ssd_fast.engine.average_precision import AveragePrecision, Method, score_images
from ssd_fast.engine.confusion import Confusion, count_confusion
from ssd_fast.engine.evaluation import Evaluation
from ssd_fast.engine.joined_images import join_images
from ssd_fast.engine.score_thresholds import ScoreThresholds, choose_thresholds

__all__ = ["Report", "SizeBreakdown", "make_report", "read_threshold", "weights_digest"]

_FORMAT = 1
_IOU = 0.5
_WORST = 8
_SAMPLE = 10  # of F1's thresholds the file holds each tenth
# COCO's sizes, as areas in pixels.
_SIZES = (
    ("small", 0.0, 32.0**2),
    ("medium", 32.0**2, 96.0**2),
    ("large", 96.0**2, 1e10),
)


@dataclass(frozen=True)
class SizeBreakdown:
    """How well the objects of one size are found.

    Attributes:
        name: "small", "medium" or "large".
        least: area in pixels.
        most: area in pixels.
        at_50: average precision at IoU 0.5 on objects of the size alone.
        recall: share of them that is found at the report's score threshold; NaN if there are none.
    """

    name: str
    least: float
    most: float
    at_50: AveragePrecision
    recall: float

    @property
    def objects(self) -> int:
        """How many there are."""
        return sum(curve.num_objects for curve in self.at_50.curves)


@dataclass(frozen=True)
class Report:
    """An evaluation and what follows from it.

    Attributes:
        evaluation: average precision.
        thresholds: from which score on detections are worth showing.
        confusion: at `score_threshold` and IoU 0.5.
        sizes: by size of the objects.
        worst: indices of the images with most errors, those first.
        source: what was evaluated: weights, their digest, data.
    """

    evaluation: Evaluation
    thresholds: ScoreThresholds
    confusion: Confusion
    sizes: tuple[SizeBreakdown, ...]
    worst: tuple[int, ...]
    source: dict[str, str]

    @property
    def score_threshold(self) -> float:
        """The one for all classes."""
        return float(self.thresholds.grid[self.thresholds.overall])

    def class_rows(self) -> list[dict[str, Any]]:
        """A row a class: its average precision, and what F1's threshold makes of it."""
        evaluation, chosen = self.evaluation, self.thresholds
        coco = evaluation.coco
        rows = []
        for i, (name, curve) in enumerate(
            zip(evaluation.class_names, evaluation.at_50.curves, strict=True)
        ):
            at = int(chosen.per_class[i])
            row = {
                "name": name,
                "objects": curve.num_objects,
                "ap_50": _number(evaluation.at_50.per_class[i]),
                "ap_75": _number(evaluation.at_75.per_class[i]),
            }
            if coco is not None:
                row["ap"] = _number(coco.per_class[i])
            row |= {
                "score_threshold": float(chosen.grid[at]),
                "f1": _number(chosen.f1[i, at]),
                "precision": _number(chosen.precision[i, at]),
                "recall": _number(chosen.recall[i, at]),
            }
            rows.append(row)
        return rows

    def as_dict(self, files: Sequence[str] | None = None) -> dict[str, Any]:
        """All of it for a JSON file; what no object decides is null.

        Args:
            files: the images' names, if they have any.
        """
        names = self.evaluation.class_names
        chosen = self.thresholds
        return {
            "format": _FORMAT,
            **self.source,
            "metrics": self.evaluation.metrics(),
            "score_threshold": self.score_threshold,
            "score_threshold_f1": _number(chosen.mean_f1[chosen.overall]),
            "classes": self.class_rows(),
            "sizes": [
                {
                    "name": size.name,
                    "least_area": size.least,
                    "largest_area": size.most,
                    "objects": size.objects,
                    "map_50": _number(size.at_50.mean),
                    "recall": _number(size.recall),
                }
                for size in self.sizes
            ],
            "confusion": {
                "iou_threshold": _IOU,
                "score_threshold": self.score_threshold,
                "classes": ["background", *names],
                "counts": self.confusion.counts.tolist(),
            },
            "curves": {
                name: _sampled(curve.precision, curve.recall)
                for name, curve in zip(names, self.evaluation.at_50.curves, strict=True)
            },
            "f1": {
                "score_thresholds": chosen.grid[::_SAMPLE].tolist(),
                **{
                    name: [_number(v) for v in row[::_SAMPLE]]
                    for name, row in zip(names, chosen.f1, strict=True)
                },
            },
            "worst_images": [self.describe_image(i, files) for i in self.worst],
        }

    def describe_image(self, image: int, files: Sequence[str] | None) -> dict[str, Any]:
        """What went wrong in an image."""
        name = {} if files is None else {"file": files[image]}
        counts = {
            kind: int(getattr(self.confusion, kind)[image])
            for kind in ("missed", "confused", "false")
        }
        return {"index": image, **name, **counts}


@cpu_by_default
def make_report(
    detections: Sequence[dict[str, Tensor]],
    targets: Sequence[dict[str, Tensor]],
    evaluation: Evaluation,
    source: dict[str, str],
) -> Report:
    """Works out what a report shows.

    Args:
        detections: one dict an image, as they were scored.
        targets: one dict an image, boxes in pixels.
        evaluation: of them.
        source: what was evaluated, for the record.

    Returns:
        The report.

    Raises:
        ValueError: as for `average_precision`.
    """
    num_classes = len(evaluation.class_names) + 1
    thresholds = choose_thresholds(evaluation.at_50.curves)
    score = float(thresholds.grid[thresholds.overall])
    joined = join_images(detections, targets, num_classes)
    confusion = count_confusion(joined, score_threshold=score, iou_threshold=_IOU)
    methods: dict[str, Method] = {"voc": "area", "voc07": "voc07", "coco": "coco"}
    sizes = []
    for name, least, most in _SIZES:
        (result,) = score_images(joined, [_IOU], methods[evaluation.metric], (least, most))
        sizes.append(SizeBreakdown(name, least, most, result, _recall(result, score)))
    errors = confusion.missed + confusion.false + confusion.confused
    order = errors.argsort(descending=True, stable=True)[:_WORST]
    worst = tuple(order[errors[order] > 0].tolist())
    return Report(evaluation, thresholds, confusion, tuple(sizes), worst, source)


def weights_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, by which a report knows the weights that it is about."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_threshold(weights: str | os.PathLike[str]) -> tuple[float, Path] | None:
    """The score threshold that an evaluation of these weights chose.

    Args:
        weights: the file; `report.json` is looked for beside it and one folder deeper.

    Returns:
        The threshold and the report, or None: there is no report, none about these weights, or one
        in which no threshold finds anything.
    """
    folder = Path(weights).parent
    found = [folder / "report.json", *sorted(folder.glob("*/report.json"))]
    digest = None
    for path in found:
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            threshold, about = float(report["score_threshold"]), report["weights_sha256"]
            if not report.get("score_threshold_f1", 1.0):
                continue
        except (OSError, ValueError, KeyError, TypeError):
            continue
        digest = digest or weights_digest(weights)
        if about == digest and 0.0 <= threshold <= 1.0:
            return threshold, path
    return None


def _recall(result: AveragePrecision, score: float) -> float:
    """Share of the objects of all classes that detections of at least a score find."""
    found, objects = 0.0, 0
    for curve in result.curves:
        count = int((curve.scores >= score).sum())
        if curve.num_objects and count:
            found += float(curve.recall[count - 1]) * curve.num_objects
        objects += curve.num_objects
    return found / objects if objects else float("nan")


def _sampled(precision: Tensor, recall: Tensor) -> dict[str, list[float | None]]:
    """The envelope of a curve at 101 recalls, 0 where the curve does not reach."""
    at = torch.arange(101, dtype=torch.float64) / 100
    if recall.isnan().any():
        return {"recall": [], "precision": []}
    envelope = torch.cat([precision.flip(0).cummax(0).values.flip(0), precision.new_zeros(1)])
    values = envelope[torch.searchsorted(recall.contiguous(), at)]
    return {"recall": at.tolist(), "precision": [_number(value) for value in values]}


def _number(value: Tensor | float) -> float | None:
    value = float(value)
    return None if value != value else round(value, 6)
