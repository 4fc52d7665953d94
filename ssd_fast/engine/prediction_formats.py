# SPDX-License-Identifier: BSD-3-Clause
"""Predictions as other tools read them: JSON, COCO's results, VOC's annotations.

All take the descriptions that `describe` makes, and give the same bytes for the same descriptions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any
from xml.etree import ElementTree  # only written here: nothing of a stranger is parsed

__all__ = ["COCOIds", "coco_images", "coco_results", "json_document", "json_lines", "voc_xml"]

_Described = dict[str, Any]
# What is no character of XML 1.0 (its section 2.2), and carriage returns, which readers change.
_NOT_XML = re.compile("[^\t\n -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def json_document(described: Sequence[_Described], **head: object) -> str:
    """One JSON object with the list `images`, one image a line.

    Args:
        described: from `describe`.
        head: what stands before the images.

    Returns:
        The text of the file.
    """
    first = "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items())
    images = ",\n".join(map(json.dumps, described))
    return f'{{{first}"images": [\n{images}\n]}}\n' if described else f'{{{first}"images": []}}\n'


def json_lines(described: Sequence[_Described]) -> str:
    """One JSON object an image, one image a line.

    Args:
        described: from `describe`.

    Returns:
        The text of the file.
    """
    return "".join(json.dumps(image) + "\n" for image in described)


@dataclass(frozen=True)
class COCOIds:
    """The numbers by which a COCO annotation file knows images and classes.

    Attributes:
        images: id of each file name; None numbers the images.
        categories: id of each class name; None takes the labels.
    """

    images: dict[str, int] | None = None
    categories: dict[str, int] | None = None

    @classmethod
    def read(cls, path: Path, class_names: Sequence[str]) -> COCOIds:
        """Takes the ids of an annotation file.

        Args:
            path: a JSON file with `images` and `categories`.
            class_names: those of the detector, all of which have to be among the categories.

        Returns:
            The ids.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is no such file, or lacks a class; names both.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            # Names as `COCODataset` takes them.
            images = {
                str(row["file_name"]).replace("\\", "/"): int(row["id"])
                for row in content["images"]
            }
            categories = {str(row["name"]).strip(): int(row["id"]) for row in content["categories"]}
        # Lists in lists without end, and an infinite id, are JSON to Python.
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            # The repr of a UnicodeDecodeError holds the whole file.
            reason = repr(error) if isinstance(error, KeyError | TypeError) else str(error)
            raise ValueError(
                f"{path} is no COCO annotation file with images and categories: {reason}"
            ) from error
        missing = [name for name in class_names if name not in categories]
        if missing:
            raise ValueError(
                f"{path} has no category {', '.join(missing)}, only {', '.join(categories)}"
            )
        return cls(images, categories)

    def of_images(self, files: Sequence[str]) -> list[int]:
        """The id of each file.

        By the file's name in the annotations, alone or with folders before it; without annotations
        the number that the name is (000000000139.jpg), if all names are different numbers, else 1,
        2, 3...

        Args:
            files: paths.

        Raises:
            ValueError: a file is not in the annotations; names it.
        """
        if self.images is None:
            stems = [PurePath(file).stem for file in files]
            numbered = all(s.isascii() and s.isdigit() for s in stems)
            ids = [int(stem) for stem in stems] if numbered else []
            return ids if len(set(ids)) == len(files) else list(range(1, len(files) + 1))
        return [self._of_image(file, self.images) for file in files]

    def _of_image(self, file: str, images: dict[str, int]) -> int:
        parts = PurePath(file).parts
        # The longest first: of two folders' a.jpg each has its own.
        names = ["/".join(parts[i:]) for i in range(len(parts))]
        for name in names:
            if name in images:
                return images[name]
        raise ValueError(f"{file}: the COCO annotations have no image of this name")

    def of_class(self, name: str, label: int) -> int:
        """The id of a class."""
        return label if self.categories is None else self.categories[name]


def coco_results(described: Sequence[_Described], ids: COCOIds) -> str:
    """COCO's results format, one detection a line, boxes as x, y, width, height.

    Args:
        described: from `describe`.
        ids: of images and classes.

    Returns:
        The text of the file, which `COCO.loadRes` reads.

    Raises:
        ValueError: an image has no id.
    """
    rows = []
    image_ids = ids.of_images([image["file"] for image in described])
    for image_id, image in zip(image_ids, described, strict=True):
        for detection in image["detections"]:
            x1, y1, x2, y2 = detection["box"]
            row = {
                "image_id": image_id,
                "category_id": ids.of_class(detection["class"], detection["label"]),
                "bbox": [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                "score": detection["score"],
            }
            rows.append(json.dumps(row))
    return "[\n" + ",\n".join(rows) + "\n]\n" if rows else "[]\n"


def coco_images(described: Sequence[_Described], class_names: Sequence[str], ids: COCOIds) -> str:
    """The images and categories that the ids in `coco_results` stand for.

    Args:
        described: from `describe`.
        class_names: label i + 1 is `class_names[i]`.
        ids: the same as for the results.

    Returns:
        The text of a file in COCO's annotation format, without annotations.
    """
    image_ids = ids.of_images([image["file"] for image in described])
    images = [
        {"id": i, "file_name": image["file"], "width": image["width"], "height": image["height"]}
        for i, image in zip(image_ids, described, strict=True)
    ]
    categories = [
        {"id": ids.of_class(name, label), "name": name} for label, name in enumerate(class_names, 1)
    ]
    content = {"images": images, "annotations": [], "categories": categories}
    return json.dumps(content, indent=1) + "\n"


def voc_xml(image: _Described) -> str:
    """One image as a VOC annotation, which LabelImg and `VOCDataset` open.

    VOC counts pixels from 1, and its corners are the first and the last pixel inside; a detection
    keeps a pixel of width and height.

    Args:
        image: from `describe`.

    Returns:
        The text of the XML file.
    """
    path = PurePath(image["file"])
    width, height = image["width"], image["height"]
    root = ElementTree.Element("annotation")
    _add(root, folder=path.parent.name, filename=path.name, path=str(path))
    _add(ElementTree.SubElement(root, "source"), database="ssd_fast")
    _add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=3)
    _add(root, segmented=0)
    for detection in image["detections"]:
        x1, y1, x2, y2 = detection["box"]
        xmin, xmax = _pixels(x1, x2, width)
        ymin, ymax = _pixels(y1, y2, height)
        item = ElementTree.SubElement(root, "object")
        _add(item, name=detection["class"], pose="Unspecified", truncated=0, difficult=0)
        _add(item, score=detection["score"])
        box = ElementTree.SubElement(item, "bndbox")
        _add(box, xmin=xmin, ymin=ymin, xmax=xmax, ymax=ymax)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(element: ElementTree.Element, **children: object) -> None:
    """Adds a text each. What XML cannot hold, as control characters in file names, becomes "?"."""
    for tag, value in children.items():
        ElementTree.SubElement(element, tag).text = _NOT_XML.sub("?", str(value))


def _pixels(low: float, high: float, size: int) -> tuple[int, int]:
    """First and last pixel of a side, from 1, at least two apart where the image has two.

    The second pixel is for readers that take `xmax - xmin` for the width, and refuse 0.
    """
    first = min(max(round(low) + 1, 1), max(size - 1, 1))
    return first, min(max(round(high), first + 1), size)
