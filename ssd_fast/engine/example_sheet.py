# SPDX-License-Identifier: BSD-3-Clause
"""What a model finds on the first images of a dataset, as one picture."""

from __future__ import annotations

import torch
from torch import Tensor

from ssd_fast.data import BrokenSample
from ssd_fast.engine.dataset_items import DetectionDataset, read_item
from ssd_fast.engine.evaluation import detect_images
from ssd_fast.engine.pictures import draw_grid, draw_image, png_bytes
from ssd_fast.engine.precision import Precision
from ssd_fast.engine.prediction import above
from ssd_fast.models.ssd import SSD

__all__ = ["draw_examples"]

_COUNT, _COLUMNS = 8, 4
_SIDE = 320  # of a picture in the sheet, in pixels
_SCORE = 0.3
_LEGEND = 8  # classes; the boxes carry their names


def draw_examples(
    model: SSD, dataset: DetectionDataset, *, precision: Precision, caption: str
) -> bytes | None:
    """Draws detections and the truth on the first images of a dataset.

    Args:
        model: put in evaluation mode.
        dataset: images and their objects.
        precision: arithmetic of the model.
        caption: a line below.

    Returns:
        A PNG file, or None if no image decodes.
    """
    samples = _first(dataset)
    if not samples:
        return None
    model.eval()
    names = dataset.class_names
    found = detect_images(model, [image for image, _ in samples], precision=precision)
    pictures = []
    for (image, boxes), detections in zip(samples, found, strict=True):
        # In the corner of a white square, for the pictures of a sheet are of one size.
        side = max(image.shape[1:])
        square = torch.full((3, side, side), 255, dtype=torch.uint8, device="cpu")
        square[:, : image.shape[1], : image.shape[2]] = image
        shown = above(detections, _SCORE)
        pictures.append(draw_image(square, shown, names, truth=boxes, scale=_SIDE / side))
    legend = names if len(names) <= _LEGEND else ()
    caption = f"{caption}, scores of {_SCORE} and more"
    return png_bytes(
        draw_grid(pictures, legend, columns=min(_COLUMNS, len(pictures)), caption=caption)
    )


def _first(dataset: DetectionDataset) -> list[tuple[Tensor, Tensor]]:
    """The first images that decode, with their boxes."""
    samples: list[tuple[Tensor, Tensor]] = []
    for index in range(len(dataset)):
        try:
            image, target = read_item(dataset, index)
        except BrokenSample:
            continue
        samples.append((image, target["boxes"]))
        if len(samples) == _COUNT:
            break
    return samples
