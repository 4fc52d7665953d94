# SPDX-License-Identifier: BSD-3-Clause
"""Every instruction set of this machine suppresses and detects the same, as the references do."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ssd_fast import _C
from ssd_fast.detections import Detections
from ssd_fast.ops import batched_nms, detect, nms, nms_padded
from ssd_fast.ops.decode import decode_reference
from ssd_fast.ops.detect import detect_reference
from ssd_fast.ops.nms import batched_nms_reference, nms_reference
from ssd_fast.priors import ssd300
from ssd_fast.testing import (
    CROWDS,
    SCENES,
    adversarial_objects,
    as_maps,
    crowded_boxes,
    decided_objects,
    flat_outputs,
    random_boxes,
    seeded,
    trained_outputs,
)
from ssd_fast.testing_detections import assert_same_detections

SETS = _C.instruction_sets()
CELLS = [(4, 19, 19), (6, 10, 10), (6, 5, 5), (4, 1, 1)]
P = sum(a * h * w for a, h, w in CELLS)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Leaves the best instruction set behind."""
    yield
    _C.set_instruction_set(SETS[-1])


def _assert_equal_on_all(*heads, **options) -> Detections:
    """Holds all instruction sets to the plainest, bit for bit; returns its detections."""
    _C.set_instruction_set(SETS[0])
    expected = detect(*heads, **options)
    for name in SETS[1:]:
        _C.set_instruction_set(name)
        for actual, want in zip(detect(*heads, **options), expected, strict=True):
            assert torch.equal(actual, want), name
    return expected


