# SPDX-License-Identifier: BSD-3-Clause
import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ssd_fast.engine.average_precision import average_precision, mean_average_precision

from .cocoeval import cocoeval

Rows = dict[str, Tensor]


def objects(*rows: tuple[float, ...], difficult: list[bool] | None = None) -> Rows:
    """A target: (label, x1, y1, x2, y2) each."""
    table = torch.tensor(rows).reshape(-1, 5)
    target = {"boxes": table[:, 1:], "labels": table[:, 0].long()}
    return target if difficult is None else target | {"difficult": torch.tensor(difficult)}


def found(*rows: tuple[float, ...]) -> Rows:
    """Detections: (label, score, x1, y1, x2, y2) each."""
    table = torch.tensor(rows).reshape(-1, 6)
    return {"boxes": table[:, 2:], "labels": table[:, 0].long(), "scores": table[:, 1]}


def random_case(seed: int, images: int = 6, classes: int = 3) -> tuple[list[Rows], list[Rows]]:
    """Detections near the objects, far from them, twice on them, with tied scores and overlaps."""
    generator = torch.Generator().manual_seed(seed)
    detections, targets = [], []
    for _ in range(images):
        n, d = torch.randint(0, 8, (2,), generator=generator).tolist()
        d *= 2
        corner = torch.randint(0, 40, (n, 2), generator=generator)
        boxes = torch.cat([corner, corner + torch.randint(8, 20, (n, 2), generator=generator)], 1)
        labels = torch.randint(1, classes + 1, (n,), generator=generator)
        difficult = torch.rand(n, generator=generator) < 0.2
        targets.append({"boxes": boxes.float(), "labels": labels, "difficult": difficult})
        if n == 0:
            detections.append(found())
            continue
        which = torch.randint(0, n, (d,), generator=generator)
        moved = boxes[which] + torch.randint(-3, 4, (d, 4), generator=generator)
        scores = torch.randint(1, 20, (d,), generator=generator) / 20
        detections.append({"boxes": moved.float(), "labels": labels[which], "scores": scores})
    return detections, targets


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0.0) * max(height, 0.0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def slow_voc(
    detections: list[Rows], targets: list[Rows], label: int, threshold: float, eleven: bool
) -> float:
    """VOCevaldet.m, line by line, without its + 1."""
    truth: dict[int, list[tuple[list[float], bool]]] = {}
    for image, t in enumerate(targets):
        rows = zip(t["boxes"].tolist(), t["labels"], t["difficult"].tolist(), strict=True)
        truth[image] = [(box, hard) for box, of, hard in rows if of == label]
    npos = sum(not hard for rows in truth.values() for _, hard in rows)
    if npos == 0:
        return math.nan
    ranked = [
        (float(score), image, box)
        for image, d in enumerate(detections)
        for box, score, of in zip(d["boxes"].tolist(), d["scores"], d["labels"], strict=True)
        if of == label
    ]
    ranked.sort(key=lambda row: -row[0])
    taken, marks = set(), []
    for _, image, box in ranked:
        best, at = -1.0, -1
        for j, (other, _) in enumerate(truth[image]):
            if iou(box, other) > best:
                best, at = iou(box, other), j
        if best < threshold:
            marks.append(0)
        elif truth[image][at][1]:
            continue
        else:
            marks.append(0 if (image, at) in taken else 1)
            taken.add((image, at))
    points, true = [], 0
    for i, mark in enumerate(marks, 1):
        true += mark
        points.append((true, true / i))
    if eleven:
        best_at = [
            max((p for n, p in points if n * 10 >= k * npos), default=0.0) for k in range(11)
        ]
        return sum(best_at) / 11
    steps = [
        max(p for _, p in points[i:]) for i in range(len(points)) if marks[i] == 1
    ]  # each true detection adds 1 / npos of recall
    return sum(steps) / npos


# One class, three objects; ranked: true, false, true. The envelope is 1 up to recall 1/3, then 2/3
# up to recall 2/3.
TARGET = objects((1, 0, 0, 10, 10), (1, 20, 20, 30, 30), (1, 40, 40, 50, 50))
DETECTION = found((1, 0.9, 0, 0, 10, 10), (1, 0.8, 60, 60, 70, 70), (1, 0.7, 20, 20, 30, 30))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("area", 1 / 3 + 2 / 3 / 3),
        ("voc07", (4 * 1 + 3 * 2 / 3) / 11),
        ("coco", (34 * 1 + 33 * 2 / 3) / 101),
    ],
)
def test_a_curve_worked_by_hand(method: Any, expected: float) -> None:
    result = average_precision([DETECTION], [TARGET], num_classes=2, method=method)
    assert result.mean == pytest.approx(expected)
    curve = result.curves[0]
    assert curve.num_objects == 3
    torch.testing.assert_close(curve.precision, torch.tensor([1, 0.5, 2 / 3]).double())
    torch.testing.assert_close(curve.recall, torch.tensor([1, 1, 2]).double() / 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.mean = 1.0  # type: ignore[misc]


def test_recall_of_three_tenths_reaches_the_fourth_point() -> None:
    # 3 of 10 found: 3 / 10 < 0.1 * 3 in floating point, but the recall is 0.3.
    target = objects(*((1, 20 * i, 0, 20 * i + 10, 10) for i in range(10)))
    detection = found(*((1, 0.5, 20 * i, 0, 20 * i + 10, 10) for i in range(3)))
    result = average_precision([detection], [target], num_classes=2, method="voc07")
    assert result.mean == pytest.approx(4 / 11)


def test_a_second_answer_is_false() -> None:
    target = objects((1, 0, 0, 10, 10), (1, 50, 50, 60, 60))
    rows = [(1, 0.9, 0, 0, 10, 10), (1, 0.8, 0, 0, 10, 10), (1, 0.7, 50, 50, 60, 60)]
    result = average_precision([found(*rows)], [target], num_classes=2)
    assert result.mean == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)


