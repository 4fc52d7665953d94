# SPDX-License-Identifier: BSD-3-Clause
"""Batches: fixed by the seed, boxes that follow their pixels, broken boxes left out."""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from ssd_fast.data import BrokenSample, ShapesDataset
from ssd_fast.data.augmentation import Augmentation
from ssd_fast.engine.batches import Batch, TrainingSamples, _Stream, batches


class Images:
    """A dataset of given samples that counts how often it is read."""

    class_names = ("thing",)

    def __init__(self, samples: Sequence[tuple[Tensor, list[list[float]]]]) -> None:
        self.samples = samples
        self.reads = 0

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        self.reads += 1
        image, boxes = self.samples[index]
        target = {
            "boxes": torch.tensor(boxes).reshape(-1, 4),
            "labels": torch.ones(len(boxes), dtype=torch.int64),
            "difficult": torch.zeros(len(boxes), dtype=torch.bool),
        }
        return image, target


def augmentation(size: int, flip: float = 0.5) -> Augmentation:
    """Only resizing and mirroring."""
    return Augmentation(size, zoom_out=0.0, crop=0.0, colour=0.0, flip=flip)


def numbered(count: int) -> Images:
    """Images whose every pixel is their number."""
    return Images([(torch.full((3, 8, 8), i, dtype=torch.uint8), []) for i in range(count)])


def drawn(samples: TrainingSamples, **options: int) -> Iterator[Batch]:
    return iter(batches(samples, **{"batch_size": 4, "seed": 0, "start": 0, "stop": 10, **options}))


def numbers(samples: TrainingSamples, **options: int) -> list[list[int]]:
    return [batch.images[:, 0, 0, 0].tolist() for batch in drawn(samples, **options)]


def test_each_epoch_is_every_image_in_a_new_order():
    samples = TrainingSamples(numbered(10), augmentation(8, flip=0.0))
    stream = [number for batch in numbers(samples, stop=10) for number in batch]
    epochs = [stream[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_no_two_draws_are_augmented_alike():
    draws = [draw for batch in _Stream(10, 5, 0, 0, 6, range(5)) for draw in batch]
    assert len({seed for _, seed in draws}) == len(draws) == 30


def test_a_later_start_draws_what_the_whole_run_draws():
    samples = TrainingSamples(numbered(10), augmentation(8))
    assert numbers(samples, start=6) == numbers(samples)[6:]


def test_workers_draw_the_same_batches():
    samples = TrainingSamples(ShapesDataset(6, size=32), Augmentation(32), keep_bytes=1 << 20)
    alone, helped = drawn(samples, stop=3), drawn(samples, stop=3, workers=2)
    for ours, theirs in zip(alone, helped, strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.targets.boxes, theirs.targets.boxes)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_outlast_a_request_to_stop(number: signal.Signals):
    """They get it as well, from a terminal or a scheduler, before the step that needs them ends."""
    samples = TrainingSamples(ShapesDataset(6, size=32), Augmentation(32))
    loader = batches(samples, batch_size=4, seed=0, start=0, stop=8, workers=1)
    found = iter(loader)
    next(found)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, number)
    assert len(list(found)) == 7


def test_seeds_differ():
    samples = TrainingSamples(numbered(10), augmentation(8, flip=0.0))
    assert numbers(samples, seed=1) != numbers(samples, seed=0)
    assert numbers(samples, seed=1) != numbers(samples, seed=-1)


def test_a_batch_may_be_larger_than_the_set():
    assert numbers(TrainingSamples(numbered(1), augmentation(8, flip=0.0)), stop=1) == [
        [0, 0, 0, 0]
    ]


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    list(drawn(TrainingSamples(numbered(3), augmentation(8)), stop=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_boxes_follow_resizing_and_mirroring():
    # A white object on black: wherever the image goes, the box must be where the white is.
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    image[:, 15:45, 8:24] = 255
    samples = TrainingSamples(Images([(image, [[8, 15, 24, 45]])]), augmentation(40))
    seen = set()
    for seed in range(20):
        sample = samples[0, seed]
        assert sample.image.shape == (3, 40, 40)
        x1, y1, x2, y2 = (sample.boxes[0] * 40).round().int().tolist()
        white = torch.zeros(3, 40, 40, dtype=torch.uint8)
        white[:, y1:y2, x1:x2] = 255
        assert (sample.image.int() - white.int()).abs().float().mean() < 5  # edges
        seen.add((x1, y1, x2, y2))
    assert seen == {(4, 10, 12, 30), (28, 10, 36, 30)}


def test_kept_images_are_read_once_and_never_changed():
    scenes = Images([(torch.full((3, 8, 8), i, dtype=torch.uint8), [[0, 0, 4, 8]]) for i in (1, 2)])
    samples = TrainingSamples(scenes, augmentation(8), keep_bytes=3 * 8 * 8)
    first = [samples[0, seed].boxes for seed in range(10)]
    assert scenes.reads == 1
    assert all(torch.equal(boxes, samples[0, seed].boxes) for seed, boxes in enumerate(first))
    for seed in range(2):
        samples[1, seed]
    assert scenes.reads == 3  # there is room for one


def test_broken_boxes_are_left_out_and_counted():
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    scenes = Images([(image, [[0, 0, 4, 4], [2, 2, 2, 6]]), (image, [[5, 5, 1, 1]])])
    batch = next(drawn(TrainingSamples(scenes, augmentation(8, flip=0.0)), batch_size=2))
    assert batch.targets.dropped == 2
    assert batch.targets.boxes.tolist() == [[0, 0, 0.5, 0.5]]
    assert sorted(batch.targets.offsets.diff().tolist()) == [0, 1]


def test_labels_of_no_class_are_left_out_and_counted():
    """Counted from 0, or beyond the last: the loss would pass them by without a word."""

    class Numbered(Images):
        def __getitem__(self, index: int):
            image, target = super().__getitem__(index)
            return image, target | {"labels": torch.tensor([0, 1, 2])}

    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    scenes = Numbered([(image, [[0, 0, 4, 4], [2, 2, 8, 8], [1, 1, 5, 5]])])
    batch = next(drawn(TrainingSamples(scenes, augmentation(8)), batch_size=1))
    assert batch.targets.labels.tolist() == [1]
    assert batch.targets.dropped == 2


@pytest.mark.parametrize(
    ("marks", "labels"),
    [
        ({}, [1, 1]),
        ({"ignore": [True, False]}, [-1, 1]),
        ({"iscrowd": [0, 1]}, [1, -1]),
        ({"ignore": [True, False], "iscrowd": [0, 1]}, [-1, -1]),
    ],
)
def test_regions_to_ignore_reach_the_targets(marks: dict[str, list], labels: list[int]):
    class Crowds(Images):
        def __getitem__(self, index: int):
            image, target = super().__getitem__(index)
            return image, target | {name: torch.tensor(mark) for name, mark in marks.items()}

    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    scenes = Crowds([(image, [[0, 0, 4, 4], [2, 2, 8, 8]])] * 2)
    batch = next(drawn(TrainingSamples(scenes, augmentation(8)), batch_size=2))
    assert batch.targets.labels.tolist() == 2 * labels
    assert batch.targets.dropped == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float16, torch.float64])
def test_boxes_of_any_numbers_are_followed(dtype: torch.dtype):
    class Whole(Images):
        def __getitem__(self, index: int):
            image, target = super().__getitem__(index)
            return image, target | {"boxes": target["boxes"].to(dtype)}

    scene = (torch.zeros(3, 200, 200, dtype=torch.uint8), [[20, 40, 180, 100]])
    sample = TrainingSamples(Whole([scene]), augmentation(300, flip=1.0))[0, 0]
    torch.testing.assert_close(sample.boxes, torch.tensor([[0.1, 0.2, 0.9, 0.5]]))


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="expected at least one image, got none"):
        drawn(TrainingSamples(numbered(0), augmentation(8, flip=0.0)))


