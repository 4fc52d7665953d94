# SPDX-License-Identifier: BSD-3-Clause
"""detect(scores="sigmoid"): equal to its definition and to torchvision; what focal_loss trains."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssd_fast import _C
from ssd_fast.detections import Detections
from ssd_fast.ops import focal_loss
from ssd_fast.ops.decode import decode_reference
from ssd_fast.ops.detect import SCORES, detect, detect_reference
from ssd_fast.suppression import NMS
from ssd_fast.testing import as_maps, random_boxes, seeded
from ssd_fast.testing_detections import assert_same_detections

SETS = _C.instruction_sets()
CELLS = [(4, 13, 11), (6, 5, 5), (4, 1, 1)]
P = sum(a * h * w for a, h, w in CELLS)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Leaves the best instruction set behind."""
    yield
    _C.set_instruction_set(SETS[-1])


def heads(
    seed: int, *, batch: int = 2, priors: int = P, classes: int = 4, kind: str = "trained"
) -> tuple[Tensor, Tensor, Tensor]:
    """Deltas (B, P, 4), logits (B, P, C) and priors (P, 4).

    "trained": hardly a class anywhere, and a few rows sure of one or two; "flat": all near the 0.01
    that RetinaNet starts from; "ties": few distinct logits; "sure": scores that round to 1.
    """
    generator = seeded(seed)
    deltas = torch.randn(batch, priors, 4, generator=generator)
    logits = torch.randn(batch, priors, classes, generator=generator)
    if kind == "trained":
        logits -= 7
        for _ in range(2):
            sure = torch.rand(batch, priors, 1, generator=generator) < 0.1
            label = torch.randint(0, classes, (batch, priors, 1), generator=generator)
            logits.scatter_add_(2, label, sure * 9.0)
    elif kind == "flat":
        logits = 0.3 * logits - 4.6
    elif kind == "ties":
        logits = logits.round() - 1
    else:
        logits = 4 * logits + 15
    return deltas, logits, random_boxes(priors, generator, smallest=0.1)


def assert_matches_reference(found: Detections, deltas, logits, priors, **options) -> None:
    """Equal to the reference, or told apart only within the band."""
    expected = detect_reference(deltas, logits, priors, scores="sigmoid", **options)
    scores = logits.double().sigmoid()
    boxes = decode_reference(deltas.double(), priors.double())
    background = options.pop("background_index", 0)
    options["background_index"] = None if background is None else background % logits.size(2)
    options.pop("max_detections", None)
    assert_same_detections(found, expected, scores, boxes, **options)


@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(["trained", "flat", "ties", "sure"]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    classes=st.sampled_from([1, 2, 4, 20]),
    background=st.sampled_from([None, 0, -1]),
    nms=st.sampled_from([*NMS, "hard"]),
    options=st.fixed_dictionaries(
        {
            "score_threshold": st.sampled_from([0.01, 0.05, 0.0, -0.1, 0.6, 1e-6, 1.0]),
            "top_k": st.sampled_from([0, 1, 5, 400]),
            "max_detections": st.sampled_from([0, 1, 7, 200, 600]),
            "iou_threshold": st.sampled_from([0.45, 0.0, 0.7]),
        }
    ),
)
def test_equals_reference(seed, kind, dtype, classes, background, nms, options):
    deltas, logits, priors = heads(seed, batch=1, priors=60, classes=classes, kind=kind)
    deltas, logits = deltas.to(dtype), logits.to(dtype)
    options |= {"background_index": background, "nms": nms}
    found = detect(deltas, logits, priors, scores="sigmoid", **options)
    assert_matches_reference(found, deltas, logits, priors, **options)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), kind=st.sampled_from(["trained", "flat"]))
