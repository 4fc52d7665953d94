# SPDX-License-Identifier: BSD-3-Clause
"""match: kernel against reference, ties, claims, broken objects, registration, bad input."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssd_fast.boxes import box_iou
from ssd_fast.ops import match, match_reference
from ssd_fast.testing import SCENES, adversarial_objects, random_boxes, random_objects, seeded

ASSIGNS = ["last", "bipartite", "none"]


@pytest.mark.parametrize("P", [1, 15, 16, 17, 256, 257, 8732])
def test_equals_reference(device, P) -> None:
    """Every option on ordinary batches, one image of them empty."""
    priors = random_boxes(P, seeded(P))
    objects = random_objects(3, seeded(P + 1), counts=(0, 12))
    for assign in ASSIGNS:
        for low_threshold, strict in ((None, False), (0.4, False), (0.3, True)):
            options = {"low_threshold": low_threshold, "strict": strict, "assign": assign}
            expected = match_reference(priors, objects.boxes, objects.offsets, **options)
            moved = (x.to(device) for x in (priors, objects.boxes, objects.offsets))
            assert torch.equal(match(*moved, **options).cpu(), expected), options


@pytest.mark.parametrize("scene", SCENES)
def test_decisions_equal_reference_on_adversarial_scenes(device, scene, full_count) -> None:
    """Ties, touching, nested, duplicate and broken objects; one, many and none."""
    for seed in range(full_count(30, 1700)):
        generator = seeded(seed)
        prior_scene = list(SCENES)[seed % len(SCENES)]
        priors = SCENES[prior_scene](40 + seed % 60, generator).float()
        objects = adversarial_objects(
            scene, [seed % 5, 0, 1, 200 if seed % 10 == 0 else 7], generator
        )
        options = {
            "iou_threshold": (0.5, 0.45, 0.25, 1 / 3, 0.0)[seed % 5],
            "low_threshold": (None, 0.0, 0.25)[seed % 3] if seed % 5 < 3 else None,
            "strict": seed % 2 == 1,
            "assign": ASSIGNS[seed % 3],
        }
        expected = match_reference(priors, objects.boxes, objects.offsets, **options)
        moved = (x.to(device) for x in (priors, objects.boxes, objects.offsets))
        assert torch.equal(match(*moved, **options).cpu(), expected), (scene, seed, options)


corners = st.integers(0, 6)
grid_box = st.tuples(corners, corners, corners, corners)


@given(
    priors=st.lists(grid_box, min_size=0, max_size=40),
    boxes=st.lists(grid_box, min_size=0, max_size=8),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 1 / 3, 1.0]),
    strict=st.booleans(),
    assign=st.sampled_from(ASSIGNS),
)
def test_decisions_equal_reference_on_integer_boxes(
    priors, boxes, threshold, strict, assign
) -> None:
    """Integer corners make equal overlaps, and overlaps equal to the threshold, common."""
    prior_tensor = torch.tensor(priors, dtype=torch.float32).reshape(-1, 4)
    box_tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    offsets = torch.tensor([0, len(boxes)])
    options = {"iou_threshold": threshold, "strict": strict, "assign": assign}
    expected = match_reference(prior_tensor, box_tensor, offsets, **options)
    assert torch.equal(match(prior_tensor, box_tensor, offsets, **options), expected)


UNIT = torch.tensor([[0.0, 0, 1, 1]])
ROW = torch.tensor([[0.0, 0, 2, 1], [2, 0, 4, 1], [4, 0, 6, 1]])


def _match(priors, boxes, **options) -> list[int]:
    return match(priors, boxes, torch.tensor([0, len(boxes)]), **options)[0].tolist()


def test_equal_overlaps_go_to_the_first_object() -> None:
    """Of the same object twice the first is matched; only the claim of the last differs."""
    boxes = ROW[:1].repeat(2, 1)
    assert _match(ROW, boxes, assign="none") == [0, -1, -1]
    assert _match(ROW, boxes, assign="last") == [1, -1, -1]


def test_an_object_claims_its_first_best_prior() -> None:
    """An object half on two priors claims the lower one."""
    assert _match(ROW, torch.tensor([[1.0, 0, 3, 1]])) == [0, -1, -1]


def test_bipartite_gives_each_object_a_prior_of_its_own() -> None:
    """Two objects want prior 0; the better pair keeps it and the other takes its next best."""
    boxes = torch.tensor([[0.0, 0, 2.4, 1], [0, 0, 2.2, 1]])
    assert _match(ROW, boxes, iou_threshold=0.99, assign="bipartite") == [1, 0, -1]
    assert _match(ROW, boxes, iou_threshold=0.99, assign="last") == [1, -1, -1]


def test_a_claim_overrides_the_threshold_and_the_band() -> None:
    """A prior below the thresholds still goes to the object whose best it is."""
    box = torch.tensor([[1.5, 0, 2.1, 1]])
    assert _match(ROW, box, low_threshold=0.01, assign="none") == [-2, -2, -1]
    assert _match(ROW, box, low_threshold=0.01, assign="last") == [0, -2, -1]


def test_threshold_is_inclusive_unless_strict() -> None:
    """IoU of exactly one half: positive, or with `strict` not; then the band takes it."""
    box = torch.tensor([[0.0, 0, 1, 0.5]])
    assert _match(UNIT, box, assign="none") == [0]
    assert _match(UNIT, box, assign="none", strict=True) == [-1]
    assert _match(UNIT, box, assign="none", strict=True, low_threshold=0.5) == [-2]


def test_an_overlap_equal_to_the_threshold_reaches_it(device) -> None:
    """However the quotient was rounded, of which bounds of priors know the product alone."""
    priors, boxes = random_boxes(200, seeded(0)), random_boxes(1, seeded(1))
    offsets = torch.tensor([0, 1], device=device)
    overlaps = box_iou(priors, boxes)[:, 0].tolist()
    for i, overlap in enumerate(overlaps):
        arguments = priors[i : i + 1].to(device), boxes.to(device), offsets
        found = match(*arguments, iou_threshold=overlap, assign="none")
        assert found.item() == 0, overlap


@pytest.mark.parametrize("iou_threshold", [1.5, 3e38, 1e39])
def test_a_threshold_that_no_overlap_reaches_leaves_the_claims(iou_threshold) -> None:
    """The last one is infinite as a float32."""
    box = torch.tensor([[0.0, 0, 1, 0.5]])
    assert _match(UNIT, box, iou_threshold=iou_threshold, assign="none") == [-1]
    for assign in ("last", "bipartite"):
        assert _match(UNIT, box, iou_threshold=iou_threshold, assign=assign) == [0]


def test_an_object_that_overlaps_nothing_claims_nothing() -> None:
    """Peers force it on prior 0; a shared edge is no overlap either."""
    for assign in ASSIGNS:
        assert (
            _match(ROW, torch.tensor([[9.0, 9, 10, 10], [6, 0, 7, 1]]), assign=assign) == [-1] * 3
        )


def test_broken_objects_match_nothing_and_shift_no_index() -> None:
    """The healthy object behind two broken ones keeps index 2."""
    boxes = torch.tensor([[2.0, 0, 0, 1], [0, 0, float("nan"), 1], [0, 0, 2, 1]])
    for assign in ASSIGNS:
        assert _match(ROW, boxes, assign=assign) == [2, -1, -1]


def test_offsets_are_clamped_and_rows_behind_the_last_ignored() -> None:
    """Offsets that lead out of the boxes, backwards, or leave rows over."""
    boxes = ROW[:2]
    last = match(ROW, boxes, torch.tensor([0, 1, 1]))
    assert last.tolist() == [[0, -1, -1], [-1, -1, -1]]
    wild = match(ROW, boxes, torch.tensor([-5, 99, 0, 2**40]))
    assert wild.tolist() == [[0, 1, -1], [-1, -1, -1], [0, 1, -1]]


@pytest.mark.parametrize(("B", "P", "N"), [(0, 3, 0), (2, 0, 3), (2, 3, 0), (0, 0, 0)])
def test_empty_batches_priors_and_objects(device, B, P, N) -> None:
    """Nothing to match is not an error."""
    offsets = torch.linspace(0, N, B + 1).long()
    result = match(
        random_boxes(P, seeded(0)).to(device),
        random_boxes(N, seeded(1)).to(device),
        offsets.to(device),
    )
    assert result.shape == (B, P)
    assert result.dtype == torch.int32


def test_any_strides_and_no_argument_is_changed() -> None:
    """Transposed, expanded and sliced inputs give what contiguous ones give."""
    priors, boxes = random_boxes(64, seeded(0)), random_boxes(6, seeded(1))
    offsets = torch.tensor([0, 0, 3, 3, 6, 6])[1::2]
    copies = priors.clone(), boxes.clone()
    plain = match(priors, boxes, offsets.clone())
    assert torch.equal(
        match(priors.t().contiguous().t(), boxes.repeat(1, 2)[:, :4], offsets), plain
    )
    one = boxes[:1].expand(6, 4)
    assert torch.equal(match(priors, one, offsets), match(priors, one.contiguous(), offsets))
    assert torch.equal(priors, copies[0])
    assert torch.equal(boxes, copies[1])


def test_threads_change_nothing() -> None:
    """One and two threads decide the same."""
    priors, objects = random_boxes(999, seeded(0)), random_objects(8, seeded(1))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(match(priors, objects.boxes, objects.offsets))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize("assign", range(3))
def test_registration(device, assign) -> None:
    """Schema, fake kernel and compilation."""
    priors, objects = random_boxes(50, seeded(0)), random_objects(2, seeded(1))
    inputs = (x.to(device) for x in (priors, objects.boxes, objects.offsets))
    torch.library.opcheck(
        torch.ops.ssd_fast.match.default, (*inputs, 0.5, 0.4 if assign else None, False, assign)
    )


def test_equals_torchvision_matcher(torchvision) -> None:
    """The matcher of torchvision's SSD, on objects that all overlap a prior."""
    from torchvision.models.detection._utils import SSDMatcher

    matcher = SSDMatcher(0.5)
    priors = random_boxes(2000, seeded(0))
    for seed in range(20):
        boxes = random_boxes(1 + seed, seeded(seed))
        expected = matcher(torchvision.ops.box_iou(boxes, priors))
        assert _match(priors, boxes) == expected.tolist()


