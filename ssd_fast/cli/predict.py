# SPDX-License-Identifier: BSD-3-Clause
"""`ssd-fast predict`: boxes drawn on images, and as files for other tools."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from ssd_fast.cli.console import Console
    from ssd_fast.engine.prediction import ImagePrediction
    from ssd_fast.engine.prediction_formats import COCOIds

__all__ = ["Predict"]

_FORMATS = ("json", "jsonl", "coco", "voc", "pictures")
_THRESHOLD = 0.5  # without a report that has chosen one
_LONGEST_NAME = 200  # bytes of an image's name: files have 255, and what is added needs some


@dataclass(frozen=True)
class Predict:
    """Finds objects in images; writes a picture of each, and detections.json."""

    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")]
    """Files, folders, patterns such as 'frames/*.jpg', or - for a list of them on standard input.
    The images of a folder come in natural order: frame 2 before frame 10."""
    weights: Path
    """File that `train` or `demo` wrote; it holds the model's description too."""
    output: Path = Path("ssd-fast-predictions")
    """Folder for what is written. Files of the same name are replaced, such as detections.json;
    pictures and annotations of other images, from earlier runs, stay."""
    formats: str = "json,pictures"
    """Any of json (detections.json), jsonl (one line an image), coco (coco_results.json and
    coco_images.json), voc (voc/NAME.xml, for LabelImg) and pictures (NAME.detections.png)."""
    score_threshold: Annotated[float | None, tyro.conf.arg(aliases=["--threshold"])] = None
    """Least score of a detection; by default what the report of `ssd-fast eval` beside the weights
    chose by F1, or else 0.5."""
    batch_size: int = 8
    """Images at a time."""
    coco_annotations: Path | None = None
    """COCO annotation file whose ids of images and categories coco_results.json takes."""
    nms: Literal["hard", "soft-linear", "soft-gaussian", "diou"] | None = None
    """Suppression of detections that overlap; by default what the weights were saved with."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the model; auto is bfloat16 where the hardware multiplies it."""

    def run(self) -> int:
        """Detects and writes; an image that does not decode is named, and the rest go on."""
        from ssd_fast.cli.extras import require

        require("prediction", "rich", "PIL", "safetensors")
        import torch

        from ssd_fast.cli.console import Console
        from ssd_fast.cli.image_paths import find_images
        from ssd_fast.engine.output import output_folder
        from ssd_fast.engine.precision import choose_precision
        from ssd_fast.engine.prediction import predict_files
        from ssd_fast.engine.weights import load_weights

        formats = self._check()
        console = Console()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model, class_names = load_weights(self.weights, device)
        model.nms = self.nms or model.nms
        ids = self._ids(class_names)
        writer = _Writer(output_folder(self.output), formats, class_names, ids, console)
        precision = choose_precision(device, self.precision)
        threshold, chosen = self._threshold()
        console.say(
            f"{len(class_names)} classes, on {device.type} in {precision}; scores of {threshold:g}"
            f" and more ({chosen})"
        )
        if isinstance(sys.stdin, TextIOWrapper):  # names of files need be no UTF-8
            sys.stdin.reconfigure(errors="surrogateescape")
        paths, problems = find_images(self.images, sys.stdin)
        predictions = predict_files(
            model,
            paths,
            precision=precision,
            score_threshold=threshold,
            batch_size=self.batch_size,
        )
        failed = writer.write_all(predictions, str(self.weights), threshold)
        for problem in problems:
            _complain(problem)
        return 2 if failed or problems else 0

    def _check(self) -> frozenset[str]:
        """Raises ValueError for an option out of range; returns the formats."""
        if not self.images:
            raise ValueError("name at least one image, folder or pattern, or - for a list on stdin")
        if self.score_threshold is not None and not 0.0 <= self.score_threshold <= 1.0:
            raise ValueError(f"--score-threshold: expected 0 to 1, got {self.score_threshold}")
        if self.batch_size < 1:
            raise ValueError(f"--batch-size: expected 1 or more, got {self.batch_size}")
        formats = frozenset(name.strip() for name in self.formats.split(","))
        if not formats <= set(_FORMATS):
            raise ValueError(
                f"--formats: expected some of {','.join(_FORMATS)}, got {self.formats!r}"
            )
        if self.coco_annotations is not None and "coco" not in formats:
            raise ValueError("--coco-annotations: has no use without coco among the --formats")
        return formats

    def _ids(self, class_names: tuple[str, ...]) -> COCOIds:
        """Numbers of images and classes; raises ValueError for annotations that have none."""
        from ssd_fast.engine.prediction_formats import COCOIds

        path = self.coco_annotations
        if path is None:
            return COCOIds()
        try:
            return COCOIds.read(path, class_names)
        except OSError as error:
            reason = f"{path} cannot be read: {error.strerror}"
            raise ValueError(f"--coco-annotations: {reason}") from error
        except ValueError as error:
            raise ValueError(f"--coco-annotations: {error}") from error

    def _threshold(self) -> tuple[float, str]:
        """The least score, and who chose it."""
        from ssd_fast.engine.report import read_threshold

        if self.score_threshold is not None:
            return self.score_threshold, "as asked"
        found = read_threshold(self.weights)
        if found is None:
            return _THRESHOLD, "the default: no report beside the weights has chosen another"
        return found[0], f"best F1 in {found[1]}"