def test_equals_torchvision(torchvision, seed, kind):
    """As its RetinaNet scores: sigmoid, threshold, the best of each class, batched NMS."""
    deltas, logits, priors = heads(seed, kind=kind)
    priors = priors * 300
    coder = torchvision.models.detection._utils.BoxCoder((10.0, 10.0, 5.0, 5.0))
    options = {"score_threshold": 0.05, "top_k": 10, "background_index": None}
    empty = torch.zeros(2, 50, 4), torch.zeros(2, 50), torch.zeros(2, 50).long()
    expected = Detections(*empty, torch.zeros(2).long())
    for i in range(2):
        scores = logits[i].sigmoid()
        best = scores.where(scores > 0.05, 0).topk(10, dim=0)
        prior, label = best.indices.flatten(), torch.arange(4).expand(10, 4).flatten()
        score = best.values.flatten()
        prior, label, score = (x[score > 0] for x in (prior, label, score))
        boxes = coder.decode_single(deltas[i], priors)[prior]
        keep = torchvision.ops.boxes._batched_nms_vanilla(boxes, score, label, 0.45)[:50]
        expected.counts[i] = n = len(keep)
        expected.boxes[i, :n], expected.scores[i, :n] = boxes[keep], score[keep]
        expected.labels[i, :n] = label[keep]
    found = detect(deltas, logits, priors, scores="sigmoid", max_detections=50, **options)
    boxes = decode_reference(deltas.double(), priors.double())
    assert_same_detections(found, expected, logits.double().sigmoid(), boxes, **options)


def assert_equal_on_all(*inputs, **options) -> Detections:
    """Holds all instruction sets to the plainest, bit for bit; returns its detections."""
    _C.set_instruction_set(SETS[0])
    expected = detect(*inputs, scores="sigmoid", **options)
    for name in SETS[1:]:
        _C.set_instruction_set(name)
        found = detect(*inputs, scores="sigmoid", **options)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), name
    return expected


@pytest.mark.parametrize("classes", [1, 3, 16, 17, 20, 80])
@pytest.mark.parametrize("kind", ["trained", "flat"])
def test_instruction_sets_are_equal(classes, kind):
    """Bit for bit, at sizes around the width of every register, and right."""
    inputs = heads(classes, classes=classes, kind=kind)
    options = {"top_k": 40, "background_index": None}
    found = assert_equal_on_all(*inputs, **options)
    assert int(found.counts.min()) > 0
    assert_matches_reference(found, *inputs, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["trained", "flat"])
@pytest.mark.parametrize("classes", [5, 21])
@pytest.mark.parametrize("background", [None, 3])
def test_heads_are_read_where_they_lie(dtype, kind, classes, background):
    """Rows, planes and channels_last give one result on every instruction set."""
    deltas, logits, priors = heads(1, classes=classes, kind=kind)
    deltas, logits = deltas.to(dtype), logits.to(dtype)
    options = {"background_index": background}
    expected = assert_equal_on_all(deltas, logits, priors, **options)
    assert int(expected.counts.min()) > 10
    layouts = [(deltas.mT.contiguous().mT, logits.mT.contiguous().mT)]
    for memory_format in (torch.contiguous_format, torch.channels_last):
        maps = [
            [m.contiguous(memory_format=memory_format) for m in as_maps(x, CELLS)]
            for x in (deltas, logits)
        ]
        layouts.append(maps)
    for layout in layouts:
        found = assert_equal_on_all(*layout, priors, **options)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_all_candidates_are_visited_if_it_takes_them():
    """More detections than one visit collects, of scores that are nearly or all equal."""
    rows = 250
    deltas, priors = torch.zeros(1, rows, 4), random_boxes(rows, seeded(1), largest=0.2)
    for spread in (0.0, 0.15):
        logits = spread * torch.randn(1, rows, 20, generator=seeded(0)) - 4
        options = {"top_k": 250, "max_detections": 5000, "background_index": None}
        found = assert_equal_on_all(deltas, logits, priors, **options)
        assert int(found.counts) > 1500
        assert_matches_reference(found, deltas, logits, priors, **options)


@pytest.mark.parametrize("scores", SCORES)
def test_further_visits_lose_nothing(scores):
    """Boxes that suppress each other take more candidates than a floor from a sample lets by."""
    deltas, priors = torch.zeros(1, 700, 4), random_boxes(700, seeded(1), smallest=0.2)
    logits = 0.3 * torch.randn(1, 700, 4, generator=seeded(0)) - 4
    options = {"top_k": 700, "max_detections": 60, "iou_threshold": 0.2}
    found = detect(deltas, logits, priors, scores=scores, **options)
    expected = detect_reference(deltas, logits, priors, scores=scores, **options)
    wide = logits.double()
    probabilities = wide.sigmoid() if scores == "sigmoid" else wide.softmax(dim=2)
    del options["max_detections"]
    assert int(found.counts) > 20
    boxes = priors.double().expand(1, -1, -1)
    assert_same_detections(found, expected, probabilities, boxes, **options)
    assert torch.equal(found.labels, expected.labels)


