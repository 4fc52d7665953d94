# SPDX-License-Identifier: BSD-3-Clause
"""inspect: reads every image of some datasets and counts what is in them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ssd_fast.data.default_device import cpu_by_default
from ssd_fast.data.problems import BrokenSample, Problem

__all__ = ["ClassCount", "FolderDataset", "Inspection", "inspect"]


class FolderDataset(Protocol):
    """What `VOCDataset` and `COCODataset` have in common."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes; label i + 1 is `class_names[i]`."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """The image files."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What was left out."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int, /) -> tuple[Tensor, dict[str, Tensor]]:
        """Image (3, H, W) uint8, and its target."""

    def target(self, index: int) -> dict[str, Tensor]:
        """The target alone."""


class ClassCount(NamedTuple):
    """How often a class is there.

    Attributes:
        name: of the class.
        images: that show it.
        objects: of it, those among them that are difficult or a crowd.
        difficult: objects that are difficult or a crowd.
    """

    name: str
    images: int
    objects: int
    difficult: int


@dataclass(frozen=True)
class Inspection:
    """What is in datasets.

    Attributes:
        images: number of images of each dataset that decode, by its name.
        objects: number of their objects, by the name of the dataset.
        empty: images without objects, all datasets together.
        classes: all datasets together, in the order in which the datasets name them.
        sizes: how many images have each (width, height).
        sides: (N, 2) float32, width and height of each object as shares of its image's.
        problems: what is broken: first what the datasets left out, then what does not decode.
    """

    images: dict[str, int]
    objects: dict[str, int]
    empty: int
    classes: tuple[ClassCount, ...]
    sizes: Counter[tuple[int, int]]
    sides: Tensor
    problems: tuple[Problem, ...]


@cpu_by_default
def inspect(
    datasets: Mapping[str, FolderDataset],
    *,
    workers: int | None = None,
    on_image: Callable[[], object] | None = None,
) -> Inspection:
    """Decodes every image and counts classes and sizes.

    Args:
        datasets: by name, such as that of the set.
        workers: threads that decode; None is one for each processor. Decoding releases Python's
            lock.
        on_image: is called after each image, for a progress bar.

    Returns:
        What was found. A broken image is a problem and counts nowhere else.

    Raises:
        ValueError: `workers` is less than 1.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers: expected 1 or more, got {workers}")
    problems = [problem for dataset in datasets.values() for problem in dataset.problems]
    tally = _Tally()
    pool = ThreadPoolExecutor(workers or os.cpu_count())
    try:
        for name, dataset in datasets.items():
            tally.begin(name, dataset.class_names)
            results = pool.map(partial(_read, dataset), range(len(dataset)))
            for index, result in enumerate(results):
                if isinstance(result, BrokenSample):
                    problems.append(Problem(result.path, None, result.reason))
                else:
                    tally.count(name, dataset.class_names, result, dataset.target(index))
                if on_image is not None:
                    on_image()
    finally:  # Ctrl-C waits for no image but those that are being decoded
        pool.shutdown(cancel_futures=True)
    return tally.inspection(tuple(problems))


_Shape = tuple[int, int]


class _Tally:
    """Counts one image after the other."""

    def __init__(self) -> None:
        self.images: dict[str, int] = {}
        self.objects: dict[str, int] = {}
        self.objects_of: Counter[str] = Counter()
        self._images_of: Counter[str] = Counter()
        self._difficult_of: Counter[str] = Counter()
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._sides = [torch.zeros(0, 2, dtype=torch.float32)]
        self._empty = 0

    def begin(self, name: str, class_names: tuple[str, ...]) -> None:
        """Makes room for a dataset."""
        self.images[name] = self.objects[name] = 0
        for class_name in class_names:
            self.objects_of[class_name] += 0

    def count(
        self, name: str, class_names: tuple[str, ...], size: _Shape, target: dict[str, Tensor]
    ) -> None:
        """Adds an image of (width, height) pixels."""
        labels = [class_names[label - 1] for label in target["labels"].tolist()]
        hard = target["difficult"].tolist()
        self.images[name] += 1
        self.objects[name] += len(labels)
        self._empty += not labels
        self.objects_of.update(labels)
        self._images_of.update(set(labels))
        self._difficult_of.update(label for label, flag in zip(labels, hard, strict=True) if flag)
        self._sizes[size] += 1
        sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
        self._sides.append(sides / sides.new_tensor(size))

    def inspection(self, problems: tuple[Problem, ...]) -> Inspection:
        """The sums."""
        classes = tuple(
            ClassCount(name, self._images_of[name], objects, self._difficult_of[name])
            for name, objects in self.objects_of.items()
        )
        return Inspection(
            self.images,
            self.objects,
            self._empty,
            classes,
            self._sizes,
            torch.cat(self._sides),
            problems,
        )


def _read(dataset: FolderDataset, index: int) -> _Shape | BrokenSample:
    """(width, height) of an image that decodes."""
    try:
        height, width = dataset[index][0].shape[1:]
    except BrokenSample as error:
        return error
    return width, height