def test_an_item_that_is_none_is_named():
    class Wrong(Images):
        def __getitem__(self, index: int):
            image, target = super().__getitem__(index)
            return image, target | {"labels": torch.ones(index)}

    scene = (torch.zeros(3, 8, 8, dtype=torch.uint8), [[0, 0, 4, 4], [2, 2, 8, 8]])
    with pytest.raises(ValueError, match=r"dataset\[1\]: expected labels \(2,\) int64"):
        TrainingSamples(Wrong([scene] * 2), augmentation(8))[1, 0]


class Torn(Images):
    """Some of the images do not decode."""

    broken = (1, 2)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        if index in self.broken:
            self.reads += 1
            raise BrokenSample(f"{index}.jpg", "truncated")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_next_image_takes_the_place_of_a_broken_one(workers: int):
    scenes = Torn(numbered(5).samples)
    samples = TrainingSamples(scenes, augmentation(8, flip=0.0), keep_bytes=1 << 20)
    (batch,) = drawn(samples, batch_size=5, stop=1, workers=workers)
    assert sorted(batch.images[:, 0, 0, 0].tolist()) == [0, 3, 3, 3, 4]
    assert sorted(batch.indices) == [0, 3, 3, 3, 4]
    # From 1 on two files were tried, from 2 on one.
    assert sorted(batch.broken) == ["1.jpg: truncated", "2.jpg: truncated", "2.jpg: truncated"]


def test_a_broken_image_is_read_once():
    scenes = Torn(numbered(5).samples)
    samples = TrainingSamples(scenes, augmentation(8, flip=0.0), keep_bytes=1 << 20)
    list(drawn(samples, batch_size=5, stop=6))
    assert scenes.reads == 5


def test_a_set_of_broken_images_is_refused():
    scenes = Torn(numbered(2).samples)
    scenes.broken = (0, 1)
    samples = TrainingSamples(scenes, augmentation(8))
    with pytest.raises(ValueError, match=r"none of its 2 images decodes; [01].jpg: truncated"):
        next(drawn(samples))