class _Writer:
    """Writes predictions in some formats."""

    def __init__(
        self,
        folder: Path,
        formats: frozenset[str],
        class_names: tuple[str, ...],
        ids: COCOIds,
        console: Console,
    ) -> None:
        self.folder, self.formats = folder, formats
        self.class_names, self.ids, self.console = class_names, ids, console
        self.described: list[dict[str, Any]] = []
        self._names: set[str] = set()
        self._written: set[Path] = set()

    def write_all(
        self, predictions: Iterable[ImagePrediction], weights: str, threshold: float
    ) -> int:
        """Writes them all; returns how many files could not be read or written about."""
        from ssd_fast.engine.prediction_formats import json_document, json_lines

        failed = 0
        for prediction in predictions:
            if prediction.error is not None:
                _complain(prediction.error)
                failed += 1
            else:
                self._write_image(prediction)
        head = {"weights": weights, "score_threshold": threshold}
        if "json" in self.formats:
            self._write("detections.json", json_document(self.described, **head))
        if "jsonl" in self.formats:
            self._write("detections.jsonl", json_lines(self.described))
        if "coco" in self.formats:
            failed += self._write_coco()
        self.console.say(f"{len(self.described)} images: {self.folder}{self._earlier()}")
        return failed

    def _earlier(self) -> str:
        """Says that there are files of earlier runs: several may share a folder on purpose."""
        from ssd_fast.cli.image_paths import PICTURE_SUFFIX

        found = {*self.folder.glob(f"*{PICTURE_SUFFIX}"), *self.folder.glob("voc/*.xml")}
        count = len(found - self._written)
        return f"; of earlier runs it keeps {count} more files" if count else ""

    def _write_image(self, prediction: ImagePrediction) -> None:
        """The files of one image, and a line about it."""
        from ssd_fast.cli.image_paths import PICTURE_SUFFIX
        from ssd_fast.engine.pictures import draw_image, png_bytes
        from ssd_fast.engine.prediction import describe
        from ssd_fast.engine.prediction_formats import voc_xml

        path, image, detections = prediction.path, prediction.image, prediction.detections
        assert image is not None
        described = describe(str(path), image, detections, self.class_names)
        name = self._name(path.stem)
        if "voc" in self.formats:
            (self.folder / "voc").mkdir(exist_ok=True)
            self._write(f"voc/{name}.xml", voc_xml(described))
        if "pictures" in self.formats:
            picture = draw_image(image, detections, self.class_names)
            self._write(f"{name}{PICTURE_SUFFIX}", png_bytes(picture))
            described["picture"] = f"{name}{PICTURE_SUFFIX}"
        self.described.append(described)
        self.console.say(f"{path}: {len(detections['scores'])} objects")

    def _write_coco(self) -> int:
        """COCO's results of the images that the annotations know; returns how many they do not."""
        from ssd_fast.engine.prediction_formats import coco_images, coco_results

        known = []
        owners: dict[int, str] = {}
        for image in self.described:
            file = image["file"]
            try:
                (number,) = self.ids.of_images([file])
                # Without annotations the numbers of all files are given together, each its own.
                if self.ids.images is not None and owners.setdefault(number, file) != file:
                    raise ValueError(f"{file}: {owners[number]} has the same id, {number}")
                known.append(image)
            except ValueError as error:
                _complain(f"{error}; it is not in coco_results.json")
        self._write("coco_results.json", coco_results(known, self.ids))
        self._write("coco_images.json", coco_images(known, self.class_names, self.ids))
        return len(self.described) - len(known)

    def _write(self, name: str, content: str | bytes) -> None:
        from ssd_fast.engine.output import write_file

        path = self.folder / name
        write_file(path, content.encode() if isinstance(content, str) else content)
        self._written.add(path)

    def _name(self, stem: str) -> str:
        """The stem, or with a number if images of several folders share it; cut if it is long."""
        whole = os.fsencode(stem)
        if len(whole) > _LONGEST_NAME:
            stem = whole[:_LONGEST_NAME].decode(errors="ignore")
        name, count = stem, 1
        while name in self._names:
            count += 1
            name = f"{stem}-{count}"
        self._names.add(name)
        return name


def _complain(problem: str) -> None:
    print(f"ssd-fast: error: {problem}", file=sys.stderr)