BOX = torch.zeros(3, 4)
OFFSETS = torch.tensor([0, 3])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(3, 5), BOX, OFFSETS), {}, r"priors: expected \(n, 4\) .* got \(3, 5\)"),
        ((BOX.double(), BOX, OFFSETS), {}, r"priors: expected float32.*priors.float\(\)"),
        ((BOX, BOX.half(), OFFSETS), {}, r"boxes: expected float32, got \(3, 4\) torch.float16"),
        ((BOX, [[0, 0, 1, 1]], OFFSETS), {}, r"boxes: expected \(n, 4\) .* got list"),
        ((BOX, BOX, OFFSETS.int()), {}, r"offsets: expected a vector of torch.int64"),
        ((BOX, BOX, OFFSETS[:0]), {}, r"offsets: expected \(B \+ 1,\) int64, got an empty"),
        ((BOX, BOX.to("meta"), OFFSETS), {}, r"boxes: expected on cpu like priors, got meta"),
        ((BOX, BOX, OFFSETS), {"iou_threshold": float("nan")}, "iou_threshold: .* got nan"),
        ((BOX, BOX, OFFSETS), {"iou_threshold": -0.1}, "iou_threshold: .* got -0.1"),
        ((BOX, BOX, OFFSETS), {"low_threshold": 0.6}, "low_threshold: .* from 0 to 0.5, got 0.6"),
        ((BOX, BOX, OFFSETS), {"assign": "first"}, "assign: expected one of 'last', 'bipartite'"),
    ],
)
def test_rejects(arguments, options, message) -> None:
    """One clear error that names the argument."""
    with pytest.raises(ValueError, match=message):
        match(*arguments, **options)
