# SPDX-License-Identifier: BSD-3-Clause
"""Every instruction set of this machine decides the same, and what the references decide."""

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ssd_fast import _C
from ssd_fast.ops import decode, encode, match, match_reference, mine, mine_reference, multibox_loss
from ssd_fast.priors import ssd300
from ssd_fast.testing import (
    SCENES,
    adversarial_objects,
    as_maps,
    assert_same_rows,
    random_boxes,
    random_objects,
    seeded,
)

SETS = _C.instruction_sets()
CELLS = [(4, 9, 9), (6, 5, 5), (6, 3, 1), (4, 1, 1)]
OPTIONS = (None, None, 0.5, None, False, 0, 0.5, 3.0, 3, 0, 1.0, (0.1, 0.1, 0.2, 0.2), 0.0, 0, 0)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Leaves the best instruction set behind."""
    yield
    _C.set_instruction_set(SETS[-1])


def _everything(deltas, logits, priors, objects) -> list[Tensor]:
    """Losses, counts, codes and gradients."""
    loss = torch.ops.ssd_fast.multibox_loss.default
    results = loss(deltas, logits, priors, *objects, *OPTIONS)
    one = torch.ones(())
    code, positives = results[3], results[2]
    backward = torch.ops.ssd_fast.multibox_loss_backward.default
    grads = backward(
        one, one, deltas, logits, priors, *objects, code, positives, None, *OPTIONS[9:]
    )
    return [*results, *grads[0], *grads[1]]


def _assert_equal_on_all(*arguments) -> list[Tensor]:
    """Holds all instruction sets to the plainest, bit for bit; returns its results."""
    _C.set_instruction_set(SETS[0])
    expected = _everything(*arguments)
    for name in SETS[1:]:
        _C.set_instruction_set(name)
        for actual, want in zip(_everything(*arguments), expected, strict=True):
            assert torch.equal(actual.nan_to_num(), want.nan_to_num()), name
            assert torch.equal(actual.isnan(), want.isnan()), name
    return expected


def test_the_best_is_chosen_and_others_can_be() -> None:
    """Names in, names out; a wrong one is refused with those that are right."""
    assert SETS[0] == "portable"
    assert _C.instruction_set() == SETS[-1]
    for name in SETS:
        _C.set_instruction_set(name)
        assert _C.instruction_set() == name
    with pytest.raises(ValueError, match=r"of this machine, 'portable'.* got 'mmx'"):
        _C.set_instruction_set("mmx")


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("scene", SCENES)
def test_match_equals_reference(name, scene) -> None:
    """Real priors in blocks, so that most are pruned; every option, thresholds down to 0."""
    _C.set_instruction_set(name)
    priors = ssd300()[::3]
    objects = adversarial_objects(scene, [5, 0, 12], seeded(0))
    for seed, threshold in enumerate((0.5, 0.35, 0.05, 0.0)):
        for assign in ("last", "bipartite", "none"):
            options = {
                "iou_threshold": threshold,
                "low_threshold": threshold / 2 if seed % 2 else None,
                "strict": seed > 1,
                "assign": assign,
            }
            expected = match_reference(priors, objects.boxes, objects.offsets, **options)
            assert torch.equal(match(priors, objects.boxes, objects.offsets, **options), expected)


@pytest.mark.parametrize("name", SETS)
def test_match_equals_reference_on_broken_priors_and_tiny_objects(name) -> None:
    """NaN, infinite and inverted priors hide no healthy neighbour; tiny objects still claim."""
    _C.set_instruction_set(name)
    for P in (1, 15, 16, 17, 500):
        priors = SCENES["broken"](P, seeded(P)).float()
        boxes = torch.cat(
            (random_boxes(6, seeded(1)), random_boxes(6, seeded(2), smallest=1e-4, largest=1e-3))
        )
        for offsets in (torch.tensor([0, 12]), torch.tensor([0, 3, 12])):
            for assign in ("last", "bipartite"):
                expected = match_reference(priors, boxes, offsets, assign=assign)
                assert torch.equal(match(priors, boxes, offsets, assign=assign), expected)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("P", [1, 15, 17, 3000, 8731])
def test_mine_equals_reference(name, P) -> None:
    """Distinct, tied and poisoned losses."""
    _C.set_instruction_set(name)
    loss = torch.randn(4, P, generator=seeded(P))
    loss[1] = loss[1].round()
    loss[2, ::7] = math.nan
    loss[3, ::5] = math.inf
    draw = torch.rand(4, P, generator=seeded(P + 1))
    matched = torch.where(draw < 0.02, 1, torch.where(draw > 0.97, -2, -1)).int()
    for min_negatives in (0, 7, P // 2):
        expected = mine_reference(loss, matched, min_negatives=min_negatives)
        assert torch.equal(mine(loss, matched, min_negatives=min_negatives), expected)


@pytest.mark.parametrize("name", SETS)
def test_mine_equals_reference_where_a_sample_misleads(name) -> None:
    """Hard rows lie just where a sample is taken, so that too few reach what it suggests."""
    _C.set_instruction_set(name)
    P, sampled = 3000, 512
    loss = torch.rand(1, P, generator=seeded(0))
    for i in range(0, sampled, 4):
        begin = i * (P - 16) // sampled
        loss[0, begin : begin + 16] += 10
    matched = torch.full((1, P), -1, dtype=torch.int32)
    for k in (1, 100, 400, 500, 501, P - 1, P):
        expected = mine_reference(loss, matched, min_negatives=k)
        assert int(expected.sum()) == k
        assert torch.equal(mine(loss, matched, min_negatives=k), expected)


@pytest.mark.parametrize("C", [2, 8, 15, 16, 17, 21, 81, 200])
@pytest.mark.parametrize("P", [1, 15, 17, 1031])
def test_losses_decisions_and_gradients_are_equal(C, P) -> None:
    """Bit for bit, at sizes around the width of every register."""
    objects = random_objects(2, seeded(1), counts=(0, 4), classes=C)
    logits = torch.randn(2, P, C, generator=seeded(C)) * 3
    logits[0, ::3, 0] += 8
    deltas = torch.randn(2, P, 4, generator=seeded(2))
    code = _assert_equal_on_all([deltas], [logits], random_boxes(P, seeded(3)), objects)[3]
    key = (logits - logits[..., :1]).exp()[..., 1:].sum(2)
    matched = match(random_boxes(P, seeded(3)), objects.boxes, objects.offsets)
    expected = mine(key, matched, min_negatives=3)
    assert_same_rows(code == -3, expected, key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_maps_of_every_layout_are_equal(dtype, memory_format) -> None:
    """Planes, even rows and copied rows give one result on every instruction set."""
    P = sum(a * h * w for a, h, w in CELLS)
    objects = random_objects(2, seeded(1), classes=21)
    heads = torch.randn(2, P, 4, generator=seeded(2)), torch.randn(2, P, 21, generator=seeded(3))
    deltas, logits = (x.to(dtype) for x in heads)
    priors = random_boxes(P, seeded(4))
    rows = _assert_equal_on_all([deltas], [logits], priors, objects)
    maps = [
        [m.contiguous(memory_format=memory_format) for m in as_maps(x, CELLS)]
        for x in (deltas, logits)
    ]
    levels = _assert_equal_on_all(*maps, priors, objects)
    assert all(torch.equal(a, b) for a, b in zip(levels[:4], rows[:4], strict=True))


@pytest.mark.parametrize("value", [1e30, -1e30, 100.0, -100.0, 3e7, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("column", [0, 5])
@pytest.mark.parametrize("planes", [False, True])
def test_wild_logits_are_equal(value, column, planes) -> None:
    """Beyond the range of the rough exponentials rows are computed exactly, and mined rightly."""
    logits = torch.randn(1, 400, 21, generator=seeded(0))
    logits[0, ::9, column] = value
    deltas = torch.randn(1, 400, 4, generator=seeded(1))
    objects = random_objects(1, seeded(2))
    priors = random_boxes(400, seeded(3))
    heads = [deltas], [logits]
    if planes:
        heads = as_maps(deltas, [(4, 10, 10)]), as_maps(logits, [(4, 10, 10)])
    code = _assert_equal_on_all(*heads, priors, objects)[3]
    key = (logits - logits[..., :1]).exp()[..., 1:].sum(2)
    expected = mine(key, match(priors, *objects[::2]), min_negatives=3)
    differing = (code == -3) != expected
    low_high = key[differing].double()
    assert not differing.any() or low_high.max() - low_high.min() <= 1e-5 * low_high.max()


@pytest.mark.parametrize("shift", [87.0, -87.0, 200.0, 300.0, -300.0, 1e4, -1e6, 1e30])
@pytest.mark.parametrize(("C", "every"), [(21, 1), (21, 40), (81, 1), (81, 40)])
def test_shifted_rows_are_equal(shift, C, every) -> None:
    """A softmax does not see what is added to a whole row, and few rows are mined of many."""
    P = 3000
    logits = torch.randn(1, P, C, generator=seeded(0)) * 2
    logits[..., 0] += 4
    logits[:, ::every] += shift
    deltas = torch.randn(1, P, 4, generator=seeded(1))
    objects = random_objects(1, seeded(2), counts=(3, 3), classes=C)
    priors = ssd300()[:P]
    code = _assert_equal_on_all([deltas], [logits], priors, objects)[3]
    key = (logits - logits[..., :1]).exp()[..., 1:].sum(2)
    expected = mine(key, match(priors, *objects[::2]), min_negatives=3)
    assert expected.any()
    assert_same_rows(code == -3, expected, key)


def _rounded_most() -> tuple[float, float]:
    """Logits whose products with 2^23 / ln 2 are rounded up by most, and down by most."""
    logits = 100000 + torch.arange(4096) / 128
    offsets = 1065353216 - logits.double() * 12102203
    errors = offsets.float().double() - offsets
    return float(logits[errors.argmax()]), float(logits[errors.argmin()])


def _assert_hard_rows_are_mined(easy: Tensor, hard: Tensor, planes: bool) -> None:
    """Of rows of two kinds, (C,) logits: all that are hard, and of the others the first."""
    P, k = 3200, 100
    is_hard = torch.arange(P) % 50 == 7
    logits = torch.where(is_hard.unsqueeze(1), hard, easy).unsqueeze(0)
    heads = [torch.zeros(1, P, 4)], [logits]
    if planes:
        heads = tuple(as_maps(level[0], [(4, 40, 20)]) for level in heads)
    objects = random_objects(1, seeded(0), counts=(0, 0))
    expected = is_hard.clone()
    expected[(~is_hard).nonzero()[: k - int(is_hard.sum())]] = True
    for name in SETS:
        _C.set_instruction_set(name)
        code = torch.ops.ssd_fast.multibox_loss.default(
            *heads, random_boxes(P, seeded(1)), *objects, *OPTIONS[:8], k, *OPTIONS[9:]
        )[3]
        assert torch.equal(code[0] == -3, expected), name


@pytest.mark.parametrize(
    ("easy", "hard"),
    [(0.0, 0.0), (265.5, 265.5), (-265.5, -265.5), (441.0, 441.0), _rounded_most()],
)
@pytest.mark.parametrize("planes", [False, True])
def test_rough_keys_at_their_worst_hide_no_row(easy, hard, planes) -> None:
    """They are exact for powers of 2, and up to 6.15 % too large between; and they round."""
    between = math.log(2) * (math.log2(math.e) - 1 - 2e-4)  # 64 of e^this are less than 87 ...
    octaves = torch.tensor([0] * 41 + [1] * 23)  # ... which 41 ones and 23 twos are
    background = torch.zeros(1)
    _assert_hard_rows_are_mined(
        easy + torch.cat((background, torch.full((64,), between))),
        hard + torch.cat((background, math.log(2) * octaves)),
        planes,
    )


@pytest.mark.parametrize("planes", [False, True])
def test_rough_keys_of_tiny_sums_hide_no_row(planes) -> None:
    """Below 2^-126 they are too small: 20 terms of a half and 44 of 5/4 are more than 64 ones."""
    octaves = torch.tensor([126] + [-0.995] * 20 + [math.log2(1.25)] * 44) - 126
    ones = torch.tensor([126] + [0] * 64) - 126
    _assert_hard_rows_are_mined(math.log(2) * ones, math.log(2) * octaves, planes)


def test_mixed_levels_of_an_unaligned_buffer() -> None:
    """Tensors that begin anywhere, levels of different memory formats."""
    P = sum(a * h * w for a, h, w in CELLS)
    objects = random_objects(2, seeded(1), classes=21)
    deltas = as_maps(torch.randn(2, P, 4, generator=seeded(2)), CELLS)
    logits = as_maps(torch.randn(2, P, 21, generator=seeded(3)), CELLS)
    priors = torch.cat((torch.zeros(1), random_boxes(P, seeded(4)).flatten()))[1:].view(P, 4)
    expected = _assert_equal_on_all(deltas, logits, priors, objects)
    logits[0] = logits[0].contiguous(memory_format=torch.channels_last)
    room = torch.zeros(logits[1].numel() + 3)
    room[3:] = logits[1].flatten()
    logits[1] = room[3:].view_as(logits[1])
    wide = torch.zeros(2, 6 * 21, 3, 2)
    wide[..., :1] = logits[2]
    logits[2] = wide[..., :1]
    mixed = _assert_equal_on_all(deltas, logits, priors, objects)
    for a, b in zip(mixed[:4], expected[:4], strict=True):
        assert torch.equal(a, b)


def test_the_public_loss_runs_on_every_instruction_set() -> None:
    """Through autograd, within the rounding of float32."""
    objects = random_objects(2, seeded(1))
    priors = ssd300()
    deltas = torch.randn(2, 8732, 4, generator=seeded(2), requires_grad=True)
    logits = torch.randn(2, 8732, 21, generator=seeded(3), requires_grad=True)
    results = []
    for name in SETS:
        _C.set_instruction_set(name)
        box_loss, class_loss, _ = multibox_loss(deltas, logits, priors, *objects)
        grads = torch.autograd.grad(box_loss + class_loss, (deltas, logits))
        results.append((box_loss, class_loss, *grads))
    for result in results[1:]:
        for actual, expected in zip(result, results[0], strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (15,), (17,), (3, 8731), (40, 5)])
def test_offsets_are_equal(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = seeded(len(shape))
    priors = random_boxes(shape[-1], generator)
    rows = torch.randn(*shape, 4, generator=generator).to(dtype)
    odd = torch.tensor([math.inf, -math.inf, math.nan, 0.0, 300.0, -300.0, 6e-8])
    rows.flatten()[: odd.numel()] = odd.to(dtype)[: rows.numel()]
    results = []
    for name in SETS:
        _C.set_instruction_set(name)
        found = decode(rows, priors), decode(rows, priors, max_log_scale=None), encode(rows, priors)
        results.append([x.nan_to_num(7.7) for x in found])
    for others in results[1:]:
        assert all(map(torch.equal, others, results[0]))
