# SPDX-License-Identifier: BSD-3-Clause
"""Detections of a dataset, and how good they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from ssd_fast.data import BrokenSample
from ssd_fast.engine.average_precision import (
    COCO_THRESHOLDS,
    AveragePrecision,
    Method,
    score_images,
)
from ssd_fast.engine.coco_evaluation import COCOEvaluation, evaluate_joined
from ssd_fast.engine.dataset_items import DetectionDataset, read_truth
from ssd_fast.engine.joined_images import join_images
from ssd_fast.engine.precision import Precision
from ssd_fast.models.ssd import SSD

__all__ = ["Evaluation", "Metric", "detect_dataset", "detect_images", "score_detections"]

Metric: TypeAlias = Literal["voc", "voc07", "coco"]

_METHODS: dict[Metric, Method] = {"voc": "area", "voc07": "voc07", "coco": "coco"}


@dataclass(frozen=True)
class Evaluation:
    """Average precision on a dataset.

    Attributes:
        class_names: in the order of `at_50.per_class`.
        at_50: at IoU 0.5, with the precision-recall curves.
        at_75: at IoU 0.75.
        mean: over IoU 0.5, 0.55, ..., 0.95 and classes.
        images: how many were evaluated.
        metric: whose rules `at_50` and `at_75` follow; `mean` is COCO's always.
        coco: all that COCO reports, where the metric is COCO's.
    """

    class_names: tuple[str, ...]
    at_50: AveragePrecision
    at_75: AveragePrecision
    mean: float
    images: int
    metric: Metric = "voc"
    coco: COCOEvaluation | None = None

    def metrics(self) -> dict[str, Any]:
        """The numbers, as JSON has them: a class without objects is null."""
        coco = {} if self.coco is None else {"coco": self.coco.metrics()}
        return {
            "metric": self.metric,
            "map_50": _number(self.at_50.mean),
            "map_75": _number(self.at_75.mean),
            "map": _number(self.mean),
            "ap_50_per_class": {
                name: _number(value)
                for name, value in zip(self.class_names, self.at_50.per_class.tolist(), strict=True)
            },
            "images": self.images,
            **coco,
        }


@torch.inference_mode()
def detect_images(
    model: SSD, images: Sequence[Tensor], *, precision: Precision
) -> list[dict[str, Tensor]]:
    """Detects objects in a batch of images.

    Args:
        model: in evaluation mode.
        images: (3, H, W) uint8 each, of any sizes.
        precision: arithmetic of the model.

    Returns:
        One dict an image, on the CPU: boxes (K, 4) float32 in pixels of that image, scores (K,),
        best first, labels (K,).
    """
    device = next(model.parameters()).device
    with precision.autocast(device):
        found: list[dict[str, Tensor]] = model([image.to(device) for image in images])
    return [{name: value.cpu() for name, value in detections.items()} for detections in found]


def detect_dataset(
    model: SSD,
    dataset: DetectionDataset,
    *,
    precision: Precision,
    batch_size: int = 16,
    on_broken: Callable[[int, BrokenSample], object] | None = None,
) -> Iterator[tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]]:
    """Detects objects in every image of a dataset, a batch at a time.

    Args:
        model: put in evaluation mode.
        dataset: images and their objects.
        precision: arithmetic of the model.
        batch_size: images at a time.
        on_broken: is called with the index of an image that does not decode, which is left out;
            None stops there.

    Returns:
        An iterator over detections and targets of the next images, boxes in pixels. It raises what
        `read_truth` does, but for BrokenSample where `on_broken` is called.

    Raises:
        ValueError: a batch size below 1.
    """
    if batch_size < 1:  # before the first batch is asked for, which may be much later
        raise ValueError(f"batch_size: expected 1 or more, got {batch_size}")
    return _detect_batches(model, dataset, precision, batch_size, on_broken)


def _detect_batches(
    model: SSD,
    dataset: DetectionDataset,
    precision: Precision,
    batch_size: int,
    on_broken: Callable[[int, BrokenSample], object] | None,
) -> Iterator[tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]]:
    """What `detect_dataset` returns."""
    model.eval()
    for start in range(0, len(dataset), batch_size):
        stop = min(start + batch_size, len(dataset))
        samples = []
        for i in range(start, stop):
            try:
                samples.append(read_truth(dataset, i))
            except BrokenSample as error:
                if on_broken is None:
                    raise
                on_broken(i, error)
        images = [image for image, _ in samples]
        found = detect_images(model, images, precision=precision) if images else []
        yield found, [target for _, target in samples]


def score_detections(
    detections: Sequence[dict[str, Tensor]],
    targets: Sequence[dict[str, Tensor]],
    class_names: tuple[str, ...],
    *,
    metric: Metric = "voc",
) -> Evaluation:
    """Average precision of detections.

    Args:
        detections: one dict an image: boxes, scores, labels.
        targets: one dict an image: boxes in the same unit, labels, and what `average_precision`
            takes beside them.
        class_names: label i + 1 is `class_names[i]`.
        metric: "voc" (area under the curve), "voc07" (eleven points) or "coco".

    Returns:
        The evaluation.

    Raises:
        ValueError: another metric, or as for `average_precision`.
    """
    if metric not in _METHODS:
        raise ValueError(f"metric: expected {', '.join(_METHODS)}, got {metric!r}")
    num_classes = len(class_names) + 1
    joined = join_images(detections, targets, num_classes)
    at_50, at_75 = score_images(joined, (0.5, 0.75), _METHODS[metric])
    if metric == "coco":
        coco = evaluate_joined(joined)
        return Evaluation(class_names, at_50, at_75, coco.ap, len(targets), metric, coco)
    strict = score_images(joined, COCO_THRESHOLDS, "coco")
    mean = sum(result.mean for result in strict) / len(strict)
    return Evaluation(class_names, at_50, at_75, mean, len(targets), metric)


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if value != value else round(value, 6)