def test_voc_asks_for_the_nearest_object_and_coco_for_the_nearest_free_one() -> None:
    # Both detections overlap the first object most; the second one also covers 0.6 of the other.
    target = objects((1, 0, 0, 10, 10), (1, 4, 0, 14, 10))
    detection = found((1, 0.9, 0, 0, 10, 10), (1, 0.8, 1.5, 0, 11.5, 10))
    assert iou([1.5, 0, 11.5, 10], [4, 0, 14, 10]) >= 0.5
    voc = average_precision([detection], [target], num_classes=2)
    coco = average_precision([detection], [target], num_classes=2, method="coco")
    assert voc.mean == pytest.approx(0.5)
    assert coco.mean == pytest.approx(1.0)


def test_a_difficult_object_counts_for_nothing() -> None:
    target = objects((1, 0, 0, 10, 10), (1, 50, 50, 60, 60), difficult=[False, True])
    rows = [(1, 0.9, 50, 50, 60, 60), (1, 0.8, 50, 50, 60, 60), (1, 0.7, 0, 0, 10, 10)]
    result = average_precision([found(*rows)], [target], num_classes=2)
    assert result.mean == 1.0
    assert result.curves[0].num_objects == 1
    assert result.curves[0].scores.tolist() == pytest.approx([0.7])


def test_a_class_without_objects_is_nan_and_left_out_of_the_mean() -> None:
    result = average_precision([DETECTION], [TARGET], num_classes=4)
    assert result.per_class.shape == (3,)
    assert result.per_class.isnan().tolist() == [False, True, True]
    assert result.mean == pytest.approx(float(result.per_class[0]))


def test_nothing_detected_is_zero_and_nothing_there_is_nan() -> None:
    assert average_precision([found()], [TARGET], num_classes=2).mean == 0.0
    assert mean_average_precision([found()], [TARGET], num_classes=2) == 0.0
    assert math.isnan(average_precision([DETECTION], [objects()], num_classes=2).mean)
    assert math.isnan(average_precision([], [], num_classes=2).mean)


def test_overlap_equal_to_the_threshold_is_enough() -> None:
    target, detection = objects((1, 0, 0, 10, 10)), found((1, 0.9, 0, 0, 10, 5))
    assert average_precision([detection], [target], num_classes=2, iou_threshold=0.5).mean == 1.0
    assert average_precision([detection], [target], num_classes=2, iou_threshold=0.51).mean == 0.0


def test_detections_answer_only_in_their_image_and_class() -> None:
    here, there = objects((1, 0, 0, 10, 10)), objects((2, 0, 0, 10, 10))
    wrong = [found((2, 0.9, 0, 0, 10, 10)), found((1, 0.9, 0, 0, 10, 10))]
    assert average_precision(wrong, [here, there], num_classes=3).mean == 0.0
    assert average_precision(wrong[::-1], [here, there], num_classes=3).mean == 1.0


