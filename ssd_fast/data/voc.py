# SPDX-License-Identifier: BSD-3-Clause
"""VOCDataset: photographs and boxes from any folder laid out like PASCAL VOC.

    root/Annotations/*.xml   root/JPEGImages/*   root/ImageSets/Main/{train,val,trainval,test}.txt

Annotations are read and checked once, at construction; pixels are decoded on access.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ssd_fast.data.images import check_image, read_image
from ssd_fast.data.problems import BrokenSample, Problem, summary
from ssd_fast.data.voc_annotation import Annotation, AnnotationError, read_annotation

__all__ = ["VOCDataset"]

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_EVERY_FIFTH = 5


@dataclass(frozen=True)
class _Image:
    # No tensors: a loader that spawns its workers would send each through a file descriptor.
    path: Path
    upright: bool  # whether the boxes are drawn on the image as its EXIF orientation turns it
    boxes: tuple[tuple[float, float, float, float], ...]
    labels: tuple[int, ...]
    difficult: tuple[bool, ...]


class VOCDataset(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Images and objects of one image set of a VOC folder.

    **Corners.** VOC counts pixels from 1 and its corners are the first and last pixel inside, so a
    box covers `(xmin - 1, ymin - 1, xmax, ymax)` in continuous coordinates, where pixel k spans
    k - 1 to k. Peers disagree by that pixel: torchvision's transform wrappers keep the file's
    numbers, amdegroot and sgrvinod subtract 1 from all four. Boxes are then clipped to the image.

    **Broken input** is left out and told: `problems` lists each fault by file and object. A file
    that is missing, does not parse or does not decode costs the image; an object whose box has
    `xmax <= xmin` or `ymax <= ymin`, lies outside the image or is no number, and an object of a
    class not in `class_names`, costs the object. An image without objects left stays in.

    **Sets.** Without a folder `ImageSets/Main`, the images sorted by name are split: "val" and
    "test" are every fifth, starting with the fifth; "train" is the rest. "trainval" and "all" are
    every image, "all" in any folder.

    Args:
        root: the folder that holds Annotations and JPEGImages, such as VOCdevkit/VOC2007.
        image_set: a file of ImageSets/Main, without .txt, or "all".
        class_names: the classes, label i + 1 for `class_names[i]`. By default the names in all
            annotations of the folder, sorted, so that every set of a folder has the same labels.
        keep_difficult: whether objects marked difficult are among the targets (as in Caffe SSD), or
            left out (as in amdegroot's). Evaluation needs them.
        invalid: "drop" leaves broken input out and lists it in `problems`; "raise" stops at it.

    Attributes:
        class_names: tuple of str, background not among them.
        problems: tuple of `Problem`, what was left out, in the order found.
        paths: tuple of Path, the image files.

    Raises:
        ModuleNotFoundError: Pillow or defusedxml is missing; names the `pip install`.
        ValueError: root is not such a folder, the set does not exist, no image is left, or
            `invalid="raise"` and something is broken.
    """

    def __init__(
        self,
        root: str | Path,
        image_set: str = "train",
        *,
        class_names: Sequence[str] | None = None,
        keep_difficult: bool = True,
        invalid: Literal["drop", "raise"] = "drop",
    ) -> None:
        if invalid not in ("drop", "raise"):
            raise ValueError(f'invalid: expected "drop" or "raise", got {invalid!r}')
        self.root = _check_root(Path(root))
        self.image_set = image_set
        problems: list[Problem] = []
        names = _image_names(self.root, image_set)
        annotations = dict(self._read_annotations(names, problems))
        if class_names is None:
            others = sorted(_annotated(self.root) - set(names))
            rest = dict(self._read_annotations(others, []))
            self.class_names = _find_class_names([*annotations.values(), *rest.values()])
        else:
            self.class_names = _check_class_names(class_names)
        files = _image_files(self.root / "JPEGImages")
        images = [
            self._resolve(name, annotation, files, keep_difficult, problems)
            for name, annotation in annotations.items()
        ]
        self._images = [image for image in images if image is not None]
        self.problems = tuple(problems)
        self.paths = tuple(image.path for image in self._images)
        if self.problems and invalid == "raise":
            raise ValueError(f"{self.root}: {summary(self.problems)}")
        if not self._images:
            raise ValueError(
                f"{self.root}: no image of the set {image_set!r} can be used. "
                + (summary(self.problems) if problems else "The set lists none.")
            )
        if not self.class_names:
            raise ValueError(f"{self.root}: no annotation names a class; pass class_names")

    def __len__(self) -> int:
        """Number of images that can be used."""
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Reads an image.

        Args:
            index: from `-len(self)` to `len(self) - 1`.

        Returns:
            image (3, H, W) uint8 RGB, and its target: boxes (n, 4) float32 corners in pixels,
            labels (n,) int64 from 1, difficult (n,) bool.

        Raises:
            BrokenSample: the file no longer decodes.
            IndexError: there is no such image.
        """
        image = self._images[index]
        target = {
            "boxes": torch.tensor(image.boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(image.labels, dtype=torch.int64),
            "difficult": torch.tensor(image.difficult, dtype=torch.bool),
        }
        return read_image(image.path, upright=image.upright), target

    def _read_annotations(
        self, names: Sequence[str], problems: list[Problem]
    ) -> Iterator[tuple[str, Annotation]]:
        for name in names:
            path = self.root / "Annotations" / f"{name}.xml"
            try:
                if path.name != f"{name}.xml":
                    raise AnnotationError("the image set lists a path, not a name")
                yield name, read_annotation(path)
            except AnnotationError as error:
                problems.append(Problem(path, None, str(error)))

    def _resolve(
        self,
        name: str,
        annotation: Annotation,
        files: dict[str, Path],
        keep_difficult: bool,
        problems: list[Problem],
    ) -> _Image | None:
        """Finds the image of an annotation, and the objects that can be used."""
        # The kit goes by the annotation's name. <filename> is often stale, so it comes second, and
        # only names in JPEGImages are known, so it cannot lead out of the folder.
        path = files.get(name) or files.get(annotation.filename)
        if path is None:
            missing = self.root / "JPEGImages" / f"{name}.jpg"
            problems.append(Problem(missing, None, "the image is missing"))
            return None
        try:
            stored, turned = check_image(path)
        except BrokenSample as error:
            problems.append(Problem(path, None, error.reason))
            return None
        upright = turned == annotation.size or stored != annotation.size
        width, height = turned if upright else stored
        xml = self.root / "Annotations" / f"{name}.xml"
        boxes, labels, difficult = [], [], []
        for number, item in enumerate(annotation.objects, 1):
            fault = item.fault(width, height, self.class_names)
            if fault is not None:
                problems.append(Problem(xml, number, fault))
            elif keep_difficult or not item.difficult:
                boxes.append(item.box(width, height))
                labels.append(self.class_names.index(item.name) + 1)
                difficult.append(item.difficult)
        return _Image(path, upright, tuple(boxes), tuple(labels), tuple(difficult))


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


def _annotated(root: Path) -> set[str]:
    """The names that have an annotation."""
    return {path.stem for path in (root / "Annotations").glob("*.xml")}


def _image_names(root: Path, image_set: str) -> list[str]:
    """The names of a set, without suffix, each once."""
    listed = root / "ImageSets" / "Main"
    annotated = _annotated(root)
    if image_set == "all" or not listed.is_dir():
        names = sorted(annotated)
        if not names:
            raise ValueError(f"{root / 'Annotations'}: holds no .xml file")
        fifth = set(names[_EVERY_FIFTH - 1 :: _EVERY_FIFTH])
        if image_set in ("val", "test"):
            return sorted(fifth)
        if image_set == "train":
            return [name for name in names if name not in fifth]
        if image_set in ("trainval", "all"):
            return names
        known = "train, val, test, trainval, all (there is no ImageSets/Main)"
    else:
        sets = sorted(path.stem for path in listed.glob("*.txt"))
        if image_set in sets:
            text = (listed / f"{image_set}.txt").read_text(encoding="utf-8", errors="replace")
            lines = [line.strip() for line in text.split("\n") if line.strip()]
            # A name may hold spaces; else a second column is the flag of a class (cat_train.txt).
            names = [line if line in annotated else line.split()[0] for line in lines]
            return list(dict.fromkeys(names))
        known = ", ".join([*sets, "all"])
    raise ValueError(f"image_set: {root} has no set {image_set!r}, only {known}")


def _image_files(folder: Path) -> dict[str, Path]:
    """Every image of a folder, by its name with and without suffix."""
    paths = [path for path in folder.iterdir() if path.suffix.lower() in _IMAGE_SUFFIXES]
    # Of a.jpg and a.png the name "a" means the one whose suffix comes first.
    paths.sort(key=lambda p: (_IMAGE_SUFFIXES.index(p.suffix.lower()), p.name))
    files = {path.name: path for path in paths}
    for path in paths:
        files.setdefault(path.stem, path)
    return files


def _find_class_names(annotations: Iterable[Annotation]) -> tuple[str, ...]:
    """The classes that annotations name, sorted."""
    return tuple(sorted({item.name for a in annotations for item in a.objects} - {""}))


def _check_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(class_names, str):
        raise TypeError(f"class_names: expected a list of names, got the string {class_names!r}")
    names = tuple(class_names)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"class_names: expected one or more different names, got {names}")
    return names
