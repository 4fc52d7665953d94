# SPDX-License-Identifier: BSD-3-Clause
"""VOCFolder: the sets, annotations and images of a folder in VOC layout, found by their names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from ssd_fast.data.problems import Problem
from ssd_fast.data.splits import SETS, held_out
from ssd_fast.data.voc_annotation import Annotation, AnnotationError, read_annotation

__all__ = ["VOCFolder", "find_voc_folders"]

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_YEAR = re.compile(r"VOC\d{4}")


class VOCFolder:
    """A folder that holds Annotations and JPEGImages.

    Args:
        root: the folder.

    Raises:
        ValueError: it is not laid out like VOC's.
    """

    def __init__(self, root: Path) -> None:
        self.root = _check_root(root)

    @property
    def sets(self) -> tuple[str, ...]:
        """The names of its image sets; empty where it has no ImageSets/Main."""
        return tuple(sorted(path.stem for path in self._lists.glob("*.txt")))

    @property
    def is_split(self) -> bool:
        """Whether it says which image belongs to which set."""
        return self._lists.is_dir()

    @cached_property
    def annotated(self) -> frozenset[str]:
        """The names that have an annotation."""
        return frozenset(path.stem for path in (self.root / "Annotations").glob("*.xml"))

    @cached_property
    def images(self) -> dict[str, Path]:
        """Every image, by its name with and without suffix."""
        folder = self.root / "JPEGImages"
        paths = [path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES]
        # Of a.jpg and a.png the name "a" means the one whose suffix comes first.
        paths.sort(key=lambda p: (_IMAGE_SUFFIXES.index(p.suffix.lower()), p.name))
        files = {path.name: path for path in paths}
        for path in paths:
            files.setdefault(path.stem, path)
        return files

    def has(self, image_set: str) -> bool:
        """Whether there is a set of that name."""
        return image_set == "all" or image_set in (self.sets if self.is_split else SETS)

    def names(self, image_set: str) -> list[str]:
        """The names of a set, without suffix, each once.

        Args:
            image_set: a file of ImageSets/Main without .txt, or one of `splits.SETS` where there is
                no such folder; "all" is every annotation in any case.

        Raises:
            ValueError: there is no such set.
        """
        if image_set == "all" or not self.is_split:
            if not self.annotated:
                raise ValueError(f"{self.root / 'Annotations'}: holds no .xml file")
            if self.has(image_set):
                return held_out(sorted(self.annotated), image_set)
        elif image_set in self.sets:
            path = self._lists / f"{image_set}.txt"
            text = path.read_text(encoding="utf-8-sig", errors="replace")
            lines = [line.strip() for line in text.split("\n") if line.strip()]
            # A name may hold spaces; else a second column is the flag of a class (cat_train.txt).
            names = [line if line in self.annotated else line.split()[0] for line in lines]
            return list(dict.fromkeys(names))
        known = (*self.sets, "all") if self.is_split else SETS
        hint = "" if self.is_split else " (there is no ImageSets/Main)"
        raise ValueError(
            f"image_set: {self.root} has no set {image_set!r}, only {', '.join(known)}{hint}"
        )

    def annotation_path(self, name: str) -> Path:
        """The annotation file of an image."""
        return self.root / "Annotations" / f"{name}.xml"

    def read_annotations(
        self, names: Sequence[str], problems: list[Problem]
    ) -> Iterator[tuple[str, Annotation]]:
        """Reads annotations.

        Args:
            names: of images.
            problems: what does not read is appended.

        Yields:
            The names and what their annotations say, those left out that do not read.
        """
        for name in names:
            path = self.annotation_path(name)
            try:
                if path.name != f"{name}.xml":
                    raise AnnotationError("the image set lists a path, not a name")
                yield name, read_annotation(path)
            except AnnotationError as error:
                problems.append(Problem(path, None, str(error)))

    def image_path(self, name: str, annotation: Annotation) -> Path | None:
        """The image of an annotation; None if there is none.

        The kit goes by the annotation's name. `<filename>` is often stale, so it comes second, and
        only names in JPEGImages are known, so that it cannot lead out of the folder.

        Args:
            name: of the annotation.
            annotation: what it says.
        """
        return self.images.get(name) or self.images.get(annotation.filename)

    @property
    def _lists(self) -> Path:
        return self.root / "ImageSets" / "Main"


def find_voc_folders(roots: Sequence[Path]) -> list[VOCFolder]:
    """The VOC folders that some folders mean: themselves, or the years of a VOCdevkit.

    Args:
        roots: VOC folders, or folders that hold VOC2007, VOC2012 and the like.

    Returns:
        The folders, in the order given, years in their order.

    Raises:
        ValueError: a folder is neither.
    """
    folders = []
    for root in roots:
        # The archives unpack to VOCdevkit/VOC2007, so the folder above is as likely to be named.
        for kit in (root, root / "VOCdevkit"):
            years = sorted(p.parent for p in kit.glob("VOC*/Annotations") if _is_year(p.parent))
            if years and not (kit / "Annotations").is_dir():
                folders += [VOCFolder(year) for year in years]
                break
        else:
            folders.append(VOCFolder(root))
    return folders


def _is_year(folder: Path) -> bool:
    return _YEAR.fullmatch(folder.name) is not None and (folder / "JPEGImages").is_dir()


def _check_root(root: Path) -> Path:
    """The folder, if it is laid out like VOC's."""
    if not root.is_dir():
        raise ValueError(f"{root}: there is no such folder")
    missing = [name for name in ("Annotations", "JPEGImages") if not (root / name).is_dir()]
    if missing:
        deeper = [*root.glob("*/Annotations"), *root.glob("*/*/Annotations")]
        inside = sorted(str(path.parent) for path in deeper if path.is_dir())
        hint = f" Did you mean {' or '.join(inside)}?" if inside else ""
        raise ValueError(
            f"{root}: expected a VOC folder with Annotations and JPEGImages, but "
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.{hint}"
        )
    return root
