# SPDX-License-Identifier: BSD-3-Clause
"""COCO's numbers are pycocotools', with crowds, sizes, ties and broken boxes."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ssd_fast.engine.average_precision import (
    COCO_THRESHOLDS,
    average_precision,
    average_precisions,
)
from ssd_fast.engine.coco_evaluation import COCOEvaluation, evaluate_coco
from ssd_fast.engine.evaluation import score_detections

from .cocoeval import cocoeval

Rows = dict[str, Tensor]
CLASSES = 3
SMALL, MEDIUM, LARGE = (0, 32**2), (32**2, 96**2), (96**2, 1e10)


def random_case(seed: int, images: int = 8) -> tuple[list[Rows], list[Rows]]:
    """Objects of all sizes, crowds and difficult ones; detections near and far, tied scores.

    One case in four has an image with more detections of a class than count.
    """
    g = torch.Generator().manual_seed(seed)
    detections, targets = [], []
    for image in range(images):
        n = int(torch.randint(0, 9, (), generator=g))
        corner = torch.randint(0, 300, (n, 2), generator=g)
        side = 2.0 ** (3 + 5 * torch.rand(n, 2, generator=g))
        boxes = torch.cat([corner, corner + side.round()], 1)
        labels = torch.randint(1, CLASSES + 1, (n,), generator=g)
        kind = torch.rand(n, generator=g)
        area = boxes[:, 2:].sub(boxes[:, :2]).prod(1) * torch.where(kind > 0.5, 0.6, 1.0)
        targets.append(
            {"boxes": boxes, "labels": labels, "iscrowd": kind < 0.15, "area": area}
            | ({"difficult": kind > 0.9} if seed % 3 == 0 else {})
        )
        d = 4 * n + 1 if n else 2
        many = seed % 4 == 1 and image == 0
        d = 160 if many else d
        near = torch.randint(0, n, (d,), generator=g) if n else None
        base = boxes[near] if near is not None else torch.tensor([[5.0, 5, 60, 60]]).repeat(d, 1)
        shift = (torch.rand(d, 4, generator=g) - 0.5) * 12
        kinds = torch.randint(1, CLASSES + 1, (d,), generator=g)
        same = torch.rand(d, generator=g) < 0.7
        found = torch.where(same, labels[near], kinds) if near is not None else kinds
        moved = base + shift.round()
        moved[:, 2:] = torch.maximum(moved[:, 2:], moved[:, :2] + 1)
        found = torch.ones_like(found) if many else found
        scores = torch.randint(1, 40, (d,), generator=g) / 40
        detections.append({"boxes": moved, "labels": found, "scores": scores})
    return detections, targets


def numbers(evaluation: COCOEvaluation) -> list[float]:
    names = ("ap", "ap_50", "ap_75", "ap_small", "ap_medium", "ap_large")
    recalls = ("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large")
    return [getattr(evaluation, name) for name in (*names, *recalls)]


def test_equals_pycocotools(full_count: Callable[[int, int], int]):
    pytest.importorskip("pycocotools", reason="needs pycocotools")
    for seed in range(full_count(12, 200)):
        detections, targets = random_case(seed)
        ours = evaluate_coco(detections, targets, num_classes=CLASSES + 1)
        theirs = cocoeval(detections, targets, CLASSES)
        expected = [float(v) if v >= 0 else math.nan for v in theirs.stats]
        assert numbers(ours) == pytest.approx(expected, abs=1e-6, nan_ok=True), seed
        by_class = theirs.eval["precision"][:, :, :, 0, -1].reshape(-1, CLASSES).mean(0)
        by_class[by_class < 0] = math.nan
        assert ours.per_class.tolist() == pytest.approx(by_class, abs=1e-6, nan_ok=True)


def test_curves_of_a_size_average_to_the_number(full_count: Callable[[int, int], int]):
    """A report draws them, class by class."""
    for seed in range(full_count(6, 200)):
        detections, targets = random_case(seed)
        coco = evaluate_coco(detections, targets, num_classes=CLASSES + 1)
        options: dict[str, Any] = {"num_classes": CLASSES + 1, "method": "coco"}
        for area, expected in (
            (None, coco.ap),
            (SMALL, coco.ap_small),
            (MEDIUM, coco.ap_medium),
            (LARGE, coco.ap_large),
        ):
            results = average_precisions(
                detections, targets, iou_thresholds=COCO_THRESHOLDS, area_range=area, **options
            )
            mean = sum(result.mean for result in results) / len(results)
            assert mean == pytest.approx(expected, abs=1e-9, nan_ok=True), (seed, area)


def test_a_crowd_leaves_an_object_of_another_size_free():
    """The first detection lies in the crowd rather, so the second may take the large object."""
    target = {
        "boxes": torch.tensor([[0.0, 0, 30, 30], [0, 0, 23, 30], [200, 200, 220, 220]]),
        "labels": torch.ones(3).long(),
        "area": torch.tensor([5000.0, 5000.0, 400.0]),
        "iscrowd": torch.tensor([False, True, False]),
    }
    found = {
        "boxes": torch.tensor([[0.0, 0, 25, 30], [5, 0, 30, 30], [200, 200, 220, 220]]),
        "labels": torch.ones(3).long(),
        "scores": torch.tensor([0.9, 0.8, 0.1]),
    }
    # No fault up to IoU 0.8, one at 0.85 and 0.9, two at 0.95.
    by_threshold = [1.0] * 7 + [1 / 2] * 2 + [1 / 3]
    small = evaluate_coco([found], [target], num_classes=2).ap_small
    assert small == pytest.approx(sum(by_threshold) / 10)
    pytest.importorskip("pycocotools", reason="needs pycocotools")
    assert small == pytest.approx(cocoeval([found], [target], CLASSES).stats[3])


def test_a_crowd_takes_many_and_misses_none():
    box = torch.tensor([[0.0, 0, 100, 100], [200, 200, 240, 240]])
    target = {"boxes": box, "labels": torch.ones(2).long(), "ignore": torch.tensor([True, False])}
    inside = torch.tensor([[5.0, 5, 20, 20], [50, 50, 70, 70], [200, 200, 240, 240]])
    found = {
        "boxes": inside,
        "labels": torch.ones(3).long(),
        "scores": torch.tensor([0.9, 0.8, 0.1]),
    }
    for method in ("area", "voc07", "coco"):
        result = average_precision([found], [target], num_classes=2, method=method)
        assert result.mean == pytest.approx(1.0)
        assert result.curves[0].num_objects == 1
    outside = found | {"boxes": inside + torch.tensor([60.0, 60, 60, 60])}
    result = average_precision([outside], [target], num_classes=2)
    assert result.curves[0].scores.tolist() == pytest.approx([0.8, 0.1])


def test_nothing_found_nothing_there_and_broken_boxes():
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "scores": torch.zeros(0)}
    truth = {"boxes": torch.tensor([[0.0, 0, 50, 50]]), "labels": torch.tensor([1])}
    broken = {
        "boxes": torch.tensor([[math.nan, 0, 50, 50], [40, 40, 0, 0], [0, 0, math.inf, 9]]),
        "labels": torch.ones(3).long(),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
    }
    assert math.isnan(evaluate_coco([broken], [empty], num_classes=2).ap)
    assert math.isnan(evaluate_coco([], [], num_classes=2).ar_100)
    assert evaluate_coco([empty], [truth], num_classes=2).ap == 0.0
    nothing = evaluate_coco([broken], [truth], num_classes=2)
    assert nothing.ap == 0.0
    assert math.isnan(nothing.ap_small)
    assert nothing.metrics()["ap_small"] is None


@pytest.mark.parametrize("box", [[math.nan, 0, 9, 9], [0, 0, math.inf, 9], [9, 0, 0, 9]])
def test_rejects_objects_whose_boxes_are_broken(box: list[float]):
    detections, targets = random_case(2)
    row = len(targets[3]["labels"]) - 1
    targets[3]["boxes"][row] = torch.tensor(box)
    with pytest.raises(ValueError, match=rf"targets\[3\]\['boxes'\]\[{row}\] is .*x1 <= x2"):
        evaluate_coco(detections, targets, num_classes=CLASSES + 1)


def test_an_object_without_area_counts_as_in_pycocotools():
    pytest.importorskip("pycocotools", reason="needs pycocotools")
    detections, targets = random_case(2)
    for target in targets:
        target["boxes"][::3, 2:] = target["boxes"][::3, :2]
    ours = evaluate_coco(detections, targets, num_classes=CLASSES + 1)
    assert ours.ap == pytest.approx(cocoeval(detections, targets, CLASSES).stats[0], abs=1e-6)


def test_scores_by_coco_carry_its_numbers():
    detections, targets = random_case(1)
    evaluation = score_detections(detections, targets, ("a", "b", "c"), metric="coco")
    assert evaluation.coco is not None
    assert evaluation.at_50.mean == pytest.approx(evaluation.coco.ap_50, abs=1e-9)
    assert evaluation.metrics()["coco"]["ap_75"] == pytest.approx(evaluation.at_75.mean, abs=1e-5)
    assert evaluation.mean == evaluation.coco.ap
