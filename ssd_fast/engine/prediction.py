# SPDX-License-Identifier: BSD-3-Clause
"""Detections of image files, a batch at a time, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssd_fast.data.images import read_image
from ssd_fast.engine.evaluation import detect_images
from ssd_fast.engine.precision import Precision
from ssd_fast.models.ssd import SSD

__all__ = ["ImagePrediction", "above", "describe", "predict_files"]


@dataclass(frozen=True)
class ImagePrediction:
    """What was found in a file.

    Attributes:
        path: the file.
        image: (3, H, W) uint8, upright; None if the file does not decode.
        detections: boxes (K, 4) in pixels of `image`, scores (K,), labels (K,).
        error: why the file does not decode, with its name; None if it does.
    """

    path: Path
    image: Tensor | None
    detections: dict[str, Tensor]
    error: str | None = None


def predict_files(
    model: SSD,
    paths: Iterable[Path],
    *,
    precision: Precision,
    score_threshold: float,
    batch_size: int = 8,
) -> Iterator[ImagePrediction]:
    """Detects objects in image files.

    Images are turned as their EXIF orientation says, and so are the boxes.

    Args:
        model: in evaluation mode.
        paths: the files.
        precision: arithmetic of the model.
        score_threshold: least score of a detection.
        batch_size: images at a time.

    Yields:
        One prediction a file, in the order of the files; of a file that does not decode, its error.
    """
    waiting: list[ImagePrediction] = []
    readable = 0
    for path in paths:
        try:
            waiting.append(ImagePrediction(path, read_image(path), {}))
            readable += 1
        except ValueError as error:
            waiting.append(ImagePrediction(path, None, {}, str(error)))
        if readable == batch_size:
            yield from _detect(model, waiting, precision, score_threshold)
            waiting, readable = [], 0
    yield from _detect(model, waiting, precision, score_threshold)


def _detect(
    model: SSD, batch: list[ImagePrediction], precision: Precision, score_threshold: float
) -> Iterator[ImagePrediction]:
    images = [prediction.image for prediction in batch if prediction.image is not None]
    found = iter(detect_images(model, images, precision=precision) if images else ())
    for prediction in batch:
        if prediction.image is None:
            yield prediction
        else:
            detections = above(next(found), score_threshold)
            yield ImagePrediction(prediction.path, prediction.image, detections)


def above(detections: dict[str, Tensor], threshold: float) -> dict[str, Tensor]:
    """The detections of an image with at least a score.

    Args:
        detections: boxes (K, 4), scores (K,), labels (K,).
        threshold: least score.

    Returns:
        The same keys, fewer rows.
    """
    keep = detections["scores"] >= threshold
    return {name: value[keep] for name, value in detections.items()}


def describe(
    file: str, image: Tensor, detections: dict[str, Tensor], class_names: tuple[str, ...]
) -> dict[str, Any]:
    """An image's detections for a JSON file.

    Args:
        file: name of the image.
        image: (3, H, W) uint8.
        detections: boxes (K, 4) in pixels of the image, scores (K,), labels (K,).
        class_names: label i + 1 is `class_names[i]`.

    Returns:
        file, width, height, and a list of box (x1, y1, x2, y2), score, label and class name.
    """
    rows = zip(
        detections["boxes"].to(torch.float64).tolist(),
        detections["scores"].to(torch.float64).tolist(),
        detections["labels"].tolist(),
        strict=True,
    )
    return {
        "file": file,
        "width": image.shape[2],
        "height": image.shape[1],
        "detections": [
            {
                "box": [round(v, 2) for v in box],
                "score": round(score, 6),
                "label": label,
                "class": class_names[label - 1],
            }
            for box, score, label in rows
        ],
    }
