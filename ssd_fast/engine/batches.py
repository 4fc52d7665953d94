# SPDX-License-Identifier: BSD-3-Clause
"""Batches for training: images of one size, boxes in [0, 1], an order fixed by the seed."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ssd_fast.data import BrokenSample
from ssd_fast.data.augmentation import Augmentation
from ssd_fast.engine.dataset_items import DetectionDataset, read_item
from ssd_fast.engine.interruption import Interruption
from ssd_fast.targets import Targets

__all__ = ["Batch", "TrainingSamples", "batches"]


class Batch(NamedTuple):
    """B images and their objects.

    Attributes:
        images: (B, 3, S, S) uint8.
        targets: boxes in [0, 1]; `dropped` counts the objects that are not among them: broken
            boxes, and labels of no class.
        indices: which images of the dataset they are.
        broken: what is wrong with the files that did not decode, one line each; the next images of
            the dataset took their places.
    """

    images: Tensor
    targets: Targets
    indices: tuple[int, ...] = ()
    broken: tuple[str, ...] = ()


class _Sample(NamedTuple):
    image: Tensor  # (3, S, S) uint8
    boxes: Tensor  # (n, 4) float32 in [0, 1]
    labels: Tensor  # (n,) int64
    ignore: Tensor  # (n,) bool, regions that are no objects
    dropped: int  # broken boxes left out
    number: int  # index in the dataset
    broken: tuple[str, ...]  # images that did not decode before this one did


class _Read(NamedTuple):
    image: Tensor  # (3, H, W) uint8
    target: dict[str, Tensor]  # boxes (n, 4) in pixels, labels and ignore (n,); no broken ones
    dropped: int


class TrainingSamples(Dataset[_Sample]):
    """A dataset's images, augmented, decoded once while they fit in memory.

    Args:
        dataset: the images.
        augmentation: makes each draw of an image another.
        keep_bytes: how many bytes of decoded images are kept.
    """

    def __init__(
        self, dataset: DetectionDataset, augmentation: Augmentation, *, keep_bytes: int = 0
    ) -> None:
        self.dataset = dataset
        self.augmentation = augmentation
        self._room = keep_bytes
        self._kept: dict[int, _Read] = {}
        self._broken: dict[int, str] = {}

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def __getitem__(self, draw: tuple[int, int]) -> _Sample:
        """Draws a sample; the next image of the dataset stands in for one that does not decode.

        Args:
            draw: index of the image, and the seed of its augmentation.

        Returns:
            The image and its objects.

        Raises:
            ValueError: no image of the dataset decodes, or an item is not what `DetectionDataset`
                says.
        """
        first, seed = draw
        broken: list[str] = []
        for place in range(first, first + len(self)):
            index = place % len(self)
            read = self._read(index)
            if isinstance(read, _Read):
                generator = torch.Generator().manual_seed(seed)
                image, target = self.augmentation(read.image, read.target, generator)
                boxes = target["boxes"] / self.augmentation.size
                labels, ignore = target["labels"], target["ignore"]
                return _Sample(image, boxes, labels, ignore, read.dropped, index, tuple(broken))
            broken.append(read)
        raise ValueError(f"dataset: none of its {len(self)} images decodes; {broken[0]}")

    def _read(self, index: int) -> _Read | str:
        """An image as it was decoded, or what is wrong with it; once, while there is room."""
        if index in self._broken:
            return self._broken[index]
        read = self._kept.get(index)
        if read is None:
            try:
                read = self._decode(index)
            except BrokenSample as error:
                self._broken[index] = str(error)
                return self._broken[index]
            if read.image.numel() <= self._room:
                self._room -= read.image.numel()
                self._kept[index] = read
        return read

    def _decode(self, index: int) -> _Read:
        image, target = read_item(self.dataset, index)
        boxes = target["boxes"]
        # Before augmentation, which leaves out what it crops away, so that both are not mixed up.
        good = boxes.isfinite().all(1) & (boxes[:, :2] < boxes[:, 2:]).all(1)
        kept = {column: target[column][good] for column in ("boxes", "labels", "ignore")}
        return _Read(image, kept, int((~good).sum()))


class _Stream(Sampler[list[tuple[int, int]]]):
    """Every step's draws: random orders of the dataset, one after the other, cut into batches.

    Step s is a function of (length, batch size, seed, s), so a run that stops and goes on draws
    what it would have drawn, with any number of workers; several processes take a share each.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, start: int, stop: int, share: range
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start, self.stop, self.share = start, stop, share

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order: list[tuple[int, int]] = []
        known = -1
        for step in range(self.start, self.stop):
            batch = []
            for place_in_batch in self.share:
                position = step * self.batch_size + place_in_batch
                epoch, place = divmod(position, self.length)
                if epoch != known:
                    order, known = self._order(epoch), epoch
                batch.append(order[place])
            yield batch

    def _order(self, epoch: int) -> list[tuple[int, int]]:
        generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
        indices = torch.randperm(self.length, generator=generator).tolist()
        seeds = torch.randint(2**62, (self.length,), generator=generator).tolist()
        return list(zip(indices, seeds, strict=True))