def test_a_box_without_area_is_false_and_breaks_nothing() -> None:
    boxes = [(1, 0.9, 5, 5, 5, 5), (1, 0.8, 8, 8, 2, 2), (1, 0.7, 0, 0, math.nan, 9)]
    detection = found(*boxes, (1, 0.6, 0, 0, 10, 10))
    assert average_precision(
        [detection], [objects((1, 0, 0, 10, 10))], num_classes=2
    ).mean == pytest.approx(1 / 4)


@pytest.mark.parametrize("method", ["area", "voc07"])
def test_equals_the_development_kit(method: Any, full_count: Callable[[int, int], int]) -> None:
    for seed in range(full_count(60, 3000)):
        detections, targets = random_case(seed)
        threshold = (0.3, 0.5, 0.75)[seed % 3]
        result = average_precision(
            detections, targets, num_classes=4, iou_threshold=threshold, method=method
        )
        slow = [
            slow_voc(detections, targets, label, threshold, method == "voc07")
            for label in (1, 2, 3)
        ]
        torch.testing.assert_close(
            result.per_class, torch.tensor(slow).double(), equal_nan=True, rtol=0, atol=1e-7
        )


def test_equals_pycocotools(full_count: Callable[[int, int], int]) -> None:
    pytest.importorskip("pycocotools", reason="needs pycocotools")
    for seed in range(full_count(25, 300)):
        detections, targets = random_case(seed)
        targets = [{"boxes": t["boxes"], "labels": t["labels"]} for t in targets]
        stats = cocoeval(detections, targets, classes=3).stats
        at_75 = average_precision(
            detections, targets, num_classes=4, iou_threshold=0.75, method="coco"
        )
        assert mean_average_precision(detections, targets, num_classes=4) == pytest.approx(
            stats[0], abs=1e-9
        )
        assert at_75.mean == pytest.approx(stats[2], abs=1e-9)