def _heads(kind: str, classes: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Deltas (B, P, 4), logits (B, P, C) and priors (P, 4)."""
    priors = ssd300()[5776 : 5776 + P]
    if kind == "flat":
        return *flat_outputs(batch, priors, seeded(classes), classes=classes), priors
    objects = decided_objects(batch, priors, seeded(1), classes=classes)
    return *trained_outputs(objects, priors, seeded(classes), classes=classes), priors


def _assert_matches_reference(found: Detections, deltas, logits, priors, **options) -> None:
    """Equal to the reference, or told apart only within the band."""
    expected = detect_reference(deltas, logits, priors, **options)
    scores = logits.double().softmax(dim=2)
    boxes = decode_reference(deltas.double(), priors.double())
    options = {name: value for name, value in options.items() if name != "max_detections"}
    assert_same_detections(found, expected, scores, boxes, **options)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("threshold", [0.45, 0.0, -0.5])
def test_nms_equals_reference(name, scene, threshold) -> None:
    """Equal, touching, nested, broken boxes, at sizes around those of blocks and grids."""
    _C.set_instruction_set(name)
    for n in (1, 15, 17, 63, 65, 300, 600):
        boxes = adversarial_objects(scene, [n], seeded(n)).boxes
        scores = torch.rand(n, generator=seeded(n + 1)).mul(20).round() - 5
        labels = torch.randint(-2, 3, (n,), generator=seeded(n + 2))
        assert torch.equal(nms(boxes, scores, threshold), nms_reference(boxes, scores, threshold))
        for idxs in (labels, labels * 10**15):  # a table of classes, and too far apart for one
            expected = batched_nms_reference(boxes, scores, idxs, threshold)
            assert torch.equal(batched_nms(boxes, scores, idxs, threshold), expected)
            padded, count = nms_padded(boxes, scores, threshold, idxs)
            assert torch.equal(padded[: int(count)], expected)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("crowd", CROWDS)
def test_crowds_equal_reference(name, crowd) -> None:
    """Thousands of boxes; also where one far away takes the grid's resolution."""
    _C.set_instruction_set(name)
    boxes, scores = crowded_boxes(crowd, 3000, seeded(0))
    expected = nms_reference(boxes, scores, 0.45)
    assert torch.equal(nms(boxes, scores, 0.45), expected)
    for far in (1e6, 3e38):
        boxes[7] = torch.tensor([-far, -far, far, far])
        expected = nms_reference(boxes, scores, 0.45)
        assert torch.equal(nms(boxes, scores, 0.45), expected)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("threshold", [0.45, 0.0, -0.5])
def test_classes_of_every_size_equal_reference(name, threshold) -> None:
    """From one box to thousands: those of a class lie amid others, or fill blocks of blocks."""
    _C.set_instruction_set(name)
    boxes, scores = crowded_boxes("clustered", 6000, seeded(0))
    sizes = torch.tensor([1, 0, 3, 64, 65, 500, 513, 600, 4254])
    idxs = torch.arange(len(sizes)).repeat_interleave(sizes)
    idxs = idxs[torch.randperm(6000, generator=seeded(1))]
    expected = batched_nms_reference(boxes, scores, idxs, threshold)
    assert torch.equal(batched_nms(boxes, scores, idxs, threshold), expected)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", ["even", "near", "far", "negative", "coarse", "subnormal"])
def test_scores_of_every_kind_are_sorted(name, kind) -> None:
    """Boxes that lie apart are all kept: by falling score, then by rising index."""
    _C.set_instruction_set(name)
    even = torch.rand(3000, generator=seeded(0))
    near = (0.3 + even * 1e-5).float()
    scores = {
        "even": even,
        "near": near,
        "far": torch.cat((near[:-2], torch.tensor([1e30, -1e30]))),
        "negative": even - 0.5,
        "coarse": even.mul(40).round() - 20,
        "subnormal": even * 1e-42,
    }[kind]
    corners = torch.cartesian_prod(torch.arange(60.0), torch.arange(50.0)) * 2
    expected = scores.sort(descending=True, stable=True).indices
    assert torch.equal(nms(torch.cat((corners, corners + 1), dim=1), scores, 0.5), expected)


@pytest.mark.parametrize("name", SETS)
def test_twenty_thousand_boxes_in_one_place(name) -> None:
    """All alike but for the scores, of which many are equal."""
    _C.set_instruction_set(name)
    boxes = torch.tensor([[0.2, 0.2, 0.8, 0.8]]).repeat(20_000, 1)
    scores = torch.rand(20_000, generator=seeded(0)).mul(50).round()
    best = int(scores.argmax())
    assert nms(boxes, scores, 0.45).tolist() == [best]
    assert nms(boxes, scores, 1.0).numel() == 20_000


def test_hundreds_of_thousands_of_boxes() -> None:
    """Each twice: the better one is kept."""
    corners = torch.cartesian_prod(torch.arange(500.0), torch.arange(300.0)) * 2
    boxes = torch.cat((corners, corners + 1), dim=1).repeat(2, 1)
    scores = torch.randperm(len(boxes), generator=seeded(0)).float()
    ranked = scores.sort(descending=True).indices
    first = scores > scores.roll(len(corners))
    assert torch.equal(nms(boxes, scores, 0.5), ranked[first[ranked]])


@pytest.mark.parametrize("classes", [17, 21, 24, 81, 88])
def test_the_background_may_be_any_class(classes) -> None:
    """Also one that two vectors of a row hold; a row may hold what is no number, or infinite."""
    deltas, logits, priors = _heads("trained", classes)
    logits[:, ::97, 3], logits[:, ::89, -2] = torch.nan, torch.inf
    logits[:, ::83, 1:] = -torch.inf
    for background in (0, 13, 15, 16, classes - 1):
        moved = torch.cat((logits[..., 1:], logits[..., :1]), dim=2).roll(background + 1, dims=2)
        found = _assert_equal_on_all(
            deltas, moved, priors, score_threshold=0.01, background_index=background
        )
        assert int(found.counts.min()) > 0
        assert not bool((found.labels == background)[found.scores > 0].any())


@pytest.mark.parametrize("classes", [2, 5, 15, 16, 17, 21, 24, 25, 81, 200])
@pytest.mark.parametrize("kind", ["trained", "flat"])
def test_detections_are_equal(classes, kind) -> None:
    """Bit for bit, at sizes around the width of every register, and right."""
    heads = _heads(kind, classes)
    options = {"score_threshold": 0.2 / classes, "top_k": 40}  # the reference takes its time
    found = _assert_equal_on_all(*heads, **options)
    assert int(found.counts.min()) > 0
    _assert_matches_reference(found, *heads, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["trained", "flat"])
@pytest.mark.parametrize("classes", [5, 21])
def test_layouts_are_equal(dtype, kind, classes) -> None:
    """Rows, planes and channels_last give one result on every instruction set."""
    deltas, logits, priors = _heads(kind, classes)
    deltas, logits = deltas.to(dtype), logits.to(dtype)
    expected = _assert_equal_on_all(deltas, logits, priors)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        maps = [
            [m.contiguous(memory_format=memory_format) for m in as_maps(x, CELLS)]
            for x in (deltas, logits)
        ]
        found = _assert_equal_on_all(*maps, priors)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("rows", [1, 3, 15, 16, 17, 255])
def test_odd_numbers_of_rows(rows) -> None:
    """Less than a vector of rows, and some left over; from memory that begins anywhere."""
    deltas, logits, priors = (x[..., :rows, :] for x in _heads("flat", 21))
    heads = deltas.contiguous(), logits.contiguous(), priors.contiguous()
    _assert_matches_reference(_assert_equal_on_all(*heads), *heads)
    short = [x[..., : min(3, x.size(-1))] if x.size(-1) == 21 else x for x in heads]
    unaligned = torch.zeros(short[1].numel() + 1)[1:].view(short[1].shape).copy_(short[1])
    _assert_matches_reference(
        _assert_equal_on_all(short[0], unaligned, short[2]), short[0], unaligned, short[2]
    )


@pytest.mark.parametrize("top_k", [3, 150, 350])
@pytest.mark.parametrize("spread", [0.0, 0.15])
def test_all_candidates_are_visited_if_it_takes_them(top_k, spread) -> None:
    """More detections than one visit collects; with `spread` 0 all scores are equal."""
    rows = 350
    deltas, logits = torch.zeros(1, rows, 4), torch.randn(1, rows, 21, generator=seeded(0)) * spread
    priors = random_boxes(rows, seeded(1), largest=0.2)
    options = {"top_k": top_k, "max_detections": 7000}
    found = _assert_equal_on_all(deltas, logits, priors, **options)
    assert int(found.counts) > 20 if top_k == 3 else int(found.counts) > 1500
    _assert_matches_reference(found, deltas, logits, priors, **options)


@pytest.mark.parametrize("column", [0, 5])
@pytest.mark.parametrize("value", [1e30, -1e30, 100.0, -100.0, float("inf"), -float("inf")])
def test_wild_logits_among_flat_ones(value, column) -> None:
    """Beyond the range of quick exponentials rows are computed exactly."""
    deltas, logits, priors = _heads("flat", 21, batch=1)
    logits[0, ::9, column] = value
    logits[0, 1::9, 7] = float("nan")
    found = _assert_equal_on_all(deltas, logits, priors)
    maps = as_maps(deltas, CELLS), as_maps(logits, CELLS)
    for a, b in zip(_assert_equal_on_all(*maps, priors), found, strict=True):
        assert torch.equal(a, b)
    _assert_matches_reference(found, deltas, logits, priors)
