# SPDX-License-Identifier: BSD-3-Clause
"""Some images of a dataset: a process's share, or those that decode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from ssd_fast.engine.dataset_items import DetectionDataset

__all__ = ["Subset", "leave_out", "place_in_whole"]


class Subset:
    """Some images of a dataset.

    Args:
        dataset: of all.
        indices: which, in which order.
    """

    def __init__(self, dataset: DetectionDataset, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, indices

    @property
    def class_names(self) -> tuple[str, ...]:
        """The dataset's."""
        return self.dataset.class_names

    @property
    def paths(self) -> tuple[Path, ...] | None:
        """The image files; None if the dataset has none."""
        paths = getattr(self.dataset, "paths", None)
        return None if paths is None else tuple(paths[i] for i in self.indices)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.indices)

    def __getitem__(self, index: int, /) -> tuple[Tensor, dict[str, Tensor]]:
        """An image and its target, as the dataset gives them."""
        return self.dataset[self.indices[index]]


def place_in_whole(dataset: DetectionDataset, index: int) -> tuple[DetectionDataset, int]:
    """Where an image comes from, for errors that a user is to find it by.

    Args:
        dataset: the images; perhaps a subset, of a subset.
        index: of the image.

    Returns:
        The dataset that is no subset, and the image's index there.
    """
    while isinstance(dataset, Subset):
        index, dataset = dataset.indices[index], dataset.dataset
    return dataset, index


def leave_out(dataset: DetectionDataset, broken: Mapping[int, object]) -> DetectionDataset:
    """The images that decode.

    Args:
        dataset: of all.
        broken: what is wrong with the others, by index.

    Returns:
        A subset in the dataset's order, or the dataset itself if nothing is broken.

    Raises:
        ValueError: no image decodes.
    """
    if not broken:
        return dataset
    kept = [i for i in range(len(dataset)) if i not in broken]
    if not kept:
        reason = next(iter(broken.values()))
        raise ValueError(f"none of the {len(dataset)} images decodes; {reason}")
    return Subset(dataset, kept)
