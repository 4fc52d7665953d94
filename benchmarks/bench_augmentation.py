# SPDX-License-Identifier: BSD-3-Clause
"""SSD's augmentation beside torchvision's stock v2 transforms, and its share of a training step.

Both draw from one distribution: `tests/data/test_augmentation_distribution.py` holds ours to
theirs. Images are decoded before; a row is `IMAGES` of them, one after the other, with new draws at
each call. Photographs are those of the VOC folder that SSD_FAST_VOC names.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.harness import Contender, SideBySide
from benchmarks.peers.torchvision_installed import installed_torchvision
from ssd_fast.data import Augmentation, ShapesDataset, VOCDataset
from ssd_fast.data.crops import Recipe
from ssd_fast.engine.batches import Batch, TrainingSamples, batches
from ssd_fast.models import ssd300_vgg16

IMAGES = 8
SIDE = 300
FILL = (123, 117, 104)
STEPS = 10_000  # more than are timed

Sample = tuple[Tensor, dict[str, Tensor]]


def samples_of(source: str) -> list[Sample]:
    if source == "scenes of 500 x 500":
        scenes = ShapesDataset(IMAGES, size=500, seed=5)
        return [scenes[i] for i in range(IMAGES)]
    folder = os.environ.get("SSD_FAST_VOC")
    if not folder:
        pytest.skip("needs photographs: set SSD_FAST_VOC to a folder in VOC layout")
    photographs = VOCDataset(folder, "all")
    return [photographs[i] for i in range(IMAGES)]


def check(results: list[Sample]) -> None:
    assert len(results) == IMAGES
    for image, target in results:
        assert image.shape == (3, SIDE, SIDE)
        assert image.dtype == torch.uint8
        boxes = target["boxes"]
        assert len(boxes) == len(target["labels"])
        assert bool(((boxes >= 0) & (boxes <= SIDE)).all())


def ours(recipe: Recipe, samples: list[Sample]) -> Callable[[], list[Sample]]:
    augmentation = Augmentation(SIDE, recipe=recipe)
    generator = torch.Generator().manual_seed(0)
    return lambda: [augmentation(image, target, generator) for image, target in samples]


def stock(samples: list[Sample], *, pillow: bool) -> Callable[[], list[Sample]]:
    """The transforms of torchvision's reference training of SSD, and the resize of its model."""
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    pipeline = v2.Compose(
        [
            v2.RandomPhotometricDistort(),
            v2.RandomZoomOut(fill=list(FILL)),
            v2.RandomIoUCrop(),
            v2.RandomHorizontalFlip(),
            v2.SanitizeBoundingBoxes(),
            v2.Resize((SIDE, SIDE), antialias=False),
            v2.ToImage(),
        ]
    )

    def wrap(image: Tensor, target: dict[str, Tensor]) -> tuple[Any, dict[str, Any]]:
        size = (image.shape[1], image.shape[2])
        boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)
        whole = image.contiguous()
        pixels = v2.functional.to_pil_image(whole) if pillow else tv_tensors.Image(whole)
        return pixels, {"boxes": boxes, "labels": target["labels"]}

    wrapped = [wrap(*sample) for sample in samples]
    return lambda: [pipeline(*sample) for sample in wrapped]


@pytest.mark.parametrize("source", ["scenes of 500 x 500", "photographs"])
def test_augmentation(side_by_side: SideBySide, source: str) -> None:
    if installed_torchvision() is None:
        pytest.skip("needs torchvision, which is not installed or does not load")
    samples = samples_of(source)
    side_by_side(
        f"augmentation, {IMAGES} {source}, one thread",
        [
            Contender("ssd_fast", ours("torchvision", samples), check),
            Contender("ssd_fast, Caffe's numbers", ours("caffe", samples), check),
            Contender("torchvision v2, tensors", stock(samples, pillow=False), check),
            Contender("torchvision v2, Pillow", stock(samples, pillow=True), check),
        ],
        caches=["hot"],
    )


def test_share_of_a_training_step(side_by_side: SideBySide) -> None:
    """The demo's model; images stay in memory, as in `ssd-fast train`; no worker reads ahead."""
    scenes = ShapesDataset(IMAGES, size=500, seed=6)
    samples = TrainingSamples(scenes, Augmentation(SIDE), keep_bytes=2**30)
    model = ssd300_vgg16(4, width=0.125, norm=True)
    loader = batches(samples, batch_size=IMAGES, seed=0, start=0, stop=STEPS)
    stream: Iterator[Batch] = iter(loader)
    fixed = next(stream)

    def step(batch: Batch) -> list[Tensor]:
        losses = model(batch.images.float() / 255, batch.targets)
        return list(torch.autograd.grad(sum(losses.values()), list(model.parameters())))

    def finite(gradients: list[Tensor]) -> None:
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)

    side_by_side(
        f"training step of the demo's model, B={IMAGES}, float32, one thread",
        [
            Contender("step alone", lambda: step(fixed), finite),
            Contender("step and its data", lambda: step(next(stream)), finite),
            Contender("data alone", lambda: next(stream), lambda batch: None),
        ],
        caches=["hot"],
    )
