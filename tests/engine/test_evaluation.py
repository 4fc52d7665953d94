# SPDX-License-Identifier: BSD-3-Clause
"""Detections come back in pixels of each image, and are scored as the numbers say."""

import json
from collections.abc import Callable

import pytest
import torch

from ssd_fast.data import ShapesDataset
from ssd_fast.engine.evaluation import detect_dataset, detect_images, score_detections
from ssd_fast.engine.precision import choose_precision
from ssd_fast.engine.prediction import above, describe
from ssd_fast.engine.subset import Subset
from ssd_fast.models.ssd import SSD

FLOAT32 = choose_precision(torch.device("cpu"), "float32")
NAMES = ("circle", "rectangle", "triangle")


def exact(dataset: ShapesDataset) -> tuple[list, list]:
    """Detections that are the truth."""
    targets = [dataset[i][1] for i in range(len(dataset))]
    return [{**t, "scores": torch.ones(len(t["labels"]))} for t in targets], targets


def test_the_truth_scores_one():
    detections, targets = exact(ShapesDataset(5))
    evaluation = score_detections(detections, targets, NAMES)
    assert evaluation.metrics()["map_50"] == evaluation.metrics()["map"] == 1.0
    assert evaluation.images == 5


def test_shifted_boxes_lose_the_strict_thresholds():
    detections, targets = exact(ShapesDataset(5, seed=2))
    for row in detections:
        side = row["boxes"][:, 2:] - row["boxes"][:, :2]
        row["boxes"] = row["boxes"] + 0.12 * side.repeat(1, 2)  # IoU 0.63
    metrics = score_detections(detections, targets, NAMES).metrics()
    assert metrics["map_50"] == 1.0
    assert metrics["map_75"] == 0.0
    assert metrics["map"] == pytest.approx(0.3)  # 0.5, 0.55 and 0.6 of ten


def test_a_class_without_objects_is_null():
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    metrics = score_detections([{**empty, "scores": torch.zeros(0)}], [empty], NAMES).metrics()
    assert json.loads(json.dumps(metrics))["ap_50_per_class"] == dict.fromkeys(NAMES)


def test_boxes_are_in_pixels_of_each_image(small_detector: Callable[[], SSD]):
    model = small_detector().eval()
    model.score_threshold = 0.001
    small = torch.randint(256, (3, 100, 200), dtype=torch.uint8)
    large = small.repeat_interleave(4, 1).repeat_interleave(4, 2)
    ours = detect_images(model, [small, large], precision=FLOAT32)
    for found, (width, height) in zip(ours, ((200, 100), (800, 400)), strict=True):
        boxes = found["boxes"]
        assert len(boxes)
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= width
        assert boxes[:, 3].max() <= height
    assert ours[1]["boxes"][:, 2].max() > 200
    assert (ours[0]["scores"].diff() <= 0).all()


def test_a_dataset_is_seen_once_in_order(small_detector: Callable[[], SSD]):
    model = small_detector()
    model.score_threshold = 0.001
    dataset = ShapesDataset(5, size=64)
    rounds = list(detect_dataset(model, dataset, precision=FLOAT32, batch_size=2))
    assert [len(found) for found, _ in rounds] == [2, 2, 1]
    targets = [target for _, some in rounds for target in some]
    for i, target in enumerate(targets):
        assert torch.equal(target["boxes"], dataset[i][1]["boxes"])
    alone = detect_images(model, [dataset[4][0]], precision=FLOAT32)
    torch.testing.assert_close(rounds[2][0], alone)


class Altered(ShapesDataset):
    """Scenes of which number 3 is what `change` makes of it."""

    def __init__(self, change: Callable) -> None:
        super().__init__(5, size=64)
        self.change = change

    def __getitem__(self, index: int) -> tuple:
        image, target = super().__getitem__(index)
        return self.change(image, target) if index == 3 else (image, target)


@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda image, target: (image.permute(1, 2, 0).numpy(), target),
            r"expected an image \(3, H, W\) uint8, got",
        ),
        (
            lambda image, target: (image, target | {"labels": target["labels"] * 0}),
            r"labels\[0\] is 0: expected from 1 to 3",
        ),
    ],
)
def test_what_is_no_item_is_named(
    small_detector: Callable[[], SSD], change: Callable, message: str, some: bool
):
    dataset = Altered(change)
    images = Subset(dataset, [0, 3, 4]) if some else dataset
    with pytest.raises(ValueError, match=r"^dataset\[3\]: " + message):
        list(detect_dataset(small_detector(), images, precision=FLOAT32, batch_size=2))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_no_image_is_refused_at_once(small_detector: Callable[[], SSD], batch_size: int):
    with pytest.raises(ValueError, match=f"^batch_size: expected 1 or more, got {batch_size}$"):
        detect_dataset(small_detector(), ShapesDataset(1), precision=FLOAT32, batch_size=batch_size)


def test_descriptions_name_the_class():
    detections = {
        "boxes": torch.tensor([[1.0, 2.0, 3.0, 4.004], [0.0, 0.0, 1.0, 1.0]]),
        "scores": torch.tensor([0.9, 0.4]),
        "labels": torch.tensor([2, 1]),
    }
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    described = describe("a.jpg", image, above(detections, 0.5), NAMES)
    assert described == {
        "file": "a.jpg",
        "width": 60,
        "height": 40,
        "detections": [{"box": [1, 2, 3, 4], "score": 0.9, "label": 2, "class": "rectangle"}],
    }
