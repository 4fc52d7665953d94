# SPDX-License-Identifier: BSD-3-Clause
"""One annotation file of PASCAL VOC: what it says, and what is wrong with it."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ssd_fast.data.missing_extra import missing_extra

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

__all__ = ["Annotation", "AnnotationError", "AnnotationObject", "read_annotation"]


class AnnotationError(ValueError):
    """The file does not hold an annotation; the message says why, without the file's name."""


@dataclass(frozen=True)
class AnnotationObject:
    """An object as the file states it.

    Attributes:
        name: its class.
        corners: xmin, ymin, xmax, ymax as written; None where there is no number.
        difficult: whether evaluation leaves it out.
        written: the corners as text, where one of them is no number.
    """

    name: str
    corners: tuple[float | None, ...]
    difficult: bool
    written: str = ""

    def fault(self, width: int, height: int, class_names: Sequence[str]) -> str | None:
        """Says why the object cannot be used, with its values; None if it can.

        Args:
            width: of the image, pixels.
            height: of the image, pixels.
            class_names: the classes there are.
        """
        if self.name not in class_names:
            return f"the class {self.name!r} is none of {', '.join(class_names)}"
        xmin, ymin, xmax, ymax = self.corners
        values = "xmin {}, ymin {}, xmax {}, ymax {}".format(*map(_number, self.corners))
        if xmin is None or ymin is None or xmax is None or ymax is None:
            return f"the box has no four numbers: {self.written or values}"
        if xmax < xmin or ymax < ymin:
            return f"the box is inverted: {values}"
        if xmax == xmin or ymax == ymin:
            return f"the box has no area: {values}"
        x1, y1, x2, y2 = self.box(width, height)
        if x2 <= x1 or y2 <= y1:
            return f"the box lies outside the image of {width} x {height} pixels: {values}"
        return None

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The box as continuous corners, clipped to the image."""
        xmin, ymin, xmax, ymax = (corner or 0.0 for corner in self.corners)
        x1, y1 = max(xmin - 1.0, 0.0), max(ymin - 1.0, 0.0)
        return x1, y1, min(xmax, float(width)), min(ymax, float(height))


@dataclass(frozen=True)
class Annotation:
    """What a file says of its image.

    Attributes:
        filename: base name of the image, "" if the file names none.
        size: (width, height) of the image, None if the file does not say.
        objects: its objects, in the order of the file.
    """

    filename: str
    size: tuple[int, int] | None
    objects: tuple[AnnotationObject, ...]


def read_annotation(path: Path) -> Annotation:
    """Reads an annotation file.

    Entities and external references are refused, because annotations come from strangers.

    Args:
        path: an XML file.

    Returns:
        What it says.

    Raises:
        AnnotationError: the file is missing, cannot be read, or is no annotation.
    """
    try:
        from defusedxml import DefusedXmlException
        from defusedxml.ElementTree import ParseError, parse
    except ModuleNotFoundError as error:
        raise missing_extra("reading VOC annotations", error) from error
    try:
        root = parse(path).getroot()
    except FileNotFoundError:
        raise AnnotationError("the annotation is missing") from None
    except OSError as error:
        raise AnnotationError(f"the annotation cannot be read: {error.strerror}") from None
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise AnnotationError(f"the annotation does not parse: {error}") from None
    if root is None or root.tag != "annotation":
        tag = None if root is None else root.tag
        raise AnnotationError(f"expected the root element <annotation>, got <{tag}>")
    filename = (root.findtext("filename") or "").strip().replace("\\", "/")
    width, height = _value(root, "size/width"), _value(root, "size/height")
    size = (int(width), int(height)) if width and height else None
    objects = tuple(_read_object(element) for element in root.findall("object"))
    return Annotation(PurePosixPath(filename).name, size, objects)


def _read_object(element: Element) -> AnnotationObject:
    names = ("xmin", "ymin", "xmax", "ymax")
    corners = tuple(_value(element, f"bndbox/{name}") for name in names)
    written = ""
    if None in corners:
        texts = [element.findtext(f"bndbox/{name}") for name in names]
        shown = ["missing" if text is None else reprlib.repr(text) for text in texts]
        written = ", ".join(map(" ".join, zip(names, shown, strict=True)))
    name = (element.findtext("name") or "").strip()
    return AnnotationObject(name, corners, bool(_value(element, "difficult")), written)


def _value(element: Element, path: str) -> float | None:
    """The finite number at a path, else None."""
    try:
        value = float(element.findtext(path) or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _number(value: float | None) -> str:
    return "missing" if value is None else f"{value:g}"
