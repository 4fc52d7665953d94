# SPDX-License-Identifier: BSD-3-Clause
"""Detections as lists, and the comparison that other tests trust."""

import pytest
import torch

from ssd_fast.boxes import decode_boxes
from ssd_fast.detections import Detections
from ssd_fast.ops.detect import detect
from ssd_fast.testing import random_boxes, seeded
from ssd_fast.testing_detections import assert_same_detections

BATCH = Detections(
    boxes=torch.tensor([[[0.0, 0.1, 0.5, 1.0], [0.2, 0.2, 0.4, 0.4]], [[0.0] * 4] * 2]),
    scores=torch.tensor([[0.9, 0.8], [0.0, 0.0]]),
    labels=torch.tensor([[1, 3], [0, 0]]),
    counts=torch.tensor([2, 0]),
)


def test_to_list_cuts_the_padding_off():
    full, empty = BATCH.to_list()
    assert full["scores"].tolist() == BATCH.scores[0].tolist()
    assert full["labels"].tolist() == [1, 3]
    assert torch.equal(full["boxes"], BATCH.boxes[0])
    assert {k: tuple(v.shape) for k, v in empty.items()} == {
        "boxes": (0, 4),
        "scores": (0,),
        "labels": (0,),
    }


def test_to_list_scales_to_the_pixels_of_each_image():
    full, empty = BATCH.to_list([(100, 200), (7, 9)])
    expected = torch.tensor([[0.0, 10, 100, 100], [40, 20, 80, 40]])
    torch.testing.assert_close(full["boxes"], expected)
    assert empty["boxes"].shape == (0, 4)
    assert float(BATCH.boxes.max()) == 1.0


def test_to_list_of_no_images():
    nothing = Detections(*(t[:0] for t in BATCH))
    assert nothing.to_list() == nothing.to_list([]) == []


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(1, 1)], r"image_sizes: expected \(height, width\) of each of the 2 images, got 1"),
        ([(1, 1), (3, 4, 5)], r"image_sizes\[1\]: expected \(height, width\), got \(3, 4, 5\)"),
        ([(0, 1), (3, 4)], r"image_sizes\[0\]: expected \(height, width\), got \(0, 1\)"),
    ],
)
def test_to_list_rejects_sizes_that_do_not_fit(sizes, message):
    with pytest.raises(ValueError, match=message):
        BATCH.to_list(sizes)


@pytest.fixture
def scene():
    """Detections of an image with the float64 scores and boxes they came from."""
    generator = seeded(0)
    deltas = torch.randn(1, 80, 4, generator=generator)
    logits = torch.randn(1, 80, 3, generator=generator) * 2
    priors = random_boxes(80, generator, smallest=0.1)
    found = detect(deltas, logits, priors, top_k=30, max_detections=20)
    scores = logits.double().softmax(dim=2)
    boxes = decode_boxes(deltas.double(), priors.double(), (0.1, 0.2))
    assert found.counts.tolist() == [20]
    return found, scores, boxes


def without(found, row):
    rows = [i for i in range(found.scores.size(1)) if i != row]
    cut = [torch.nn.functional.pad(t[:, rows].mT, (0, 1)).mT for t in found[:1]]
    cut += [torch.nn.functional.pad(t[:, rows], (0, 1)) for t in found[1:3]]
    return Detections(*cut, found.counts - 1)


def test_the_comparison_accepts_equals(scene):
    found, scores, boxes = scene
    assert_same_detections(found, found, scores, boxes, top_k=30)
    other = found._replace(labels=found.labels + 1)  # differs, but `found` itself is right
    assert_same_detections(found, other, scores, boxes, top_k=30)


@pytest.mark.parametrize("row", [0, 7, 19])
def test_the_comparison_misses_no_lost_row(scene, row):
    found, scores, boxes = scene
    with pytest.raises(AssertionError, match="left out without a reason"):
        assert_same_detections(without(found, row), found, scores, boxes, top_k=30)


def test_the_comparison_notices_wrong_rows(scene):
    found, scores, boxes = scene
    swapped = Detections(*(t[:, [1, 0, *range(2, 20)]] for t in found[:3]), found.counts)
    wrong = {
        "order": swapped,
        "no prior gives": found._replace(boxes=found.boxes + 0.01),
        "padding": found._replace(counts=found.counts - 1),
    }
    for message, detections in wrong.items():
        with pytest.raises(AssertionError, match=message):
            assert_same_detections(detections, found, scores, boxes, top_k=30)
    others = {
        "not among the top_k": {"top_k": 2},
        "below the threshold": {"score_threshold": 0.9, "top_k": 30},
        "kept boxes overlap": {"iou_threshold": 0.1, "top_k": 30},
        "background": {"background_index": 1, "top_k": 30},
    }
    moved = found._replace(labels=found.labels + 1)
    for message, options in others.items():
        with pytest.raises(AssertionError, match=message):
            assert_same_detections(found, moved, scores, boxes, **options)


def test_the_comparison_forgives_keys_within_the_band():
    """Two scores 1e-6 apart may stand in either order, two scores 1e-4 apart may not."""
    for step, allowed in ((1e-6, True), (1e-4, False)):
        boxes = torch.tensor([[[0.0, 0, 1, 1], [2, 0, 3, 1]]], dtype=torch.float64)
        scores = torch.tensor([[[0.5, 0.5], [0.5 - step, 0.5 + step]]], dtype=torch.float64)
        right = Detections(
            boxes[:, [1, 0]].float(),
            scores[:, [1, 0], 1].float(),
            torch.ones(1, 2, dtype=torch.int64),
            torch.tensor([2]),
        )
        wrong = Detections(*(t.flip(1) for t in right[:3]), right.counts)
        if allowed:
            assert_same_detections(wrong, right, scores, boxes)
        else:
            with pytest.raises(AssertionError, match="order"):
                assert_same_detections(wrong, right, scores, boxes)


@pytest.mark.parametrize("nms", ["soft-linear", "soft-gaussian", "diou"])
def test_the_comparison_tells_kinds_of_suppression_apart(scene, nms):
    """Right ones pass where rows differ, those of another kind or with a wrong score do not."""
    _, scores, boxes = scene
    generator = seeded(0)
    deltas = torch.randn(1, 80, 4, generator=generator)
    logits = torch.randn(1, 80, 3, generator=generator) * 2
    heads = deltas, logits, random_boxes(80, generator, smallest=0.1)
    options = {"nms": nms, "top_k": 30}
    found = detect(*heads, max_detections=50, **options)
    moved = found._replace(labels=found.labels + 1)
    assert_same_detections(found, moved, scores, boxes, **options)
    hard = detect(*heads, max_detections=50, top_k=30)
    wrong = [hard, without(found, 7)]
    if nms != "diou":
        wrong.append(found._replace(scores=found.scores * 1.001))
    for detections in wrong:
        with pytest.raises(AssertionError):
            assert_same_detections(detections, moved, scores, boxes, **options)