def _mix(seed: int, epoch: int) -> int:
    """One seed of two numbers, so that epoch 1 of seed 0 is not epoch 0 of seed 1."""
    # Python's generator takes -1 for 1.
    return random.Random((seed % 2**64 << 64) | epoch).getrandbits(63)


def _collate(samples: Sequence[_Sample], num_classes: int) -> Batch:
    """Stacks the images and packs the objects; broken ones are left out and counted.

    So are labels of no class, which a dataset of somebody's own may have: the loss would pass them
    by without a word.
    """
    images = torch.stack([sample.image for sample in samples])
    targets = [
        {"boxes": sample.boxes, "labels": sample.labels, "ignore": sample.ignore}
        for sample in samples
    ]
    packed = Targets.pack(targets, num_classes=num_classes, invalid="drop")
    dropped = packed.dropped + sum(sample.dropped for sample in samples)
    indices = tuple(sample.number for sample in samples)
    broken = tuple(line for sample in samples for line in sample.broken)
    return Batch(images, packed._replace(dropped=dropped), indices, broken)


def _outlast_a_request(worker: int) -> None:
    """Lets a worker live through a first Ctrl-C or SIGTERM, which the whole process group may get.

    What to do about it is for the process that trains: it ends after its step, for which it may
    need another batch. Only workers that are forked have its handlers anyway.
    """
    Interruption().__enter__()


def batches(
    samples: TrainingSamples,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    share: range | None = None,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """The batches of steps `start` to `stop - 1`.

    Args:
        samples: where they are drawn from.
        batch_size: images a step. It may exceed the number of images: an image is then drawn more
            than once.
        seed: of the order and the augmentation.
        start: first step.
        stop: step after the last.
        share: which of a step's images, for one of several processes; None is all of them.
        workers: processes that read ahead; 0 reads in this one.
        pin_memory: for copies to a GPU.

    Returns:
        An iterable of `Batch`.

    Raises:
        ValueError: there is no image.
    """
    if len(samples) == 0:
        raise ValueError("dataset: expected at least one image, got none")
    options: dict[str, Any] = {"persistent_workers": True} if workers else {}
    # The stub takes the loader's type for its dataset's; collate_fn makes the one of the other.
    return DataLoader(
        cast("Dataset[Batch]", samples),
        batch_sampler=_Stream(
            len(samples), batch_size, seed, start, stop, share or range(batch_size)
        ),
        collate_fn=functools.partial(_collate, num_classes=len(samples.dataset.class_names) + 1),
        num_workers=workers,
        pin_memory=pin_memory,
        # The loader draws a seed for its workers: not from the global generator.
        generator=torch.Generator().manual_seed(seed),
        worker_init_fn=_outlast_a_request,
        **options,
    )
