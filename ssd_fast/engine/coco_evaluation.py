# SPDX-License-Identifier: BSD-3-Clause
"""COCO's twelve numbers, by faster-coco-eval: the rules of pycocotools in C++."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssd_fast.data.extra import missing_extra
from ssd_fast.engine.detection_matching import DetectionTable, JoinedImages, join_images, tabulate

__all__ = ["COCOEvaluation", "evaluate_coco", "evaluate_joined"]


@dataclass(frozen=True)
class COCOEvaluation:
    """What COCO reports. A number that no object decides is NaN.

    Attributes:
        per_class: (num_classes - 1,) float64, `ap` of each class.
        ap: average precision, the mean over IoU 0.5, 0.55, ..., 0.95 and classes.
        ap_50: the same at IoU 0.5.
        ap_75: the same at IoU 0.75.
        ap_small: of objects of at most 32 x 32 pixels.
        ap_medium: of objects between.
        ap_large: of objects of at least 96 x 96 pixels.
        ar_1: average recall, given one detection an image and class.
        ar_10: the same, given ten.
        ar_100: the same, given a hundred.
        ar_small: average recall of small objects, given a hundred.
        ar_medium: the same of medium ones.
        ar_large: the same of large ones.
    """

    per_class: Tensor
    ap: float
    ap_50: float
    ap_75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar_1: float
    ar_10: float
    ar_100: float
    ar_small: float
    ar_medium: float
    ar_large: float

    def metrics(self) -> dict[str, Any]:
        """The numbers, as JSON has them: NaN is null."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["per_class"] = [_number(value) for value in self.per_class.tolist()]
        return {k: _number(v) if isinstance(v, float) else v for k, v in values.items()}


def evaluate_coco(
    detections: Sequence[dict[str, Tensor]],
    targets: Sequence[dict[str, Tensor]],
    *,
    num_classes: int,
) -> COCOEvaluation:
    """COCO's numbers, equal to those of pycocotools.

    Args:
        detections: one dict an image: boxes (D, 4) corners, scores (D,), labels (D,).
        targets: one dict an image: boxes (N, 4) corners in pixels, labels (N,), and optionally
            ignore or iscrowd (N,) bool: regions of many objects; difficult (N,) bool: the same,
            since COCO knows no difficult objects; area (N,): of the objects, where not that of the
            boxes.
        num_classes: classes with background, which is label 0.

    Returns:
        The numbers.

    Raises:
        ModuleNotFoundError: faster-coco-eval is missing; names the `pip install`.
        ValueError: as for `average_precision`.
    """
    return evaluate_joined(join_images(detections, targets, num_classes))


def evaluate_joined(joined: JoinedImages) -> COCOEvaluation:
    """The same of images that are joined already.

    Args:
        joined: from `join_images`.

    Returns:
        The numbers.

    Raises:
        ModuleNotFoundError: as for `evaluate_coco`.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ModuleNotFoundError as error:
        raise missing_extra("COCO's average precision", error) from error
    num_classes = joined.num_classes
    table = tabulate(joined, difficult_is_region=True)
    if table.object_labels.numel() == 0:
        nothing = torch.full((num_classes - 1,), torch.nan, dtype=torch.float64)
        return COCOEvaluation(nothing, *[float("nan")] * 12)
    shown = torch.cat([table.images, table.object_images, table.region_images]).unique()
    images = [{"id": image} for image in shown.tolist()]
    categories = [{"id": label, "name": str(label)} for label in range(1, num_classes)]
    with _no_garbage_collection():
        truth, found = (
            COCO({"images": images, "annotations": rows, "categories": categories})
            for rows in (_truth(table), _found(table))
        )
        evaluation = COCOeval_faster(truth, found, "bbox", print_function=_say_nothing)
        evaluation.run()
    numbers = [float(value) if value >= 0 else float("nan") for value in evaluation.stats[:12]]
    # (thresholds, recalls, classes, sizes, limits), -1 for a class without objects
    precision = torch.as_tensor(evaluation.eval["precision"])[:, :, :, 0, -1]
    per_class = precision.flatten(0, 1).mean(0)
    per_class[per_class < 0] = torch.nan
    return COCOEvaluation(per_class, *numbers)


def _truth(table: DetectionTable) -> list[dict[str, Any]]:
    """The objects and the crowds as COCO annotations."""
    count = table.object_labels.numel()
    boxes = torch.cat([table.object_boxes, table.region_boxes])
    images = torch.cat([table.object_images, table.region_images]).tolist()
    labels = torch.cat([table.object_labels, table.region_labels]).tolist()
    areas = table.object_areas.tolist() + [0.0] * table.region_labels.numel()
    rows = zip(images, labels, _corner_size(boxes), areas, strict=True)
    return [
        {
            "id": i + 1,
            "image_id": image,
            "category_id": label,
            "bbox": box,
            "area": area,
            "iscrowd": int(i >= count),
        }
        for i, (image, label, box, area) in enumerate(rows)
    ]


def _found(table: DetectionTable) -> list[dict[str, Any]]:
    """The detections as COCO annotations with a score."""
    # A comparison with NaN would be taken for an overlap.
    boxes = torch.where(table.boxes.isfinite().all(1, keepdim=True), table.boxes, 0.0)
    rows = zip(
        table.images.tolist(),
        table.labels.tolist(),
        _corner_size(boxes),
        table.scores.tolist(),
        strict=True,
    )
    return [
        {
            "id": i,
            "image_id": image,
            "category_id": label,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            "score": score,
        }
        for i, (image, label, box, score) in enumerate(rows, 1)
    ]


def _corner_size(boxes: Tensor) -> list[list[float]]:
    """Corners as x, y, width, height; an inverted side is none."""
    size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    rows: list[list[float]] = torch.cat([boxes[:, :2], size], 1).tolist()
    return rows


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Spares millions of small dictionaries, none of them garbage, from being searched for it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _say_nothing(*_: object) -> None:
    """Where the library's progress goes."""


def _number(value: float) -> float | None:
    return None if value != value else round(value, 6)
