# SPDX-License-Identifier: BSD-3-Clause
"""Detections of image files as JSON."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["above", "describe"]


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
                "score": round(score, 4),
                "label": label,
                "class": class_names[label - 1],
            }
            for box, score, label in rows
        ],
    }
