# SPDX-License-Identifier: BSD-3-Clause
"""The files of a report: the page, its figures and its numbers, in one folder."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ssd_fast.data.default_device import cpu_by_default
from ssd_fast.engine.dataset_items import DetectionDataset
from ssd_fast.engine.output import write_file
from ssd_fast.engine.pictures import draw_image, png_bytes
from ssd_fast.engine.prediction import above
from ssd_fast.engine.report import Report
from ssd_fast.engine.report_figures import DARK, LIGHT, draw_figures
from ssd_fast.engine.report_page import Exhibit, render_page

__all__ = ["write_report"]

_SIDE = 640  # pixels of a picture's longer side
_PICTURE = re.compile(r"worst_image_\d+\.png")


@cpu_by_default
def write_report(
    folder: Path,
    report: Report,
    dataset: DetectionDataset,
    detections: Sequence[dict[str, Tensor]],
) -> list[Path]:
    """Writes report.html, report.json, and each figure and picture as a PNG file.

    Pictures of an earlier report in the folder that this one has not so many of are removed.

    Args:
        folder: where; it exists.
        report: what to write.
        dataset: the images with their objects; only those with most errors are read again. Their
            names are those of its `paths`, if it has some.
        detections: one dict an image of the dataset.

    Returns:
        The files, the page first.

    Raises:
        OSError: a file cannot be written or removed.
    """
    paths = getattr(dataset, "paths", None)
    files = None if paths is None else [str(path) for path in paths]
    light, dark = draw_figures(report, LIGHT), draw_figures(report, DARK)
    exhibits, pictures = [], {}
    for place, i in enumerate(report.worst, 1):
        image, target = dataset[i]
        found = above(detections[i], report.score_threshold)
        scale = _SIDE / max(image.shape[-2:])
        names = report.evaluation.class_names
        picture = draw_image(image, found, names, truth=target["boxes"], scale=scale)
        pictures[f"worst_image_{place}.png"] = png_bytes(picture)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=82)
        errors = report.describe_image(i, files)
        text = ", ".join(f"{errors[kind]} {kind}" for kind in ("missed", "confused", "false"))
        title = Path(errors["file"]).name if files else f"image {i}"
        exhibits.append(Exhibit(buffer.getvalue(), title, text))
    page = render_page(report, light, dark, exhibits)
    contents = {
        "report.html": page.encode(errors="backslashreplace"),  # files' names may be no UTF-8
        "report.json": (json.dumps(report.as_dict(files)) + "\n").encode(),
        **{f"{name}.png": content for name, content in light.items()},
        **pictures,
    }
    for name, content in contents.items():
        write_file(folder / name, content)
    for path in folder.glob("worst_image_*.png"):
        if path.name not in contents and _PICTURE.fullmatch(path.name):
            path.unlink(missing_ok=True)
    return [folder / name for name in contents]
