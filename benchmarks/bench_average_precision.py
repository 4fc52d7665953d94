# SPDX-License-Identifier: BSD-3-Clause
"""Average precision of detections that are there: by VOC's rules of many images, by COCO's."""

import contextlib
import io
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.harness import Contender, SideBySide
from ssd_fast.engine.average_precision import average_precision
from ssd_fast.engine.coco_evaluation import evaluate_coco
from ssd_fast.engine.evaluation import score_detections

Rows = dict[str, Tensor]
CLASSES = 20
DETECTIONS = 200


def make_detections(images: int) -> tuple[list[Rows], list[Rows]]:
    """Images of 1 to 14 objects and 200 detections near them, two in five of another class."""
    g = torch.Generator().manual_seed(0)
    detections, targets = [], []
    for n in torch.randint(1, 15, (images,), generator=g).tolist():
        corner = torch.rand(n, 2, generator=g) * 400
        boxes = torch.cat([corner, corner + 10 + 200 * torch.rand(n, 2, generator=g)], 1)
        labels = torch.randint(1, CLASSES + 1, (n,), generator=g)
        targets.append({"boxes": boxes, "labels": labels})
        near = torch.randint(0, n, (DETECTIONS,), generator=g)
        moved = boxes[near] + 12 * torch.randn(DETECTIONS, 4, generator=g)
        moved[:, 2:] = torch.maximum(moved[:, 2:], moved[:, :2] + 1)
        other = torch.randint(1, CLASSES + 1, (DETECTIONS,), generator=g)
        same = torch.rand(DETECTIONS, generator=g) < 0.6
        found = torch.where(same, labels[near], other)
        scores = torch.rand(DETECTIONS, generator=g)
        detections.append({"boxes": moved, "labels": found, "scores": scores})
    return detections, targets


def test_rules(side_by_side: SideBySide) -> None:
    images = 5000 if side_by_side.timing else 50
    detections, targets = make_detections(images)
    names = tuple(map(str, range(CLASSES)))
    options: dict[str, Any] = {"num_classes": CLASSES + 1}
    area = average_precision(detections, targets, **options).mean

    def between(result: float) -> None:
        assert abs(result - area) < 0.05, "another average is far from the area"

    def is_area(result: float) -> None:
        assert result == area, "another mean"

    side_by_side(
        f"average precision, {images} images of 200 detections",
        [
            Contender(
                "area",
                lambda: average_precision(detections, targets, **options).mean,
                is_area,
            ),
            Contender(
                "voc07",
                lambda: average_precision(detections, targets, method="voc07", **options).mean,
                between,
            ),
            Contender(
                "all that eval prints",
                lambda: score_detections(detections, targets, names).at_50.mean,
                is_area,
            ),
            Contender(
                "all that eval --metric coco prints",
                lambda: score_detections(detections, targets, names, metric="coco").at_50.mean,
                between,
            ),
        ],
        caches=("cold",),
    )


def test_coco(side_by_side: SideBySide) -> None:
    pytest.importorskip("pycocotools", reason="needs pycocotools")
    images = 100 if side_by_side.timing else 10
    detections, targets = make_detections(images)
    expected = pycocotools_ap(detections, targets)

    def equals(result: float) -> None:
        assert abs(result - expected) < 1e-9, f"{result}, where pycocotools has {expected}"

    side_by_side(
        f"COCO's twelve numbers, {images} images of 200 detections",
        [
            Contender(
                "evaluate_coco",
                lambda: evaluate_coco(detections, targets, num_classes=CLASSES + 1).ap,
                equals,
            ),
            Contender(
                "pycocotools",
                lambda: pycocotools_ap(detections, targets),
                equals,
            ),
        ],
        caches=("cold",),
    )


def pycocotools_ap(detections: list[Rows], targets: list[Rows]) -> float:
    """COCOeval's first number, from tensors on."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(images: list[Rows]) -> list[dict[str, Any]]:
        return [
            {"image_id": image, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            | {"area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            | ({} if score is None else {"score": score})
            for image, r in enumerate(images)
            for (x1, y1, x2, y2), label, score in zip(
                r["boxes"].double().tolist(),
                r["labels"].tolist(),
                r["scores"].double().tolist() if "scores" in r else [None] * len(r["labels"]),
                strict=True,
            )
        ]

    truth = COCO()
    truth.dataset = {
        "images": [{"id": image} for image in range(len(targets))],
        "annotations": [{"id": i, **row} for i, row in enumerate(rows(targets), 1)],
        "categories": [{"id": label} for label in range(1, CLASSES + 1)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(rows(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])
