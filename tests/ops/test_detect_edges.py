# SPDX-License-Identifier: BSD-3-Clause
"""detect on hard inputs: equal scores, numbers that are not finite, edges of options, nothing."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssd_fast.ops.detect import detect, detect_reference
from ssd_fast.testing import seeded

from .detect_cases import heads


def apart(n, device="cpu"):
    """Unit squares that do not touch, so that nothing is suppressed."""
    x = 2 * torch.arange(float(n), device=device)
    return torch.stack((x, torch.zeros_like(x), x + 1, torch.ones_like(x)), dim=1)


def test_equal_scores_go_by_label_then_prior(device):
    priors = apart(5, device)
    deltas, logits = torch.zeros(1, 5, 4, device=device), torch.zeros(1, 5, 3, device=device)
    found = detect(deltas, logits, priors)
    assert found.labels[0, :10].tolist() == [1] * 5 + [2] * 5
    assert found.boxes[0, :10, 0].tolist() == [0, 2, 4, 6, 8] * 2
    found = detect(deltas, logits, priors, top_k=2, max_detections=3)
    assert found.labels.tolist() == [[1, 1, 2]]
    assert found.boxes[0, :, 0].tolist() == [0, 2, 0]
    middle = detect(deltas, logits, priors, background_index=1, max_detections=6)
    assert middle.labels.tolist() == [[0] * 5 + [2]]


def test_the_lower_prior_suppresses_its_equals(device):
    priors = torch.tensor([[0.0, 0, 1, 1]] * 3, device=device)
    found = detect(torch.zeros(1, 3, 4, device=device), torch.zeros(1, 3, 3, device=device), priors)
    assert found.counts.tolist() == [2]  # classes do not meet
    assert found.labels[0, :2].tolist() == [1, 2]


def test_top_k_counts_before_suppression(device):
    """Two equal boxes use up top_k = 2, although one is suppressed."""
    priors = torch.tensor([[0.0, 0, 1, 1]] * 2 + [[5.0, 5, 6, 6]], device=device)
    logits = torch.tensor([[[0.0, 3], [0, 2], [0, 1]]], device=device)
    deltas = torch.zeros(1, 3, 4, device=device)
    assert detect(deltas, logits, priors, top_k=2).counts.tolist() == [1]
    assert detect(deltas, logits, priors, top_k=3).counts.tolist() == [2]
    deltas[0, 0] = math.nan  # not kept, but one of the top_k
    assert detect(deltas, logits, priors, top_k=1).counts.tolist() == [0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("threshold", [0.01, 0.0, -1.0])
def test_rows_with_nan_or_infinite_logits_yield_nothing(device, bad, place, threshold):
    logits = torch.tensor([[[0.0, 4, 5], [0, 4, 5]]], device=device)
    logits[0, 0, place] = bad
    for layout in (logits, logits.mT.contiguous().mT):
        found = detect(
            torch.zeros(1, 2, 4, device=device), layout, apart(2, device), score_threshold=threshold
        )
        at = found.boxes[0, : int(found.counts), 0].tolist()
        assert set(at) == {2.0}


@pytest.mark.parametrize("threshold", [0.01, 0.0])
def test_minus_infinity_is_a_class_ruled_out(device, threshold):
    inf = math.inf
    logits = torch.tensor([[[0.0, -inf, 5], [-inf, 4, 4], [-inf, -inf, -inf]]], device=device)
    deltas = torch.zeros(1, 3, 4, device=device)
    found = detect(deltas, logits, apart(3, device), score_threshold=threshold)
    assert found.counts.tolist() == [3]
    assert found.labels[0, :3].tolist() == [2, 1, 2]
    expected = torch.tensor([1 / (1 + math.exp(-5)), 0.5, 0.5], device=device)
    torch.testing.assert_close(found.scores[0, :3], expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_boxes_that_are_not_finite_are_not_kept(device, bad):
    deltas, logits = torch.zeros(1, 4, 4, device=device), torch.zeros(1, 4, 2, device=device)
    deltas[0, 1, 0] = bad
    priors = apart(4, device)
    priors[2, 3] = bad
    found = detect(deltas, logits, priors)
    assert found.boxes[0, : int(found.counts), 0].tolist() == [0, 6]
    clipped = detect(deltas, logits, priors, clip=(0, 0, 10, 10))
    assert bool(clipped.boxes.isfinite().all())


def test_huge_logits_are_compared_by_their_difference(device):
    """Near 1e7 float32 counts by ones: the background plus a margin would round."""
    logits = torch.tensor([[[1e7, 1e7 + 1], [-1e7, -1e7 - 4], [1e7, 1e7 - 6]]], device=device)
    for layout in (logits, logits.mT.contiguous().mT):
        found = detect(torch.zeros(1, 3, 4, device=device), layout, apart(3, device))
        expected = torch.tensor([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(4))], device=device)
        torch.testing.assert_close(found.scores[0, :2], expected)
        assert found.counts.tolist() == [2]


@given(st.floats(1e-4, 0.9999), st.integers(-4, 4))
def test_scores_beside_the_threshold_are_not_lost(threshold, steps):
    """The shortcut by logits never drops a row whose softmax passes."""
    threshold = float(torch.tensor(threshold))
    logit = torch.tensor(math.log(threshold / (1 - threshold)))
    for _ in range(abs(steps)):
        logit = logit.nextafter(torch.tensor(math.copysign(math.inf, steps)))
    logits = torch.stack((torch.tensor(0.0), logit)).reshape(1, 1, 2)
    score = detect(torch.zeros(1, 1, 4), logits, apart(1), score_threshold=-1).scores[0, 0]
    found = detect(torch.zeros(1, 1, 4), logits, apart(1), score_threshold=threshold)
    assert bool(found.counts) == (float(score) > threshold)


def test_scores_exceed_the_threshold_as_float32(device):
    deltas, logits = torch.zeros(1, 1, 4, device=device), torch.zeros(1, 1, 2, device=device)
    for threshold, count in ((0.5, 0), (0.5 - 2**-27, 0), (0.5 - 2**-25, 1), (1.0, 0)):
        for function in (detect, detect_reference):
            found = function(deltas, logits, apart(1, device), score_threshold=threshold)
            assert found.counts.tolist() == [count]


def test_boxes_are_clipped_before_suppression(device):
    """Apart outside of the image, equal inside."""
    priors = torch.tensor([[-9.0, 0, 1, 1], [0, 0, 1, 9]], device=device)
    deltas, logits = torch.zeros(2, 2, 4, device=device), torch.zeros(2, 2, 2, device=device)
    assert detect(deltas, logits, priors).counts.tolist() == [2, 2]
    found = detect(deltas, logits, priors, clip=(0, 0, 1, 1))
    assert found.counts.tolist() == [1, 1]
    assert found.boxes[0, 0].tolist() == [0, 0, 1, 1]
    each = torch.tensor([[0.0, 0, 1, 1], [-20, 0, 20, 20]], device=device)
    assert detect(deltas, logits, priors, clip=each).counts.tolist() == [1, 2]
    each[1, 2] = math.nan
    assert detect(deltas, logits, priors, clip=each).counts.tolist() == [1, 0]
    assert detect_reference(deltas, logits, priors, clip=each).counts.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("batch", "priors", "classes", "options"),
    [
        (0, 5, 3, {}),
        (2, 0, 3, {}),
        (2, 5, 1, {}),
        (2, 5, 3, {"max_detections": 0}),
        (2, 5, 3, {"top_k": 0}),
        (0, 0, 1, {"max_detections": 0}),
    ],
)
def test_nothing_in_nothing_out(device, batch, priors, classes, options):
    inputs = heads(seeded(0), batch=batch, priors=priors, classes=classes, kind="untrained")
    inputs = [t.to(device) for t in inputs]
    for function in (detect, detect_reference):
        found = function(*inputs, **options)
        kept = options.get("max_detections", 200)
        assert found.boxes.shape == (batch, kept, 4)
        assert found.scores.shape == found.labels.shape == (batch, kept)
        assert found.counts.tolist() == [0] * batch
        assert not bool(found.boxes.any())


def test_empty_batches_and_levels_of_maps(device):
    deltas = [torch.zeros(0, 8, 3, 3, device=device), torch.zeros(0, 8, 0, 3, device=device)]
    logits = [torch.zeros(0, 6, 3, 3, device=device), torch.zeros(0, 6, 0, 3, device=device)]
    for function in (detect, detect_reference):
        assert function(deltas, logits, apart(18, device)).counts.tolist() == []
    deltas, logits = ([x.new_zeros(2, *x.shape[1:]) for x in y] for y in (deltas, logits))
    for function in (detect, detect_reference):
        assert function(deltas, logits, apart(18, device)).counts.tolist() == [36, 36]