@pytest.mark.parametrize("value", [1e30, -1e30, 100.0, -100.0, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("kind", ["trained", "flat"])
def test_wild_logits_count_for_themselves_alone(value, kind):
    """NaN is no detection of its class, +inf is a score of 1; the rest of the row is as it was."""
    deltas, logits, priors = heads(3, classes=20, kind=kind, batch=1)
    logits[0, ::9, 5] = value
    logits[0, 1::9, 19] = math.nan
    options = {"background_index": None, "top_k": 40}
    found = assert_equal_on_all(deltas, logits, priors, **options)
    maps = as_maps(deltas, CELLS), as_maps(logits, CELLS)
    for a, b in zip(assert_equal_on_all(*maps, priors, **options), found, strict=True):
        assert torch.equal(a, b)
    assert_matches_reference(found, deltas, logits, priors, **options)


def apart(n: int) -> Tensor:
    """Unit squares that do not touch, so that nothing is suppressed."""
    x = 2 * torch.arange(float(n))
    return torch.stack((x, torch.zeros_like(x), x + 1, torch.ones_like(x)), dim=1)


@pytest.mark.parametrize("kind", ["trained", "flat"])
@pytest.mark.parametrize("background", [None, 0])
def test_every_device_decides_the_same(device, kind, background):
    inputs = heads(5, classes=20, kind=kind)
    options = {"background_index": background, "top_k": 40}
    found = detect(*(x.to(device) for x in inputs), scores="sigmoid", **options)
    assert_matches_reference(Detections(*(x.cpu() for x in found)), *inputs, **options)


def test_scores_that_underflow_do_not_exceed_0(device):
    """The exponential of 89 and more is infinite, so that a class ruled out is no detection."""
    logits = torch.tensor([[[-80.0], [-90], [-math.inf]]], device=device)
    options = {"scores": "sigmoid", "background_index": None, "score_threshold": 0.0}
    found = detect(torch.zeros(1, 3, 4, device=device), logits, apart(3).to(device), **options)
    assert found.counts.tolist() == [1]


def test_a_row_may_hold_several_classes_or_none(device):
    logits = torch.tensor([[[2.0, -9, 1], [-9, -9, -9], [math.nan, math.inf, -9]]], device=device)
    deltas, priors = torch.zeros(1, 3, 4, device=device), apart(3).to(device)
    for function in (detect, detect_reference):
        found = function(deltas, logits, priors, scores="sigmoid", background_index=None)
        assert found.counts.tolist() == [3]
        assert found.labels[0, :3].tolist() == [1, 0, 2]
        assert found.boxes[0, :3, 0].tolist() == [4, 0, 0]
        expected = torch.tensor([1, 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))])
        torch.testing.assert_close(found.scores[0, :3].cpu(), expected)


def test_a_background_column_is_never_detected():
    logits = torch.tensor([[[2.0, 5, 1]]])
    for background, labels in ((0, [1, 2]), (1, [0, 2]), (-1, [1, 0]), (None, [1, 0, 2])):
        for function in (detect, detect_reference):
            found = function(
                torch.zeros(1, 1, 4), logits, apart(1), scores="sigmoid",
                background_index=background,
            )  # fmt: skip
            assert found.labels[0, : int(found.counts)].tolist() == labels
    one = logits[..., :1]
    found = detect(torch.zeros(1, 1, 4), one, apart(1), scores="sigmoid")
    assert found.counts.tolist() == [0]  # the background is the only column


