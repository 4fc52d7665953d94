# SPDX-License-Identifier: BSD-3-Clause
"""One annotation file of COCO: what it says, and what is wrong with it."""

from __future__ import annotations

import json
import math
import reprlib
from array import array
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ssd_fast.data.problems import Problem

__all__ = ["CocoAnnotation", "CocoImage", "CocoObject", "read_coco"]

Corners = tuple[float, float, float, float]


class CocoObject(NamedTuple):
    """An object as the file states it.

    Attributes:
        id: of the annotation; "number n" where the file gives none.
        category: name of its class, None if the file has no such category.
        category_id: as written.
        box: x, y, width, height as written; None where there is no number.
        area: of its segmentation in pixels; of its box where the file gives none above 0.
        iscrowd: as written; 0 where the file says nothing.
        bbox: as written, where it is not four numbers.
    """

    id: int | str
    category: str | None
    category_id: object
    box: tuple[float | None, ...]
    area: float
    iscrowd: object
    bbox: object = None

    @property
    def crowd(self) -> bool:
        """Whether it stands for many objects that were not told apart."""
        return self.iscrowd == 1

    def fault(self, size: tuple[int, int], class_names: frozenset[str]) -> str | None:
        """Says why the object cannot be used, with its values; None if it can.

        Args:
            size: (width, height) of the image, pixels.
            class_names: the classes there are.
        """
        if self.category is None:
            number = reprlib.repr(self.category_id)  # which may be lists in lists
            return f"its category_id {number} is none of the file's categories"
        if self.category not in class_names:
            return f"the class {self.category!r} is none of {', '.join(sorted(class_names))}"
        if None in self.box:
            return f"the box has no four numbers: bbox {reprlib.repr(self.bbox)}"
        values = "x {}, y {}, width {}, height {}".format(*map(_number, self.box))
        width, height = self.box[2] or 0.0, self.box[3] or 0.0
        if width < 0 or height < 0:
            return f"the box is inverted: {values}"
        if width == 0 or height == 0:
            return f"the box has no area: {values}"
        x1, y1, x2, y2 = self.corners(size)
        if x2 <= x1 or y2 <= y1:
            return f"the box lies outside the image of {size[0]} x {size[1]} pixels: {values}"
        x1, y1, x2, y2 = array("f", (x1, y1, x2, y2))  # as datasets keep them
        if x2 <= x1 or y2 <= y1:
            return f"the box has no area in float32: {values}"
        if self.iscrowd not in (0, 1):  # True and False too, but no "0"
            return f"iscrowd: expected 0 or 1, got {reprlib.repr(self.iscrowd)}"
        return None

    def corners(self, size: tuple[int, int]) -> Corners:
        """The box as continuous corners, clipped to an image of (width, height) pixels."""
        x, y, width, height = (value or 0.0 for value in self.box)
        right, bottom = float(size[0]), float(size[1])
        return max(x, 0.0), max(y, 0.0), min(x + width, right), min(y + height, bottom)


class CocoImage(NamedTuple):
    """An image that the file lists.

    Attributes:
        id: as written.
        file_name: as written, with forward slashes.
        size: (width, height) in pixels, None if the file does not say.
    """

    id: int | str
    file_name: str
    size: tuple[int, int] | None


@dataclass(frozen=True)
class CocoAnnotation:
    """What a file says.

    Attributes:
        categories: id of each class by its name, in the order of the ids.
        images: the images, in the order of the file, without duplicates.
        objects: the objects of each image, by its id, in the order of the file.
    """

    categories: Mapping[str, int]
    images: tuple[CocoImage, ...]
    objects: Mapping[int | str, Sequence[CocoObject]]


def read_coco(path: Path, problems: list[Problem]) -> CocoAnnotation:
    """Reads an annotation file in COCO's format for detection.

    A category that only groups others (it is the `supercategory` of another and has no object, as
    the first one in Roboflow's exports) is no class.

    Args:
        path: a JSON file.
        problems: what is broken in single images and objects is appended.

    Returns:
        What it says.

    Raises:
        ValueError: the file is missing or holds no such annotation; names it.
    """
    content = _load(path)
    names = _read_categories(path, content)
    images = tuple(_read_images(path, content["images"], problems))
    objects: dict[int | str, list[CocoObject]] = {image.id: [] for image in images}
    used: set[object] = set()
    seen: set[Hashable] = set()
    for position, entry in enumerate(content["annotations"], 1):
        number = _identity(entry, "id")
        item = _read_object(entry, f"number {position}" if number is None else number, names)
        if item is None:
            problems.append(Problem(path, f"number {position}", "expected an object of JSON"))
            continue
        used.add(item.category_id if item.category is not None else None)
        owner = _identity(entry, "image_id")
        if number is not None and number in seen:
            problems.append(Problem(path, item.id, "its id belongs to an object before it"))
        elif owner is None or owner not in objects:
            image = reprlib.repr(entry.get("image_id"))
            problems.append(Problem(path, item.id, f"there is no image with its image_id {image}"))
        else:
            objects[owner].append(item)
        seen.add(number)
    categories = _classes(path, content["categories"], names, used)
    return CocoAnnotation(categories, images, objects)


