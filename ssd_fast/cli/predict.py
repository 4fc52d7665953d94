# SPDX-License-Identifier: BSD-3-Clause
"""`ssd-fast predict`: boxes drawn on images, and the same as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from torch import Tensor

    from ssd_fast.cli.console import Console
    from ssd_fast.engine.precision import Precision
    from ssd_fast.models.ssd import SSD

__all__ = ["Predict"]


@dataclass(frozen=True)
class Predict:
    """Finds objects in images; writes a picture of each, and detections.json."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Image files."""
    weights: Path
    """File that `train` or `demo` wrote; it holds the model's description too."""
    output: Path = Path("ssd-fast-predictions")
    """Folder for NAME.detections.png and detections.json."""
    threshold: float = 0.5
    """Least score of a detection."""
    nms: Literal["hard", "soft-linear", "soft-gaussian", "diou"] | None = None
    """Suppression of detections that overlap; by default what the weights were saved with."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the model; auto is bfloat16 where the hardware multiplies it."""

    def run(self) -> int:
        """Detects, draws and writes; an image that does not decode is named, and the rest go on."""
        from ssd_fast.cli.extras import require

        require("prediction", "rich", "PIL", "safetensors")
        import torch

        from ssd_fast.cli.console import Console
        from ssd_fast.data.images import read_image
        from ssd_fast.engine.output import output_folder, write_file
        from ssd_fast.engine.precision import choose_precision
        from ssd_fast.engine.weights import load_weights

        if not self.images:
            raise ValueError("name at least one image")
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"--threshold: expected 0 to 1, got {self.threshold}")
        console = Console()
        folder = output_folder(self.output)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model, class_names = load_weights(self.weights, device)
        model.nms = self.nms or model.nms
        precision = choose_precision(device, self.precision)
        console.say(f"{len(class_names)} classes, on {device.type} in {precision}")
        described, failed = [], 0
        for path, name in zip(self.images, _picture_names(self.images), strict=True):
            try:
                image = read_image(path)
            except ValueError as error:
                print(f"ssd-fast: error: {error}", file=sys.stderr)
                failed += 1
                continue
            described.append(
                self._predict(path, image, folder / name, model, class_names, precision, console)
            )
        text = json.dumps({"weights": str(self.weights), "images": described}, indent=2)
        write_file(folder / "detections.json", (text + "\n").encode())
        console.say(f"{len(described)} images: {folder / 'detections.json'}")
        return 2 if failed else 0

    def _predict(
        self,
        path: Path,
        image: Tensor,
        picture: Path,
        model: SSD,
        class_names: tuple[str, ...],
        precision: Precision,
        console: Console,
    ) -> dict[str, Any]:
        """One image: its picture is written, its description returned."""
        from ssd_fast.engine.evaluation import detect_images
        from ssd_fast.engine.output import write_file
        from ssd_fast.engine.pictures import draw_image, png_bytes
        from ssd_fast.engine.prediction import above, describe

        detections = above(detect_images(model, [image], precision=precision)[0], self.threshold)
        drawn = draw_image(image, detections, class_names)
        write_file(picture, png_bytes(drawn))
        console.say(f"{path}: {len(detections['scores'])} objects, {picture}")
        return {
            **describe(str(path), image, detections, class_names),
            "picture": picture.name,
        }


def _picture_names(images: Sequence[Path]) -> list[str]:
    """A name for each picture; images of one name in several folders get a number."""
    names: list[str] = []
    taken: set[str] = set()
    for path in images:
        name, count = f"{path.stem}.detections.png", 1
        while name in taken:
            count += 1
            name = f"{path.stem}-{count}.detections.png"
        taken.add(name)
        names.append(name)
    return names
