# SPDX-License-Identifier: BSD-3-Clause
"""VOCDataset: photographs and boxes from any folder laid out like PASCAL VOC.

    root/Annotations/*.xml   root/JPEGImages/*   root/ImageSets/Main/{train,val,trainval,test}.txt

Annotations are read and checked once, at construction; pixels are decoded on access.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ssd_fast.data.classes import check_class_names
from ssd_fast.data.default_device import cpu_by_default
from ssd_fast.data.images import check_image, other_size, read_image
from ssd_fast.data.problems import BrokenSample, EmptyDatasetError, Problem, summary
from ssd_fast.data.voc_annotation import Annotation
from ssd_fast.data.voc_folder import VOCFolder, find_voc_folders

__all__ = ["VOCDataset"]


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
    that is missing, does not parse or does not decode, or an image of another size than annotated,
    costs the image; an object whose box has `xmax <= xmin` or `ymax <= ymin`, lies outside the
    image or is no number, and an object of a class not in `class_names`, costs the object. An image
    without objects left stays in.

    **Sets.** Without a folder `ImageSets/Main`, the images sorted by name are split: "val" and
    "test" are every fifth, starting with the fifth, or the last of fewer; "train" is the rest.
    "trainval" and "all" are every image, "all" in any folder.

    Args:
        root: the folder that holds Annotations and JPEGImages, such as VOCdevkit/VOC2007; or
            VOCdevkit itself, or several folders, which are joined: `["VOC2007", "VOC2012"]` with
            "trainval" is what papers call 07+12.
        image_set: a file of ImageSets/Main, without .txt, or "all". Of several folders, those are
            used that have it.
        class_names: the classes, label i + 1 for `class_names[i]`. By default the names in all
            annotations of the folder, sorted, so that every set of a folder has the same labels.
        keep_difficult: whether objects marked difficult are among the targets (as in Caffe SSD), or
            left out (as in amdegroot's). Evaluation needs them.
        ignore_difficult: whether objects marked difficult are regions that training ignores: they
            are marked in `"ignore"`, and priors on them are neither positive nor negative.
        invalid: "drop" leaves broken input out and lists it in `problems`; "raise" stops at it.

    Attributes:
        class_names: tuple of str, background not among them.
        roots: tuple of Path, the folders that are used.
        problems: tuple of `Problem`, what was left out, in the order found.
        paths: tuple of Path, the image files.

    Raises:
        ModuleNotFoundError: Pillow or defusedxml is missing; names the `pip install`.
        ValueError: root is not such a folder, the set does not exist, no image is left, or
            `invalid="raise"` and something is broken.
    """

    def __init__(
        self,
        root: str | Path | Sequence[str | Path],
        image_set: str = "train",
        *,
        class_names: Sequence[str] | None = None,
        keep_difficult: bool = True,
        ignore_difficult: bool = False,
        invalid: Literal["drop", "raise"] = "drop",
    ) -> None:
        if invalid not in ("drop", "raise"):
            raise ValueError(f'invalid: expected "drop" or "raise", got {invalid!r}')
        roots = [root] if isinstance(root, str | Path) else list(root)
        if not roots:
            raise ValueError("root: expected one folder or more, got none")
        folders = find_voc_folders([Path(root) for root in roots])
        self.image_set = image_set
        # VOC2012 has no annotated test set: of several folders, those count that have the set.
        used = [folder for folder in folders if folder.has(image_set)] or folders[:1]
        self.roots = tuple(folder.root for folder in used)
        problems: list[Problem] = []
        names = [folder.names(image_set) for folder in used]
        annotations = [
            dict(folder.read_annotations(listed, problems))
            for folder, listed in zip(used, names, strict=True)
        ]
        if class_names is None:
            known = [entry for part in annotations for entry in part.values()]
            listed = dict(zip(self.roots, names, strict=True))
            self.class_names = _find_class_names([*known, *_read_rest(folders, listed)])
        else:
            self.class_names = check_class_names(class_names)
        images = [
            self._resolve(folder, name, annotation, keep_difficult, problems)
            for folder, part in zip(used, annotations, strict=True)
            for name, annotation in part.items()
        ]
        self._images = [image for image in images if image is not None]
        self._ignore_difficult = ignore_difficult
        self.problems = tuple(problems)
        self.paths = tuple(image.path for image in self._images)
        self._check(invalid)

    def __len__(self) -> int:
        """Number of images that can be used."""
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Reads an image.

        Args:
            index: from `-len(self)` to `len(self) - 1`.

        Returns:
            image (3, H, W) uint8 RGB, and its target: boxes (n, 4) float32 corners in pixels,
            labels (n,) int64 from 1, difficult and ignore (n,) bool.

        Raises:
            BrokenSample: the file no longer decodes.
            IndexError: there is no such image.
        """
        image = self._images[index]
        return read_image(image.path, upright=image.upright), self.target(index)

    @cpu_by_default
    def target(self, index: int) -> dict[str, Tensor]:
        """The target of an image alone, without reading the pixels.

        Args:
            index: as above.

        Returns:
            What `dataset[index][1]` is.
        """
        image = self._images[index]
        target = {
            "boxes": torch.tensor(image.boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(image.labels, dtype=torch.int64),
            "difficult": torch.tensor(image.difficult, dtype=torch.bool),
        }
        difficult = target["difficult"]
        target["ignore"] = difficult.clone() if self._ignore_difficult else difficult & False
        return target

    def _check(self, invalid: str) -> None:
        """Raises ValueError for what leaves nothing to use, or for anything broken with "raise"."""
        where = ", ".join(map(str, self.roots))
        if self.problems and invalid == "raise":
            raise ValueError(f"{where}: {summary(self.problems)}")
        if not self._images:
            none = f"{where}: no image of the set {self.image_set!r} can be used. "
            raise EmptyDatasetError(none, self.problems)
        if not self.class_names:
            raise ValueError(
                f"{where}: no annotation has an object that names a class; label some, or pass"
                " class_names"
            )

    def _resolve(
        self,
        folder: VOCFolder,
        name: str,
        annotation: Annotation,
        keep_difficult: bool,
        problems: list[Problem],
    ) -> _Image | None:
        """Finds the image of an annotation, and the objects that can be used."""
        path = folder.image_path(name, annotation)
        if path is None:
            missing = folder.root / "JPEGImages" / f"{name}.jpg"
            problems.append(Problem(missing, None, "the image is missing"))
            return None
        try:
            stored, turned = check_image(path)
        except BrokenSample as error:
            problems.append(Problem(path, None, error.reason))
            return None
        if annotation.size not in (None, stored, turned):
            problems.append(Problem(path, None, other_size(turned, annotation.size)))
            return None
        upright = annotation.size in (None, turned)
        width, height = turned if upright else stored
        xml = folder.annotation_path(name)
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


def _read_rest(
    folders: Sequence[VOCFolder], listed: Mapping[Path, Sequence[str]]
) -> Iterator[Annotation]:
    """What the annotations say that are not in the set."""
    for folder in folders:
        others = sorted(folder.annotated - set(listed.get(folder.root, ())))
        yield from dict(folder.read_annotations(others, [])).values()


def _find_class_names(annotations: Iterable[Annotation]) -> tuple[str, ...]:
    """The classes that annotations name, sorted."""
    return tuple(sorted({item.name for a in annotations for item in a.objects} - {""}))
