# SPDX-License-Identifier: BSD-3-Clause
"""nms, batched_nms, nms_padded: equal to their definition and to torchvision, bit for bit."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssd_fast.ops.nms import (
    batched_nms,
    batched_nms_reference,
    nms,
    nms_padded,
    nms_padded_reference,
    nms_reference,
)

THRESHOLDS = [0.0, 0.3, 1 / 3, 0.45, 0.5, 0.7, 1.0]


def scene(generator, n, *, grid=0, device="cpu"):
    """Boxes (n, 4) and distinct scores (n,); with `grid`, corners and scores repeat."""
    low = torch.rand(n, 2, generator=generator)
    boxes = torch.cat((low, low + torch.rand(n, 2, generator=generator) * 0.4), dim=1)
    scores = (torch.randperm(n, generator=generator).float() + 1) / max(n, 1)
    if grid:
        boxes, scores = (boxes * grid).round(), (scores * grid).round() / grid
    return boxes.to(device), scores.to(device)


def classes(generator, n, device="cpu"):
    return torch.randint(-2, 4, (n,), generator=generator).to(device)


@st.composite
def scenes(draw, grids=(0, 0, 4, 16)):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n = draw(st.integers(0, 60))
    return *scene(generator, n, grid=draw(st.sampled_from(grids))), classes(generator, n)


@given(scenes(), st.sampled_from([*THRESHOLDS, -0.5, -math.inf, math.inf, 1e300]), st.booleans())
def test_equals_reference(case, threshold, spoil):
    boxes, scores, idxs = case
    if spoil and boxes.size(0) > 2:
        boxes[0, 2], scores[1], boxes[2] = math.nan, math.inf, boxes[2, [2, 3, 0, 1]]
    assert torch.equal(nms(boxes, scores, threshold), nms_reference(boxes, scores, threshold))
    keep = batched_nms(boxes, scores, idxs, threshold)
    assert torch.equal(keep, batched_nms_reference(boxes, scores, idxs, threshold))
    padded, count = nms_padded(boxes, scores, threshold, idxs)
    assert padded.shape == scores.shape
    assert (padded.dtype, count.dtype, count.shape) == (torch.int64, torch.int64, ())
    assert torch.equal(padded[: int(count)], keep)
    assert bool((padded[int(count) :] == -1).all())
    expected = nms_padded_reference(boxes, scores, threshold, idxs)
    assert torch.equal(padded, expected[0])
    assert torch.equal(count, expected[1])


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 33, 400])
def test_every_device_decides_the_same(device, n):
    generator = torch.Generator().manual_seed(n)
    boxes, scores = scene(generator, n, grid=20)
    idxs = classes(generator, n)
    expected = batched_nms_reference(boxes, scores, idxs, 0.45)
    found = batched_nms(boxes.to(device), scores.to(device), idxs.to(device), 0.45)
    assert found.device.type == device.type
    assert torch.equal(found.cpu(), expected)
    padded, _ = nms_padded(boxes.to(device), scores.to(device), 0.45)
    assert torch.equal(padded.cpu(), nms_padded_reference(boxes, scores, 0.45)[0])


@given(case=scenes(grids=(0, 0, 0, 8)), threshold=st.sampled_from(THRESHOLDS))
def test_equals_torchvision(torchvision, case, threshold):
    boxes, scores, _ = case
    # Of equal scores torchvision leaves the order open: rank them by our rule first.
    ranked = torch.empty_like(scores)
    ranked[scores.sort(descending=True, stable=True).indices] = torch.arange(
        scores.numel(), 0.0, -1.0
    )
    expected = torchvision.ops.nms(boxes, ranked, threshold)
    assert torch.equal(nms(boxes, scores, threshold), expected)
    assert torch.equal(nms(boxes, ranked, threshold), expected)


@given(case=scenes(), threshold=st.sampled_from(THRESHOLDS))
def test_batched_equals_torchvision_per_class(torchvision, case, threshold):
    boxes, scores, idxs = case
    scores = scores + torch.arange(scores.numel(), 0, -1) * 2.0  # distinct
    expected = torchvision.ops.boxes._batched_nms_vanilla(boxes, scores, idxs, threshold)
    assert torch.equal(batched_nms(boxes, scores, idxs, threshold), expected)


@given(case=scenes(grids=(1000,)), threshold=st.sampled_from(THRESHOLDS))
def test_batched_equals_torchvision_on_integers(torchvision, case, threshold):
    boxes, _, idxs = case
    idxs = idxs.abs()
    scores = torch.arange(boxes.size(0), 0.0, -1.0)
    expected = torchvision.ops.batched_nms(boxes.clamp(0, 1000), scores, idxs, threshold)
    assert torch.equal(batched_nms(boxes.clamp(0, 1000), scores, idxs, threshold), expected)


def test_many_boxes_equal_torchvision(torchvision, full_count):
    generator = torch.Generator().manual_seed(0)
    boxes, scores = scene(generator, full_count(3000, 20000))
    assert torch.equal(nms(boxes, scores, 0.45), torchvision.ops.nms(boxes, scores, 0.45))


def beside(threshold):
    """Widths, and their overlaps with a box of width 1: float32 steps around the threshold."""
    bounds = torch.tensor([threshold - 1e-6, threshold + 1e-6], dtype=torch.float32)
    steps = torch.arange(*bounds.view(torch.int32).tolist(), dtype=torch.int32)
    widths = steps.view(torch.float32)
    overlaps = widths / (1 + widths - widths)
    assert float(overlaps.min()) < threshold < float(overlaps.max())
    return widths.tolist(), overlaps.tolist()


@pytest.mark.parametrize("threshold", [0.3, 1 / 3, 0.45, 0.7, 0.1])
def test_the_threshold_is_compared_as_a_real_number(device, threshold):
    scores = torch.tensor([0.9, 0.8], device=device)
    for width, overlap in zip(*beside(threshold), strict=True):
        boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, width, 1]], device=device)
        expected = [0] if overlap > threshold else [0, 1]
        assert nms(boxes, scores, threshold).tolist() == expected
        assert nms_reference(boxes, scores, threshold).tolist() == expected


def tiny():
    """Areas of a few subnormal steps: products round coarsely, quotients do not."""
    boxes = torch.zeros(11, 4)
    boxes[:, 2], boxes[:, 3] = torch.arange(1, 12) * 2.0**-74, 2.0**-75
    return boxes


HUGE = torch.tensor([[-3e38, -3e38, 3e38, 3e38], [0, 0, 1e20, 1e20], [0, 0, 3e38, 3e38]])


@pytest.mark.parametrize("boxes", [tiny(), HUGE], ids=["tiny", "huge"])
@pytest.mark.parametrize("threshold", [*THRESHOLDS, 0.49, 0.51, 0.6])
def test_extreme_coordinates_decide_as_the_reference(device, boxes, threshold):
    scores = torch.arange(len(boxes), 0.0, -1.0)
    expected = nms_reference(boxes, scores, threshold)
    assert torch.equal(nms(boxes.to(device), scores.to(device), threshold).cpu(), expected)


@pytest.mark.parametrize("threshold", [0.3, 1 / 3, 0.45, 0.7, 0.1])
def test_extremes_equal_torchvision(torchvision, threshold):
    widths, _ = beside(threshold)
    pairs = [torch.tensor([[0.0, 0, 1, 1], [0, 0, width, 1]]) for width in widths]
    for boxes in (*pairs, tiny(), HUGE):
        scores = torch.arange(len(boxes), 0.0, -1.0)
        expected = torchvision.ops.nms(boxes, scores, threshold)
        assert torch.equal(nms(boxes, scores, threshold), expected)


def test_the_lower_index_is_better_of_equal_scores(device):
    box = torch.tensor([[0.0, 0, 1, 1]], device=device)
    boxes = torch.cat((box, box, box + 5, box + 5))
    assert nms(boxes, torch.ones(4, device=device), 0.5).tolist() == [0, 2]
    zeros = torch.tensor([-0.0, 0.0, 0.0, -0.0], device=device)
    assert nms(boxes, zeros, 0.5).tolist() == [0, 2]
    scores = torch.tensor([0.1, 0.2, 0.2, 0.1], device=device)
    assert nms(boxes, scores, 0.5).tolist() == [1, 2]
    assert nms(boxes, -scores, 0.5).tolist() == [0, 3]
    assert batched_nms(boxes, zeros, torch.arange(4, device=device), 0.5).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_kept_and_suppresses_nothing(device, bad):
    boxes = torch.tensor([[0.0, 0, 1, 1]] * 4, device=device)
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6], device=device)
    boxes[0, 3] = bad
    scores[1] = bad
    assert nms(boxes, scores, 0.5).tolist() == [2]
    assert batched_nms(boxes, scores, torch.zeros_like(scores).long(), 0.5).tolist() == [2]
    assert nms_padded(boxes, scores, 0.5)[0].tolist() == [2, -1, -1, -1]
    assert nms(boxes[:1], scores[:1], 0.5).tolist() == []


def test_empty_boxes_suppress_nothing(device):
    point = torch.tensor([[1.0, 1, 1, 1]] * 3, device=device)
    scores = torch.tensor([0.9, 0.8, 0.7], device=device)
    assert nms(point, scores, 0.0).tolist() == [0, 1, 2]  # 0 / 0


def test_classes_are_any_integers(device):
    boxes = torch.tensor([[0.0, 0, 1, 1]] * 5, device=device)
    scores = torch.tensor([0.5, 0.6, 0.7, 0.8, 0.9], device=device)
    far = [2**63 - 1, -(2**63), 2**63 - 1, 0, -(2**63)]
    keep = batched_nms(boxes, scores, torch.tensor(far, device=device), 0.5)
    assert keep.tolist() == [4, 3, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_raised_to_float32(device, dtype):
    generator = torch.Generator().manual_seed(0)
    boxes, scores = (t.to(dtype) for t in scene(generator, 50, device=device))
    expected = nms(boxes.float(), scores.float(), 0.45)
    assert torch.equal(nms(boxes, scores, 0.45), expected)
    assert torch.equal(nms(boxes, scores.float(), 0.45), expected)


def test_strides_do_not_matter(device):
    boxes, scores = scene(torch.Generator().manual_seed(0), 40, device=device)
    idxs = torch.arange(40, device=device) % 3
    expected = batched_nms(boxes, scores, idxs, 0.3)
    spread = torch.stack((idxs, idxs), dim=1)[:, 0]
    found = batched_nms(
        boxes.T.contiguous().T, torch.stack((scores, scores), dim=1)[:, 0], spread, 0.3
    )
    assert torch.equal(found, expected)
    one = boxes[:1].expand(7, 4)
    assert nms(one, scores[:1].expand(7), 0.5).tolist() == [0]


def test_arguments_are_left_alone(device):
    boxes, scores = scene(torch.Generator().manual_seed(0), 40, device=device)
    before = boxes.clone(), scores.clone()
    nms(boxes.requires_grad_(), scores.requires_grad_(), 0.5)
    nms_padded(boxes, scores, 0.5)
    assert torch.equal(boxes, before[0])
    assert torch.equal(scores, before[1])


def test_registration(device):
    boxes, scores = scene(torch.Generator().manual_seed(0), 9, device=device)
    idxs = torch.arange(9, device=device) % 2
    ops = torch.ops.ssd_fast
    torch.library.opcheck(ops.nms.default, (boxes, scores, 0.5))
    torch.library.opcheck(ops.batched_nms.default, (boxes, scores, idxs, 0.5))
    torch.library.opcheck(ops.nms_padded.default, (boxes, scores, 0.5, idxs))
    torch.library.opcheck(ops.nms_padded.default, (boxes, scores, 0.5))


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_compiles_without_a_graph_break(device):
    boxes, scores = scene(torch.Generator().manual_seed(0), 30, device=device)
    idxs = torch.arange(30, device=device) % 2

    def best(b, s, i):
        return b[nms(b, s, 0.5)].sum(), batched_nms(b, s, i, 0.5) + 1, nms_padded(b, s, 0.5, i)

    compiled = torch.compile(best, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(boxes, scores, idxs), best(boxes, scores, idxs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.zeros(3, 5)}, r"boxes: expected \(N, 4\).*got \(3, 5\)"),
        ({"boxes": [1.0, 2.0]}, r"boxes: expected \(N, 4\).*got list"),
        ({"boxes": torch.zeros(3, 4).double()}, r"boxes: expected float32.*boxes\.float\(\)"),
        ({"scores": torch.zeros(2)}, r"scores: expected \(3,\), one for each box, got \(2,\)"),
        ({"scores": torch.zeros(3, 1)}, r"scores: expected \(3,\)"),
        ({"scores": torch.zeros(3).double()}, r"scores: expected float32.*scores\.float\(\)"),
        ({"scores": torch.zeros(3).long()}, r"scores: expected float32"),
        ({"idxs": torch.zeros(3)}, r"idxs: expected a vector of torch.int64"),
        ({"idxs": torch.zeros(2).long()}, r"idxs: expected \(3,\), one for each box, got \(2,\)"),
        ({"scores": torch.zeros(3, device="meta")}, r"scores: expected on cpu like boxes"),
        ({"iou_threshold": math.nan}, r"iou_threshold: expected a number.*nan"),
    ],
)
def test_rejects(change, message):
    arguments = {
        "boxes": torch.zeros(3, 4),
        "scores": torch.zeros(3),
        "idxs": torch.zeros(3, dtype=torch.int64),
        "iou_threshold": 0.5,
    } | change
    for function in (batched_nms, nms_padded):
        with pytest.raises(ValueError, match=message):
            function(**arguments)
    if "idxs" not in change:
        del arguments["idxs"]
        with pytest.raises(ValueError, match=message):
            nms(**arguments)


@pytest.mark.parametrize(
    ("boxes", "scores", "idxs"),
    [
        (torch.zeros(3, 5), torch.zeros(3), torch.zeros(3).long()),
        (torch.zeros(3, 4).half(), torch.zeros(3), torch.zeros(3).long()),
        (torch.zeros(3, 4), torch.zeros(2), torch.zeros(3).long()),
        (torch.zeros(3, 4), torch.zeros(3).double(), torch.zeros(3).long()),
        (torch.zeros(3, 4), torch.zeros(3), torch.zeros(2).long()),
        (torch.zeros(3, 4), torch.zeros(3), torch.zeros(3).int()),
    ],
)
def test_the_operators_guard_memory_themselves(boxes, scores, idxs):
    with pytest.raises(RuntimeError, match="expected"):
        torch.ops.ssd_fast.batched_nms(boxes, scores, idxs, 0.5)
    with pytest.raises(RuntimeError, match="expected"):
        torch.ops.ssd_fast.nms_padded(boxes, scores, 0.5, idxs)