def _load(path: Path) -> dict[str, Any]:
    """The file's three lists, of which only the annotations may be missing."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            content = json.load(file)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: the file cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or nested without end
        raise ValueError(f"{path}: the file does not parse as JSON: {error}") from None
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise ValueError(f"{path}: expected COCO's {{{', '.join(lists)}}}, found no list of images")
    found = {name: content.get(name, []) for name in lists}
    for name, value in found.items():
        if not isinstance(value, list):
            raise ValueError(f"{path}: {name}: expected a list, got {type(value).__name__}")
    return found


def _read_categories(path: Path, content: Mapping[str, list[Any]]) -> dict[int, str]:
    """Name of each category by its id."""
    names: dict[int, str] = {}
    for position, entry in enumerate(content["categories"], 1):
        where = f"{path}: category number {position}"
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: expected an object of JSON, got {reprlib.repr(entry)}")
        number, name = entry.get("id"), entry.get("name")
        if isinstance(number, bool) or not isinstance(number, int):
            raise ValueError(f"{where}: id: expected an integer, got {reprlib.repr(number)}")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{where}: name: expected a name, got {reprlib.repr(name)}")
        if number in names:
            raise ValueError(f"{where}: the id {number} belongs to {names[number]!r} before it")
        names[number] = name.strip()
    return names


def _classes(
    path: Path, entries: Sequence[Mapping[str, Any]], names: Mapping[int, str], used: set[object]
) -> dict[str, int]:
    """Id of each class by its name; categories without objects that group others are none."""
    parents: dict[str, set[int]] = {}
    for entry in entries:
        parent = entry.get("supercategory")
        if isinstance(parent, str):
            parents.setdefault(parent, set()).add(entry["id"])
    classes: dict[str, int] = {}
    for number, name in sorted(names.items()):
        if number not in used and parents.get(name, set()) - {number}:
            continue
        if name in classes:
            raise ValueError(
                f"{path}: the categories {classes[name]} and {number} are both named {name!r};"
                " rename or merge them"
            )
        classes[name] = number
    return classes


def _read_images(
    path: Path, entries: Sequence[Any], problems: list[Problem]
) -> Iterator[CocoImage]:
    seen: set[int | str] = set()
    files: set[str] = set()
    for position, entry in enumerate(entries, 1):
        number = _identity(entry, "id")
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if number is None or not isinstance(name, str) or not name:
            fault = f"image number {position}: expected an id and a file_name"
            problems.append(Problem(path, None, fault))
        elif number in seen:
            fault = f"image number {position}, {name}: its id {number!r} belongs to one before it"
            problems.append(Problem(path, None, fault))
        elif (file := name.replace("\\", "/")) in files:
            # Each of the two would show the other's objects as background.
            fault = f"image number {position}, {name}: one before it is of this file; merge both"
            problems.append(Problem(path, None, fault))
        else:
            seen.add(number)
            files.add(file)
            width, height = _finite(entry.get("width")), _finite(entry.get("height"))
            known = width is not None and height is not None and width >= 1 and height >= 1
            size = (int(width or 0), int(height or 0)) if known else None
            yield CocoImage(number, file, size)


def _read_object(entry: Any, number: int | str, names: Mapping[int, str]) -> CocoObject | None:
    if not isinstance(entry, dict):
        return None
    box = entry.get("bbox")
    values = list(box) if isinstance(box, list) and len(box) == 4 else [None] * 4
    corners = tuple(_finite(value) for value in values)
    own = (corners[2] or 0.0) * (corners[3] or 0.0)
    area = array("f", [_finite(entry.get("area")) or 0.0])[0]
    category, crowd = entry.get("category_id"), entry.get("iscrowd")
    return CocoObject(
        number,
        names.get(category) if type(category) is int else None,  # True is no 1
        category,
        corners,
        area if 0 < area < math.inf else own,
        0 if crowd is None else crowd,
        box if None in corners else None,
    )


def _identity(entry: Any, key: str) -> int | str | None:
    """An id, which COCO writes as an integer and some tools as a string."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _finite(value: Any) -> float | None:
    """The finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond any float
        return None


def _number(value: float | None) -> str:
    return "missing" if value is None else f"{value:g}"