def test_coco_counts_a_hundred_detections_of_an_image_and_class() -> None:
    wrong = [(1, 0.9, 80, 80, 90, 90)] * 100
    target = objects((1, 0, 0, 10, 10))
    late = found(*wrong, (1, 0.5, 0, 0, 10, 10))
    in_time = found(*wrong[1:], (1, 0.5, 0, 0, 10, 10))
    coco: dict[str, Any] = {"num_classes": 2, "method": "coco"}
    assert average_precision([late], [target], **coco).mean == 0.0
    assert average_precision([in_time], [target], **coco).mean == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("detection", "target", "options", "message"),
    [
        (
            found((2, 0.5, 0, 0, 1, 1)),
            TARGET,
            {},
            r"detections\[1\]\['labels'\]\[0\] is 2: .*1 to 1",
        ),
        (found((1, math.nan, 0, 0, 1, 1)), TARGET, {}, r"detections\[1\]\['scores'\]\[0\] is nan"),
        ([DETECTION], TARGET, {}, r"detections\[1\]: expected a dict with boxes and .*got list"),
        (TARGET, TARGET, {}, r"detections\[1\]: expected scores beside"),
        (DETECTION, {"labels": TARGET["labels"]}, {}, r"targets\[1\]: expected boxes beside"),
        (DETECTION, TARGET | {"boxes": torch.zeros(3, 5)}, {}, r"targets\[1\]: .*\(3, 5\)"),
        (DETECTION, TARGET, {"iou_threshold": 0.0}, "iou_threshold: .*0.0"),
        (DETECTION, TARGET, {"iou_threshold": "0.5"}, "iou_threshold: .*str '0.5'"),
        (DETECTION, TARGET, {"iou_threshold": [0.5, 0.75]}, "iou_threshold: .*list"),
        (DETECTION, TARGET, {"area_range": (200, 50)}, r"area_range: .*\(200, 50\)"),
        (DETECTION, TARGET, {"area_range": (0, math.nan)}, r"area_range: .*\(0, nan\)"),
        (DETECTION, TARGET, {"area_range": (0, 1, 2)}, r"area_range: .*\(0, 1, 2\)"),
        (DETECTION, TARGET, {"area_range": 50}, "area_range: .*int 50"),
        (DETECTION, TARGET, {"method": "voc12"}, "method: .*'voc12'"),
        (DETECTION, TARGET, {"num_classes": 1}, "num_classes: .*1"),
        (DETECTION, TARGET, {"num_classes": 2.5}, "num_classes: .*float 2.5"),
    ],
)
def test_rejects_what_it_cannot_score(
    detection: Rows, target: Rows, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        average_precision(
            [DETECTION, detection], [TARGET, target], **({"num_classes": 2} | options)
        )


def test_rejects_another_number_of_images() -> None:
    with pytest.raises(ValueError, match="one for each of 2 targets, got 1"):
        average_precision([DETECTION], [TARGET, TARGET], num_classes=2)


@pytest.mark.parametrize(
    ("box", "shown"),
    [
        ((0, 0, math.nan, 9), "(0.0, 0.0, nan, 9.0)"),
        ((0, 0, math.inf, 9), "(0.0, 0.0, inf, 9.0)"),
        ((9, 0, 0, 9), "(9.0, 0.0, 0.0, 9.0)"),
        ((0, 9, 9, 0), "(0.0, 9.0, 9.0, 0.0)"),
    ],
)
@pytest.mark.parametrize("mark", [None, "difficult", "ignore", "iscrowd"])
def test_rejects_objects_whose_boxes_are_broken(
    box: tuple[float, ...], shown: str, mark: str | None
) -> None:
    target = objects((1, 0, 0, 10, 10), (1, *box))
    target |= {} if mark is None else {mark: torch.tensor([False, True])}
    message = rf"targets\[1\]\['boxes'\]\[1\] is {re.escape(shown)}: expected finite .*correct it"
    with pytest.raises(ValueError, match=message):
        average_precision([DETECTION, DETECTION], [TARGET, target], num_classes=2)


@pytest.mark.parametrize("area", [math.nan, math.inf, -1.0])
def test_rejects_areas_of_no_size(area: float) -> None:
    target = TARGET | {"area": torch.tensor([5.0, area, 5.0])}
    with pytest.raises(ValueError, match=rf"targets\[0\]\['area'\]\[1\] is {area}: expected 0 or"):
        average_precision([DETECTION], [target], num_classes=2)


def test_an_object_without_area_is_missed() -> None:
    target = objects((1, 0, 0, 10, 10), (1, 5, 5, 5, 5))
    detection = found((1, 0.9, 0, 0, 10, 10), (1, 0.8, 5, 5, 5, 5))
    assert average_precision([detection], [target], num_classes=2).mean == 0.5


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("labels", torch.tensor([1.9, 1, 1]), r"expected integers, got torch.float32; .*\.long"),
        ("labels", torch.ones(3, dtype=torch.bool), "expected integers, got torch.bool"),
        ("labels", [1, 1, 1], "expected a tensor, got list; convert it with torch.as_tensor"),
        ("boxes", torch.zeros(3, 4).numpy(), "expected a tensor, got ndarray"),
        ("boxes", torch.zeros(3, 4, dtype=torch.complex64), "expected numbers, got torch.complex"),
        ("difficult", torch.zeros(3), "expected bool or integers, got torch.float32"),
        ("iscrowd", "no", "expected a tensor, got str"),
        ("area", None, "expected a tensor, got NoneType"),
        ("area", torch.ones(3, dtype=torch.bool), "expected numbers, got torch.bool"),
    ],
)
def test_rejects_columns_of_another_type(column: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"targets\[1\]\['{column}'\]: {message}"):
        average_precision([DETECTION] * 2, [TARGET, TARGET | {column: value}], num_classes=2)


def test_an_image_without_rows_may_hold_them_as_any_type() -> None:
    target = {"boxes": torch.zeros(0, 4), "labels": torch.tensor([])}
    detection = target | {"scores": torch.tensor([])}
    result = average_precision([DETECTION, detection], [TARGET, target], num_classes=2)
    assert result.mean == average_precision([DETECTION], [TARGET], num_classes=2).mean


@pytest.mark.parametrize("images", [DETECTION, iter([DETECTION]), None])
def test_rejects_what_is_no_list_of_images(images: Any) -> None:
    with pytest.raises(ValueError, match="detections: expected a list with one dict an image, got"):
        average_precision(images, [TARGET], num_classes=2)
