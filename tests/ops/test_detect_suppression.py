# SPDX-License-Identifier: BSD-3-Clause
"""detect(nms=...): Soft-NMS and DIoU-NMS equal to an oracle, by hand and on every machine."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssd_fast import _C
from ssd_fast.detections import Detections
from ssd_fast.ops.decode import decode_reference
from ssd_fast.ops.detect import detect, detect_reference
from ssd_fast.suppression import NMS
from ssd_fast.testing import as_maps, random_boxes, seeded
from ssd_fast.testing_detections import assert_same_detections

CELLS = [(4, 5, 5), (6, 3, 3), (4, 1, 1)]
P = sum(a * h * w for a, h, w in CELLS)
WORDS = ("soft-linear", "soft-gaussian", "diou")
SETS = _C.instruction_sets()


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Leaves the best instruction set behind."""
    yield
    _C.set_instruction_set(SETS[-1])


def heads(
    seed: int, *, batch: int = 2, priors: int = P, classes: int = 4, kind: str = "sure"
) -> tuple[Tensor, Tensor, Tensor]:
    """Deltas (B, P, 4), logits (B, P, C) and priors (P, 4) that overlap a lot.

    "sure": few rows sure of a class; "flat": all classes alike; "ties": few distinct logits, boxes
    that coincide.
    """
    generator = seeded(seed)
    deltas = torch.randn(batch, priors, 4, generator=generator)
    logits = torch.randn(batch, priors, classes, generator=generator)
    boxes = random_boxes(priors, generator, smallest=0.3)
    if kind == "sure":
        logits[..., 0] += 6
        label = torch.randint(0, classes, (batch, priors, 1), generator=generator)
        sure = torch.rand(batch, priors, 1, generator=generator) < 0.3
        logits.scatter_add_(2, label, sure * 9.0)
    if kind == "ties":
        logits, deltas, boxes = logits.round(), deltas * 0, boxes[torch.arange(priors) % 7]
    return deltas, logits, boxes.contiguous()


def overlap(a: list[float], b: list[float]) -> float:
    """IoU of two boxes in Python's numbers; 0 / 0 is NaN."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    area = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    union = area[0] + area[1] - width * height
    return width * height / union if union else math.nan


def closeness(a: list[float], b: list[float]) -> float:
    """The squared distance of the centres over the squared diagonal around both."""
    dx = (a[0] + a[2]) / 2 - (b[0] + b[2]) / 2
    dy = (a[1] + a[3]) / 2 - (b[1] + b[3]) / 2
    width, height = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    diagonal = width * width + height * height
    return (dx * dx + dy * dy) / diagonal if diagonal else 0.0


def oracle_class(
    rows: list[tuple[float, int, list[float]]], nms: str, limit: float, sigma: float, least: float
) -> list[tuple[float, int, list[float]]]:
    """What suppression keeps of (score, prior, box) rows of one class, as the papers' loops do."""
    kept = []
    while rows:
        best = min(rows, key=lambda row: (-row[0], row[1]))
        kept.append(best)
        left = []
        for score, prior, box in rows:
            if prior == best[1]:
                continue
            iou = overlap(best[2], box)
            if nms == "diou":
                if iou - closeness(best[2], box) > limit:
                    continue
            elif nms == "hard":
                if iou > limit:
                    continue
            elif nms == "soft-linear":
                if iou > limit:
                    score *= max(1 - iou, 0.0)
            elif iou > 0:
                score *= math.exp(-(iou * iou) / sigma)
            if score > least:
                left.append((score, prior, box))
        rows = left
    return kept


