# SPDX-License-Identifier: BSD-3-Clause
"""COCO's numbers by pycocotools, of the same tensors."""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["cocoeval"]

Rows = dict[str, Tensor]


def cocoeval(detections: Sequence[Rows], targets: Sequence[Rows], classes: int) -> Any:
    """An accumulated COCOeval; difficult objects are crowds, as in `evaluate_coco`."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in range(len(targets))],
        "annotations": [{"id": i, **row} for i, row in enumerate(_annotations(targets), 1)],
        "categories": [{"id": label} for label in range(1, classes + 1)],
    }
    results = [
        {"image_id": image, "category_id": label, "bbox": box, "score": score}
        for image, rows in enumerate(detections)
        for box, label, score in zip(
            _xywh(rows["boxes"]), rows["labels"].tolist(), rows["scores"].tolist(), strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _annotations(targets: Sequence[Rows]) -> list[dict[str, Any]]:
    """Objects as annotations, all but their ids."""
    rows = []
    for image, target in enumerate(targets):
        boxes, none = _xywh(target["boxes"]), torch.zeros(len(target["labels"]), dtype=torch.bool)
        crowd = target.get("iscrowd", none) | target.get("difficult", none)
        areas = target["area"].tolist() if "area" in target else [w * h for _, _, w, h in boxes]
        columns = boxes, target["labels"].tolist(), areas, crowd.tolist()
        rows += [
            {"image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": many}
            for box, label, area, many in zip(*columns, strict=True)
        ]
    return rows


def _xywh(boxes: Tensor) -> list[list[float]]:
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).double().tolist()
