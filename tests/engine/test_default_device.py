# SPDX-License-Identifier: BSD-3-Clause
"""Data, training and scores under another default device: nothing of theirs is made there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ssd_fast.data import Augmentation, ShapesDataset
from ssd_fast.engine.confusion import confusion_matrix
from ssd_fast.engine.evaluation import Metric, detect_dataset, score_detections
from ssd_fast.engine.example_sheet import draw_examples
from ssd_fast.engine.precision import Precision
from ssd_fast.engine.trainer import Trainer, TrainingOptions
from ssd_fast.models.ssd import SSD

FLOAT32 = Precision(torch.float32, "asked for")


def assert_same_elsewhere(compute: Callable[[], Any]) -> None:
    """Tensors on the meta device have no values: whoever asks for one of them fails."""
    expected = compute()
    torch.set_default_device("meta")
    try:
        found = compute()
    finally:
        torch.set_default_device(None)
    assert found == expected


def test_scenes_and_their_augmentation():
    augment = Augmentation(64, zoom_out=1.0, crop=1.0, colour=1.0)

    def draw() -> list[Any]:
        image, target = ShapesDataset(3, size=96)[1]
        shown, kept = augment(image, target, torch.Generator().manual_seed(0))
        return [x.tolist() for x in (image, shown, *target.values(), *kept.values())]

    assert_same_elsewhere(draw)


@pytest.mark.parametrize("augment", ["none", "torchvision"])
def test_training(augment: str, small_detector: Callable[[], SSD]):
    options = TrainingOptions(steps=2, batch_size=3, warmup=1, augment=augment)

    def train() -> list[Any]:
        with torch.device("cpu"):
            model = small_detector()
        run = Trainer(model, ShapesDataset(4, size=64), options, precision=FLOAT32)
        return [(report.box_loss, report.class_loss) for report in run.run()]

    assert_same_elsewhere(train)


def test_pictures_of_examples(small_detector: Callable[[], SSD]):
    model, dataset = small_detector(), ShapesDataset(3, size=64)
    assert_same_elsewhere(
        lambda: draw_examples(model, dataset, precision=FLOAT32, caption="examples")
    )


@pytest.mark.parametrize("metric", ["voc", "voc07", "coco"])
def test_scores(metric: Metric, small_detector: Callable[[], SSD]):
    model, dataset = small_detector(), ShapesDataset(3, size=64)

    def score() -> list[Any]:
        batches = [*detect_dataset(model, dataset, precision=FLOAT32)]
        detections = [image for found, _ in batches for image in found]
        targets = [image for _, there in batches for image in there]
        evaluation = score_detections(detections, targets, dataset.class_names, metric=metric)
        counts = confusion_matrix(detections, targets, num_classes=4, score_threshold=0.0).counts
        return [evaluation.metrics(), counts.tolist()]

    assert_same_elsewhere(score)