@given(st.floats(1e-6, 0.999999), st.integers(-6, 6))
def test_scores_beside_the_threshold_are_not_lost(threshold, steps):
    """The shortcut by logits never drops a score that exceeds the threshold."""
    threshold = float(torch.tensor(threshold))
    logit = torch.tensor(math.log(threshold / (1 - threshold)))
    for _ in range(abs(steps)):
        logit = logit.nextafter(torch.tensor(math.copysign(math.inf, steps)))
    options = {"scores": "sigmoid", "background_index": None}
    logits = logit.reshape(1, 1, 1)
    score = detect(torch.zeros(1, 1, 4), logits, apart(1), score_threshold=-1, **options).scores
    found = detect(torch.zeros(1, 1, 4), logits, apart(1), score_threshold=threshold, **options)
    assert bool(found.counts) == (float(score[0, 0]) > threshold)
    torch.testing.assert_close(score[0, 0], logit.sigmoid(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("background", [None, 0, -1])
def test_labels_are_those_that_the_focal_loss_was_given(background):
    """Logits that follow its gradient for some steps are detected as what they were taught."""
    priors = apart(12)
    boxes, classes = priors[1::3].contiguous(), 4
    labels = torch.arange(4) if background is None else torch.tensor([1, 2, 1, 2])
    logits = torch.zeros(1, 12, classes, requires_grad=True)
    deltas = torch.zeros(1, 12, 4)
    for _ in range(60):
        _, loss, _ = focal_loss(
            deltas, logits, priors, boxes, labels, torch.tensor([0, 4]),
            background_index=background,
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - 4 * gradient).detach().requires_grad_()
    found = detect(
        deltas, logits, priors, scores="sigmoid", background_index=background, score_threshold=0.5
    )
    order = found.boxes[0, : int(found.counts), 0].argsort()
    assert found.labels[0, order].tolist() == labels.tolist()
    assert torch.equal(found.boxes[0, order], boxes)


def test_rejects():
    arguments = torch.zeros(1, 5, 4), torch.zeros(1, 5, 3), apart(5)
    for function in (detect, detect_reference):
        with pytest.raises(ValueError, match=r"scores: expected one of 'softmax', 'sigmoid', got"):
            function(*arguments, scores="tanh")
        with pytest.raises(ValueError, match=r"background_index: None.*scores='sigmoid' alone"):
            function(*arguments, background_index=None)
        with pytest.raises(ValueError, match=r"background_index: expected from -3 to 2"):
            function(*arguments, background_index=-4, scores="sigmoid")
    with pytest.raises(ValueError, match=r"background_index: expected from 0 to 2"):
        detect(*arguments, background_index=3, scores="sigmoid")


@pytest.mark.parametrize(("background", "scores"), [(-1, 0), (-2, 1), (3, 1), (0, 2), (0, -1)])
def test_the_operator_guards_memory_itself(background, scores):
    arguments = [[torch.zeros(2, 5, 4)], [torch.zeros(2, 5, 3)], apart(5), 0.01, 9, 0.45, 9]
    arguments += [[0.1, 0.2], background, None, None, 4.0, 0, 0.5, scores]
    with pytest.raises(RuntimeError, match="expected"):
        torch.ops.ssd_fast.detect(*arguments)


def test_programs_of_before_the_option_score_by_softmax():
    """What was exported without it is called without it."""
    deltas, logits, priors = heads(0)
    arguments = [[deltas], [logits], priors, 0.01, 40, 0.45, 20, [0.1, 0.2], 0, None, None, 4.0]
    expected = detect(deltas, logits, priors, top_k=40, max_detections=20, max_log_scale=4.0)
    for found, wanted in zip(torch.ops.ssd_fast.detect(*arguments, 0, 0.5), expected, strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("maps", [False, True])
def test_registration(maps):
    deltas, logits, priors = heads(0)
    one, other = (as_maps(deltas, CELLS), as_maps(logits, CELLS)) if maps else ([deltas], [logits])
    torch.library.opcheck(
        torch.ops.ssd_fast.detect.default,
        (one, other, priors, 0.01, 40, 0.45, 20, [0.1, 0.2], -1, None, None, 4.0, 0, 0.5, 1),
    )


def test_compiles_and_exports():
    class Head(torch.nn.Module):
        def forward(self, deltas, logits, priors):
            return detect(deltas, 2 * logits, priors, scores="sigmoid", background_index=None)

    inputs = heads(0)
    expected = Head()(*inputs)
    compiled = torch.compile(Head(), fullgraph=True, backend="aot_eager")
    program = torch.export.export(Head(), inputs).module()
    for found in (compiled(*inputs), program(*inputs)):
        assert isinstance(found, Detections)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
