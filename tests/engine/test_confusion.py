# SPDX-License-Identifier: BSD-3-Clause
"""What was found, missed, confused and made up is counted, and thresholds are chosen by F1."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ssd_fast.engine.average_precision import average_precision
from ssd_fast.engine.confusion import confusion_matrix
from ssd_fast.engine.score_thresholds import choose_thresholds

Rows = dict[str, Tensor]


def rows(*items: tuple[float, ...], scores: list[float] | None = None) -> Rows:
    """(label, x1, y1, x2, y2) each."""
    table = torch.tensor(items).reshape(-1, 5)
    found = {"boxes": table[:, 1:], "labels": table[:, 0].long()}
    return found if scores is None else found | {"scores": torch.tensor(scores)}


A, B, C = (0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10)


def test_every_kind_is_counted_where_it_belongs():
    target = rows((1, *A), (2, *B), (1, *C))
    # A found, B taken for class 1, C missed, one detection of class 2 on nothing, one too weak.
    found = rows((1, *A), (1, *B), (2, 70, 70, 80, 80), (1, *C), scores=[0.9, 0.8, 0.7, 0.2])
    result = confusion_matrix(
        [rows(scores=[]), found], [rows(), target], num_classes=3, score_threshold=0.5
    )
    assert result.counts.tolist() == [[0, 0, 1], [1, 1, 0], [0, 1, 0]]
    assert result.missed.tolist() == [0, 1]
    assert result.false.tolist() == [0, 1]
    assert result.confused.tolist() == [0, 1]


def test_a_second_detection_of_an_object_is_false_even_in_another_class():
    found = rows((1, *A), (1, *A), (2, *A), scores=[0.9, 0.8, 0.95])
    result = confusion_matrix([found], [rows((1, *A))], num_classes=3, score_threshold=0.5)
    assert result.counts.tolist() == [[0, 1, 1], [0, 1, 0], [0, 0, 0]]


def test_difficult_objects_are_neither_missed_nor_made_up():
    target = rows((1, *A), (1, *B)) | {"difficult": torch.tensor([True, True])}
    found = rows((1, *A), (1, *A), scores=[0.9, 0.8])
    result = confusion_matrix([found], [target], num_classes=2, score_threshold=0.5)
    assert result.counts.sum() == 0


def test_every_object_stands_in_its_row_once():
    g = torch.Generator().manual_seed(0)
    detections, targets = [], []
    for _ in range(20):
        corner = torch.randint(0, 40, (12, 2), generator=g)
        boxes = torch.cat([corner, corner + 15], 1).float()
        labels = torch.randint(1, 4, (12,), generator=g)
        targets.append({"boxes": boxes[:8], "labels": labels[:8]})
        scores = torch.rand(12, generator=g)
        detections.append({"boxes": boxes + 1, "labels": labels.roll(1), "scores": scores})
    result = confusion_matrix(detections, targets, num_classes=4, score_threshold=0.3)
    objects = torch.cat([t["labels"] for t in targets]).bincount(minlength=4)
    assert result.counts[1:].sum(1).tolist() == objects[1:].tolist()
    shown = torch.cat([d["labels"][d["scores"] >= 0.3] for d in detections]).bincount(minlength=4)
    assert result.counts[:, 1:].sum(0).tolist() == shown[1:].tolist()
    assert result.missed.sum() == result.counts[1:, 0].sum()
    assert result.false.sum() == result.counts[0, 1:].sum()


NAN = float("nan")
FOUND = rows((1, *A), (1, *B), scores=[0.9, 0.2])


@pytest.mark.parametrize(
    ("found", "options", "message"),
    [
        (rows((1, *A)), {}, r"detections\[0\]: expected scores beside"),
        (FOUND | {"scores": torch.zeros(2, 1)}, {}, r"detections\[0\]: expected scores \(2,\)"),
        (FOUND | {"scores": torch.tensor([0.9, NAN])}, {}, r"\['scores'\]\[1\] is nan"),
        (FOUND | {"labels": torch.tensor([1, 7])}, {}, r"\['labels'\]\[1\] is 7"),
        (FOUND | {"scores": [0.9, 0.2]}, {}, r"detections\[0\]\['scores'\]: expected a tensor"),
        (FOUND, {"iou_threshold": 2}, "iou_threshold: .*int 2"),
        (FOUND, {"iou_threshold": NAN}, "iou_threshold: .*nan"),
        (FOUND, {"score_threshold": NAN}, "score_threshold: .*nan"),
        (FOUND, {"score_threshold": "0.5"}, "score_threshold: .*str '0.5'"),
        (FOUND, {"num_classes": 1}, "num_classes: .*int 1"),
    ],
)
def test_rejects_what_it_cannot_count(found: Rows, options: dict[str, Any], message: str):
    options = {"num_classes": 2, "score_threshold": 0.5} | options
    with pytest.raises(ValueError, match=message):
        confusion_matrix([found], [rows((1, *A))], **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("score", [0.3, 0.7, 0.9])
def test_a_score_equal_to_the_threshold_is_kept(score: float, dtype: torch.dtype):
    """Whether float32 is above the number, as of 0.3, or below, as of 0.7 and 0.9."""
    found = rows((1, *A)) | {"scores": torch.tensor([score], dtype=dtype)}
    for threshold, count in ((score, 1), (score + 1e-6, 0)):
        result = confusion_matrix(
            [found], [rows((1, *A))], num_classes=2, score_threshold=threshold
        )
        assert result.counts[1, 1] == count


def test_the_threshold_stands_in_the_middle_of_the_best():
    # True at 0.9, false at 0.8, true at 0.7, false at 0.3: F1 is 4 / 5 from 0.301 to 0.7.
    found = rows(
        (1, *A), (1, 70, 0, 80, 9), (1, *B), (1, 70, 0, 80, 9), scores=[0.9, 0.8, 0.7, 0.3]
    )
    curves = average_precision([found], [rows((1, *A), (1, *B))], num_classes=3).curves
    chosen = choose_thresholds(curves)
    assert chosen.f1[0].max() == pytest.approx(0.8)
    assert float(chosen.grid[chosen.per_class[0]]) == pytest.approx(0.5, abs=0.002)
    assert float(chosen.grid[chosen.overall]) == pytest.approx(0.5, abs=0.002)
    assert chosen.f1[1].isnan().all()
    at = chosen.per_class[0]
    assert (float(chosen.precision[0, at]), float(chosen.recall[0, at])) == (2 / 3, 1.0)
    assert chosen.f1[0, -1] == 0.0


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_scores_at_the_ends_have_a_threshold(score: float):
    found = rows((1, *A), scores=[score])
    chosen = choose_thresholds(average_precision([found], [rows((1, *A))], num_classes=2).curves)
    assert chosen.f1[0, chosen.overall] == 1.0
    assert chosen.grid[chosen.overall] <= score


def test_nothing_found_still_has_a_threshold():
    curves = average_precision([rows(scores=[])], [rows((1, *A))], num_classes=2).curves
    chosen = choose_thresholds(curves)
    assert 0.0 < chosen.grid[chosen.overall] < 1.0
    assert chosen.f1.max() == 0.0
