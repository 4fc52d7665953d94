# SPDX-License-Identifier: BSD-3-Clause
"""Where a folder keeps its COCO annotations, and the images that each of them is about."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["CocoSet", "find_sets", "image_path", "images_folder", "is_file", "pick_sets"]

_ROBOFLOW = "_annotations.coco"
_WHOLE = re.compile(rf"({_ROBOFLOW}|_?annotations?|instances(_default)?|result|coco)")
_SETS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
# What else lies beside `instances_*.json`, for other tasks or without boxes.
_OTHER_TASKS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")
_SAMPLE = 20  # images that are looked for to tell which folder holds them


@dataclass(frozen=True)
class CocoSet:
    """One annotation file.

    Attributes:
        annotations: the JSON file.
        folders: where its images may lie, the likeliest first.
    """

    annotations: Path
    folders: tuple[Path, ...]


def find_sets(root: Path) -> dict[str, CocoSet]:
    """The annotation files of a folder, by the names of their sets.

    Known layouts: `annotations/instances_train2017.json` beside `train2017/` (or
    `images/train2017/`, or `images/`); `train/_annotations.coco.json` among its images, as Roboflow
    exports it; one file beside or among its images, such as `_annotations.coco.json`,
    `annotations.json`, `result.json` or `train.json`.

    Args:
        root: a folder.

    Returns:
        A set by each name, "" for one file about the whole folder; empty if there is none.
    """
    found: dict[str, CocoSet] = {}
    for path in sorted((root / "annotations").glob("*.json")):
        if not path.name.startswith(_OTHER_TASKS):
            name = "" if _WHOLE.fullmatch(path.stem) else path.stem.removeprefix("instances_")
            found[name] = CocoSet(path, _folders(root, name))
    for path in sorted(root.glob(f"*/{_ROBOFLOW}.json")):
        found.setdefault(path.parent.name, CocoSet(path, (path.parent,)))
    for path in sorted(root.glob("*.json")):
        name = path.stem.removeprefix("instances_")
        if _canonical(name) in _SETS.values():
            found.setdefault(name, CocoSet(path, _folders(root, name)))
        elif _WHOLE.fullmatch(path.stem):
            found.setdefault("", CocoSet(path, _folders(root, "")))
    return found


def pick_sets(sets: Mapping[str, CocoSet], wanted: str) -> list[str]:
    """The sets that a user may mean by a name: "train" is train2017, "val" is valid, too.

    Args:
        sets: from `find_sets`.
        wanted: a name.

    Returns:
        Of those that fit the ones whose folder of images is there, or all where none is: one name
        as a rule, several where the user has to say which, none if no name fits.
    """
    if wanted in sets:
        return [wanted]
    fits = [name for name in sets if _canonical(name) == _canonical(wanted)]
    here = [name for name in fits if any(f.is_dir() for f in sets[name].folders if f.name == name)]
    return here or fits


def images_folder(folders: Sequence[Path], file_names: Sequence[str]) -> Path:
    """The folder that holds most of the first images; the likeliest one if none does.

    Args:
        folders: candidates, at least one, the likeliest first.
        file_names: as the annotation file has them.

    Returns:
        One of the folders.
    """
    some = file_names[:_SAMPLE]

    def count(folder: Path) -> int:
        paths = (image_path(folder, name) for name in some)
        return sum(path is not None and is_file(path) for path in paths)

    return max(folders, key=count)


def image_path(folder: Path, file_name: str) -> Path | None:
    """The file by a name relative to a folder; None if the name leads out of the folder.

    Args:
        folder: of the images.
        file_name: with forward slashes.

    Returns:
        The path, whether or not there is such a file.
    """
    name = PurePosixPath(file_name)
    if name.is_absolute() or ".." in name.parts or re.match(r"[A-Za-z]:", file_name):
        return None
    return folder / name


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file can have, as one too long, is none.

    Args:
        path: any.
    """
    try:
        return path.is_file()
    except OSError:
        return False


def _folders(root: Path, name: str) -> tuple[Path, ...]:
    stem = _canonical(name)
    parts = [name, f"images/{name}", stem, f"images/{stem}", "images", ""]
    return (*dict.fromkeys(root / part for part in parts),)


def _canonical(name: str) -> str:
    """The name without a year, of several names for one set the usual one."""
    stem = re.sub(r"[-_]?\d{4}$", "", name.lower())
    return _SETS.get(stem, stem)