def oracle(
    deltas: Tensor, logits: Tensor, priors: Tensor, *, nms: str, iou_threshold: float = 0.45,
    sigma: float = 0.5, score_threshold: float = 0.01, top_k: int = 400, max_detections: int = 200,
) -> list[list[tuple[float, int, int, list[float]]]]:  # fmt: skip
    """(score, label, prior, box) of each image, best first, from loops over Python's numbers."""
    found = []
    for image in range(len(deltas)):
        scores = logits[image].softmax(dim=1).tolist()
        boxes = decode_reference(deltas[image], priors).tolist()
        rows = []
        for label in range(1, logits.size(2)):
            candidates = [(scores[p][label], p, boxes[p]) for p in range(len(boxes))]
            candidates = [row for row in candidates if row[0] > score_threshold]
            candidates = sorted(candidates, key=lambda row: (-row[0], row[1]))[:top_k]
            kept = oracle_class(candidates, nms, iou_threshold, sigma, score_threshold)
            rows += [(score, label, p, box) for score, p, box in kept]
        rows.sort(key=lambda row: (-row[0], row[1], row[2]))
        found.append(rows[:max_detections])
    return found


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    nms=st.sampled_from(tuple(NMS)),
    kind=st.sampled_from(["sure", "flat", "ties"]),
    options=st.fixed_dictionaries(
        {
            "score_threshold": st.sampled_from([0.01, 0.0, -0.1, 0.3]),
            "iou_threshold": st.sampled_from([0.45, 0.0, 0.7, -0.5, 1.0]),
            "top_k": st.sampled_from([3, 400]),
            "max_detections": st.sampled_from([5, 200]),
            "sigma": st.sampled_from([0.5, 0.1, 3.0]),
        }
    ),
)
def test_reference_equals_an_oracle(seed, nms, kind, options) -> None:
    """In float64, the arithmetic of Python's numbers: all but the exponential exactly."""
    inputs = [x.double() for x in heads(seed, priors=25, kind=kind)]
    found = detect_reference(*inputs, nms=nms, **options)
    expected = oracle(*inputs, nms=nms, **options)
    tolerance = 1e-12 if nms == "soft-gaussian" else 0
    for image, rows in zip(found.to_list(), expected, strict=True):
        assert image["labels"].tolist() == [row[1] for row in rows]
        assert image["boxes"].tolist() == [row[3] for row in rows]
        assert image["scores"].tolist() == pytest.approx([r[0] for r in rows], rel=tolerance, abs=0)


