# SPDX-License-Identifier: BSD-3-Clause
"""COCODataset: photographs and boxes from a folder with annotations in COCO's format.

The annotation file is read and checked once, at construction; pixels are decoded on access.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ssd_fast.data.classes import check_class_names
from ssd_fast.data.coco_annotation import CocoAnnotation, CocoImage, CocoObject, read_coco
from ssd_fast.data.coco_layout import (
    CocoSet,
    find_sets,
    image_path,
    images_folder,
    is_file,
    pick_sets,
)
from ssd_fast.data.default_device import cpu_by_default
from ssd_fast.data.images import check_image, other_size, read_image
from ssd_fast.data.problems import BrokenSample, EmptyDatasetError, Problem, summary
from ssd_fast.data.splits import held_out

__all__ = ["COCODataset"]


class _Image(NamedTuple):
    id: int | str
    path: Path
    size: tuple[int, int]  # (width, height) that the boxes refer to
    objects: list[CocoObject]


class COCODataset(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Images and objects of one annotation file in COCO's format.

    **Layouts.** `root` holds `annotations/instances_train2017.json` beside `train2017/`, or
    `train/_annotations.coco.json` among its images, as Roboflow exports it, or one annotation file
    about all its images. "train" means train2017 as well, and "val" means val2017 or valid. With
    `annotations`, `root` is the folder of the images.

    **Classes.** Labels are contiguous, from 1 in the order of the category ids; `category_ids`
    leads back. A category that only groups others, as the first of Roboflow's exports, is none.

    **Crowds**, objects with `iscrowd`, are regions and no objects: their rows are marked in
    `"ignore"`, for training, and in `"difficult"`, for evaluation, which counts no detection there
    as an error.

    **Broken input** is left out and told: `problems` lists each fault. An image that is missing, or
    whose name leads out of the folder, costs the image; an object whose box is inverted, has no
    area, lies outside the image or is no number, whose image or category does not exist, or whose
    id belongs to an object before it, costs the object. Boxes are clipped to the image. An image
    without objects stays in. Each file is opened to see that it is whole and of the annotated size
    (a quarter of a millisecond each, half a minute for train2017); with `verify=False` that shows
    on access.

    **EXIF.** An image is turned as its EXIF orientation says unless only its stored size is the
    annotated one.

    **Sets.** A file about the whole folder is split: "val" and "test" are every fifth image, sorted
    by name, or the last of fewer than five; "train" is the rest; "trainval" and "all" are every
    image.

    Args:
        root: the folder.
        image_set: which annotation file; ignored with `annotations`.
        annotations: a JSON file, in place of the one that `image_set` names.
        class_names: the classes, label i + 1 for `class_names[i]`. By default the file's.
        crowd: "ignore" marks crowds; "drop" leaves them out.
        verify: whether to open each image file.
        invalid: "drop" leaves broken input out and lists it in `problems`; "raise" stops at it.

    Attributes:
        class_names: tuple of str, background not among them.
        category_ids: tuple of int, `category_ids[label - 1]` is what results call the class; -1 for
            a class of `class_names` that the file does not have.
        image_ids: tuple, the id of each image as the file has it.
        paths: tuple of Path, the image files.
        problems: tuple of `Problem`, what was left out, in the order found.
        annotations: Path, the file.

    Raises:
        ModuleNotFoundError: Pillow is missing; names the `pip install`.
        ValueError: there is no such file, folder or set, the file is no annotation, no image is
            left, or `invalid="raise"` and something is broken.
    """

    def __init__(
        self,
        root: str | Path,
        image_set: str = "train",
        *,
        annotations: str | Path | None = None,
        class_names: Sequence[str] | None = None,
        crowd: Literal["ignore", "drop"] = "ignore",
        verify: bool = True,
        invalid: Literal["drop", "raise"] = "drop",
    ) -> None:
        for name, value, choices in (
            ("crowd", crowd, ("ignore", "drop")),
            ("invalid", invalid, ("drop", "raise")),
        ):
            if value not in choices:
                raise ValueError(f"{name}: expected {' or '.join(choices)}, got {value!r}")
        self.root = Path(root)
        if not self.root.is_dir():
            raise ValueError(f"{self.root}: there is no such folder")
        self.image_set = image_set
        self._verify = verify
        if annotations is None:
            place, part = _find(self.root, image_set)
        else:
            place, part = CocoSet(Path(annotations), (self.root,)), "all"
        self.annotations = place.annotations
        problems: list[Problem] = []
        content = read_coco(self.annotations, problems)
        categories = content.categories
        self.class_names = tuple(categories)
        if class_names is not None:
            self.class_names = check_class_names(class_names)
        self.category_ids = tuple(categories.get(name, -1) for name in self.class_names)
        images = self._resolve(content, place.folders, part, problems)
        self._keep(images, crowd, problems)
        self.problems = tuple(problems)
        if self.problems and invalid == "raise":
            raise ValueError(f"{self.annotations}: {summary(self.problems)}")
        if not images:
            raise EmptyDatasetError(f"{self.annotations}: no image can be used. ", problems)
        if not self.class_names:
            raise ValueError(f"{self.annotations}: it names no class; pass class_names")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Reads an image.

        Args:
            index: from `-len(self)` to `len(self) - 1`.

        Returns:
            image (3, H, W) uint8 RGB, and its target: boxes (n, 4) float32 corners in pixels,
            labels (n,) int64 from 1, difficult and ignore (n,) bool, both true for crowds, and area
            (n,) float32, pixels of the objects themselves.

        Raises:
            BrokenSample: the file does not decode, or is not of the annotated size.
            IndexError: there is no such image.
        """
        return read_image(self.paths[index], size=self._sizes[index]), self.target(index)

    @cpu_by_default
    def target(self, index: int) -> dict[str, Tensor]:
        """The target of an image alone, without reading the pixels.

        Args:
            index: from `-len(self)` to `len(self) - 1`.

        Returns:
            What `dataset[index][1]` is.
        """
        position = index % len(self)
        rows = slice(self._offsets[position], self._offsets[position + 1])
        return {
            "boxes": self._boxes[rows].clone(),
            "labels": self._labels[rows].clone(),
            "difficult": self._crowd[rows].clone(),
            "ignore": self._crowd[rows].clone(),
            "area": self._area[rows].clone(),
        }

    def _resolve(
        self,
        content: CocoAnnotation,
        folders: Sequence[Path],
        part: str,
        problems: list[Problem],
    ) -> list[_Image]:
        """The images of the part that are there, with those of their objects that are whole."""
        images = content.images
        if part != "all":
            names = [image.file_name for image in images]
            wanted = set(held_out(sorted(names), part))
            images = tuple(image for image in images if image.file_name in wanted)
        folder = images_folder(folders, [image.file_name for image in images])
        names_known = frozenset(self.class_names)
        result = []
        for image in images:
            found = self._find_image(folder, image, problems)
            if found is None:
                continue
            path, size = found
            whole = []
            for item in content.objects[image.id]:
                fault = item.fault(size, names_known)
                if fault is None:
                    whole.append(item)
                else:
                    fault = f"{fault}, in {image.file_name}"
                    problems.append(Problem(self.annotations, item.id, fault))
            result.append(_Image(image.id, path, size, whole))
        return result

    def _find_image(
        self, folder: Path, image: CocoImage, problems: list[Problem]
    ) -> tuple[Path, tuple[int, int]] | None:
        """Path and size of an image that is there."""
        path = image_path(folder, image.file_name)
        if path is None:
            fault = f"the file name {image.file_name!r} leads out of {folder}"
            problems.append(Problem(self.annotations, None, fault))
            return None
        if not is_file(path):
            problems.append(Problem(path, None, "the image is missing"))
            return None
        if image.size is not None and not self._verify:
            return path, image.size
        try:
            stored, turned = check_image(path)
        except BrokenSample as error:
            problems.append(Problem(path, None, error.reason))
            return None
        if image.size in (None, stored, turned):
            return path, image.size or turned
        problems.append(Problem(path, None, other_size(turned, image.size)))
        return None

    @cpu_by_default
    def _keep(self, images: Sequence[_Image], crowd: str, problems: list[Problem]) -> None:
        """Stores all objects in a few tensors, which worker processes share."""
        label = {name: i for i, name in enumerate(self.class_names, 1)}
        objects = [
            [item for item in image.objects if crowd == "ignore" or not item.crowd]
            for image in images
        ]
        flat = [
            (item.corners(image.size), item)
            for image, items in zip(images, objects, strict=True)
            for item in items
        ]
        self._offsets = [0, *accumulate(len(items) for items in objects)]
        self._boxes = torch.tensor([box for box, _ in flat], dtype=torch.float32).reshape(-1, 4)
        labels = [label[item.category] for _, item in flat if item.category is not None]
        self._labels = torch.tensor(labels, dtype=torch.int64)
        self._crowd = torch.tensor([item.crowd for _, item in flat], dtype=torch.bool)
        self._area = torch.tensor([item.area for _, item in flat], dtype=torch.float32)
        self.image_ids = tuple(image.id for image in images)
        self.paths = tuple(image.path for image in images)
        self._sizes = [image.size for image in images]


def _find(root: Path, image_set: str) -> tuple[CocoSet, str]:
    """The annotation file of a set, and which part of it the set is."""
    sets = find_sets(root)
    if not sets:
        raise ValueError(
            f"{root}: found no annotations in COCO's format: neither annotations/instances_*.json"
            " nor _annotations.coco.json"
        )
    names = pick_sets(sets, image_set)
    if len(names) > 1:
        raise ValueError(
            f"image_set: {image_set!r} fits several sets of {root}: {', '.join(names)}; say which"
        )
    if names:
        return sets[names[0]], "all"
    if "" in sets:
        return sets[""], image_set
    raise ValueError(f"image_set: {root} has no set {image_set!r}, only {', '.join(sets)}")