@example(  # two of six boxes that coincide are found, and a tie leaves open which others compete
    seed=238,
    nms="soft-linear",
    kind="ties",
    dtype=torch.float32,
    name=SETS[0],
    options={
        "score_threshold": -0.1,
        "iou_threshold": 0.45,
        "top_k": 5,
        "max_detections": 200,
        "sigma": 0.5,
    },
)
@given(
    seed=st.integers(0, 2**31),
    nms=st.sampled_from(WORDS),
    kind=st.sampled_from(["sure", "flat", "ties"]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    name=st.sampled_from(SETS),
    options=st.fixed_dictionaries(
        {
            "score_threshold": st.sampled_from([0.01, 0.0, -0.1, 0.3, 1e-6]),
            "iou_threshold": st.sampled_from([0.45, 0.0, 0.7, -0.5, 1.0]),
            "top_k": st.sampled_from([0, 1, 5, 400]),
            "max_detections": st.sampled_from([0, 1, 7, 200]),
            "sigma": st.sampled_from([0.5, 1e-3, 30.0]),
        }
    ),
)
def test_kernel_equals_reference(seed, nms, kind, dtype, name, options) -> None:
    """The same detections, or others that the band explains, on every instruction set."""
    deltas, logits, priors = heads(seed, batch=1, priors=40, kind=kind)
    deltas, logits = deltas.to(dtype), logits.to(dtype)
    _C.set_instruction_set(name)
    found = detect(deltas, logits, priors, nms=nms, **options)
    expected = detect_reference(deltas, logits, priors, nms=nms, **options)
    options.pop("max_detections")
    assert_same_detections(
        found,
        expected,
        logits.double().softmax(dim=2),
        decode_reference(deltas.double(), priors.double()),
        nms=nms,
        **options,
    )


@pytest.mark.parametrize("nms", WORDS)
@pytest.mark.parametrize("kind", ["sure", "flat", "ties"])
@pytest.mark.parametrize("classes", [2, 21])
def test_instruction_sets_and_threads_agree(nms, kind, classes) -> None:
    """Bit for bit, from rows and from maps; more candidates than are visited at once."""
    deltas, logits, priors = heads(1, batch=3, priors=P, classes=classes, kind=kind)
    options = {"nms": nms, "score_threshold": 0.02 / classes, "max_detections": 1500}
    _C.set_instruction_set(SETS[0])
    expected = detect(deltas, logits, priors, **options)
    assert int(expected.counts.min()) > 3
    maps = as_maps(deltas, CELLS), as_maps(logits, CELLS)
    threads = torch.get_num_threads()
    try:
        for name, count in zip(SETS, (1, 2, 3), strict=False):
            _C.set_instruction_set(name)
            torch.set_num_threads(count)
            for found in (
                detect(deltas, logits, priors, **options),
                detect(*maps, priors, **options),
            ):
                for one, other in zip(found, expected, strict=True):
                    assert torch.equal(one, other), name
    finally:
        torch.set_num_threads(threads)


def row_of(*boxes: list[float], scores: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Heads of two classes that decode to the boxes with the scores of class 1."""
    p = torch.tensor(scores)
    logits = torch.stack((torch.zeros_like(p), (p / (1 - p)).log()), dim=1)[None]
    return torch.zeros(1, len(boxes), 4), logits, torch.tensor(boxes)


def both(*inputs: Tensor, device: torch.device, **options) -> Iterator[Detections]:
    """The detections of kernel and reference."""
    functions: tuple[Callable[..., Detections], ...] = (detect, detect_reference)
    for function in functions:
        yield function(*(x.to(device) for x in inputs), **options)


HALF = ([0.0, 0, 2, 1], [0.0, 0, 1, 1], [9.0, 9, 10, 10])  # the first two: IoU 1/2


def test_scores_fall_by_overlap(device) -> None:
    """One box of half the other: half of its score stays, or exp(-1/4 / sigma); one is far off."""
    inputs = row_of(*HALF, scores=[0.9, 0.8, 0.7])
    for found in both(*inputs, device=device, nms="soft-linear"):
        torch.testing.assert_close(found.scores[0, :3].cpu(), torch.tensor([0.9, 0.7, 0.4]))
        assert found.boxes[0, :3, 0].tolist() == [0, 9, 0]
    for found in both(*inputs, device=device, nms="soft-linear", iou_threshold=0.5):
        torch.testing.assert_close(found.scores[0, :3].cpu(), torch.tensor([0.9, 0.8, 0.7]))
    for sigma in (0.5, 2.0):
        options = {"nms": "soft-gaussian", "sigma": sigma, "iou_threshold": 0.9}
        wanted = sorted([0.9, 0.7, 0.8 * math.exp(-0.25 / sigma)], reverse=True)
        for found in both(*inputs, device=device, **options):
            torch.testing.assert_close(found.scores[0, :3].cpu(), torch.tensor(wanted))


def test_scores_that_fall_to_the_threshold_are_gone(device) -> None:
    inputs = row_of(*HALF, scores=[0.9, 0.8, 0.7])
    for threshold, count in ((0.39, 3), (0.41, 2), (0.75, 1)):
        options = {"nms": "soft-linear", "score_threshold": threshold}
        for found in both(*inputs, device=device, **options):
            assert found.counts.tolist() == [count]
    # Equal boxes keep nothing of their score: 0 is above a negative threshold alone.
    inputs = row_of([0.0, 0, 1, 1], [0.0, 0, 1, 1], scores=[0.9, 0.8])
    for threshold, count in ((0.0, 1), (-1.0, 2)):
        options = {"nms": "soft-linear", "score_threshold": threshold}
        for found in both(*inputs, device=device, **options):
            assert found.counts.tolist() == [count]
            assert found.scores[0, 1] == 0


def test_each_kept_box_takes_its_share(device) -> None:
    """Twenty equal boxes under gaussian: box n has n factors exp(-2); ties go by prior."""
    x = torch.zeros(20, 4)
    x[:, 2:] = 1
    x[:, 3] += torch.arange(20) * 0  # all alike
    inputs = (torch.zeros(1, 20, 4), torch.zeros(1, 20, 2), x)
    wanted = torch.tensor([0.5 * math.exp(-2 * n) for n in range(20)])
    options = {"nms": "soft-gaussian", "score_threshold": 0.0}
    for found in both(*inputs, device=device, **options):
        torch.testing.assert_close(found.scores[0, :20].cpu(), wanted, rtol=1e-4, atol=0)
    for found in both(*inputs, device=device, **options, max_detections=3):
        torch.testing.assert_close(found.scores[0].cpu(), wanted[:3], rtol=1e-5, atol=0)


def test_ties_go_by_label_then_prior(device) -> None:
    """Lowered scores that meet: 0.8 / 2 of the lower prior stands before 0.4 of the higher."""
    boxes = torch.tensor([[0.0, 0, 2, 1], [0.0, 0, 1, 1], [8.0, 0, 9, 1], [6.0, 0, 7, 1]])
    deltas, logits = torch.zeros(1, 4, 4), torch.zeros(1, 4, 3)
    logits[0, 0, 1:] = 1
    for found in both(deltas, logits, boxes, device=device, nms="soft-linear"):
        assert found.labels[0].tolist()[:8] == [1, 2, 1, 1, 2, 2, 1, 2]
        assert found.boxes[0, :8, 0].tolist() == [0, 0, 8, 6, 8, 6, 0, 0]


def test_diou_spares_boxes_that_are_elsewhere(device) -> None:
    """Equal IoU of 1/2: concentric boxes suppress each other, shifted ones do not."""
    concentric = row_of([0.0, 0, 2, 1], [0.5, 0, 1.5, 1], scores=[0.9, 0.8])
    shifted = row_of([0.0, 0, 2, 1], [0.0, 0, 1, 1], scores=[0.9, 0.8])  # d^2 / c^2 = 0.25 / 5
    for limit, counts in ((0.49, (1, 2)), (0.44, (1, 1)), (0.5, (2, 2))):
        for inputs, count in zip((concentric, shifted), counts, strict=True):
            for found in both(*inputs, device=device, nms="diou", iou_threshold=limit):
                assert found.counts.tolist() == [count]
        for found in both(*shifted, device=device, iou_threshold=limit):
            assert found.counts.tolist() == [2 if limit == 0.5 else 1]


@pytest.mark.parametrize("nms", WORDS)
def test_degenerate_boxes(device, nms) -> None:
    """No area, inverted, huge, not finite: NaN overlaps suppress nothing, c = 0 takes nothing."""
    corners = [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1],
               [-3e38, -3e38, 3e38, 3e38], [0, 0, 3e38, 3e38], [0, 0, 1e30, 1e30],
               [0, 0, math.inf, 1], [0, math.nan, 1, 1]]  # fmt: skip
    priors = torch.tensor(corners, dtype=torch.float32)
    logits = torch.zeros(1, 11, 3)
    logits[0, :, 1] = torch.arange(11.0).flip(0) / 4
    for limit in (-1.0, 0.0, 0.45, 1.0):
        options = {"nms": nms, "iou_threshold": limit, "score_threshold": 1e-3}
        one, other = both(torch.zeros(1, 11, 4), logits, priors, device=device, **options)
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.labels, other.labels)
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-5, atol=0)


@pytest.mark.parametrize("nms", WORDS)
def test_registration(device, nms) -> None:
    deltas, logits, priors = (x.to(device) for x in heads(0, priors=30))
    torch.library.opcheck(
        torch.ops.ssd_fast.detect.default,
        ([deltas], [logits], priors, 0.01, 40, 0.45, 20, [0.1, 0.2], 0, None, None, 4.0,
         NMS[nms], 0.5),
    )  # fmt: skip


@pytest.mark.parametrize("nms", WORDS)
def test_compiles_and_exports(device, nms) -> None:
    class Head(torch.nn.Module):
        def forward(self, deltas: Tensor, logits: Tensor, priors: Tensor) -> Detections:
            return detect(deltas, logits, priors, nms=nms, sigma=0.4)

    inputs = tuple(x.to(device) for x in heads(0))
    expected = detect(*inputs, nms=nms, sigma=0.4)
    compiled = torch.compile(Head(), fullgraph=True, backend="aot_eager")
    program = torch.export.export(Head(), inputs)
    for found in (compiled(*inputs), program.module()(*inputs)):
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nms": "soft"}, r"nms: expected one of 'hard', 'soft-linear', .*, got 'soft'"),
        ({"nms": None}, r"nms: expected one of 'hard'.*, got None"),
        ({"nms": 1}, r"nms: expected one of 'hard'.*, got 1"),
        ({"sigma": 0}, r"sigma: expected a finite number above 0, got 0"),
        ({"sigma": -0.5}, r"sigma: expected a finite number above 0, got -0.5"),
        ({"sigma": math.nan}, r"sigma: expected a finite number above 0, got nan"),
        ({"sigma": math.inf}, r"sigma: expected a finite number above 0, got inf"),
        ({"sigma": "wide"}, r"sigma: expected a finite number above 0, got str 'wide'"),
    ],
)
def test_rejects(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        detect(*heads(0), **options)
