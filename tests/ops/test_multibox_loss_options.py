# SPDX-License-Identifier: BSD-3-Clause
"""multibox_loss for other detectors: box losses, weights, smoothing, matches, regions, layouts."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssd_fast import _C
from ssd_fast.boxes import decode_boxes
from ssd_fast.ops import heads_loss, match, multibox_loss, multibox_loss_reference
from ssd_fast.testing import Objects, as_maps, assert_close, random_boxes, random_objects, seeded

from .loss_cases import loss_and_gradients

B, P, C = 3, 140, 7
CELLS = [(4, 5, 5), (6, 3, 2), (4, 1, 1)]
PRIORS = random_boxes(P, seeded(0))
WEIGHTS = torch.tensor([0.3, 1.0, 2.0, 0.0, 0.5, 4.0, 1.5])
BOX_LOSSES = ["smooth_l1", "l1", "giou", "diou", "ciou"]


def _heads(seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    logits = torch.randn(B, P, C, generator=generator) * scale
    return torch.randn(B, P, 4, generator=generator), logits


def _objects(seed: int = 1, regions: bool = False) -> Objects:
    """Up to six objects an image, some of them regions to ignore if asked for."""
    objects = random_objects(B, seeded(seed), counts=(0, 6), classes=C)
    if regions:
        objects.labels[::3] = -1
    return objects


def _combinations() -> list[dict]:
    """Every box loss with every way to count the classes; the rest in turns."""
    weights = (None, WEIGHTS)
    smoothings = (0.0, 0.1, 1.0)
    turns = itertools.cycle(
        [
            {"normalizer": "image", "ignore_threshold": None},
            {"background_index": -1, "normalizer": "none", "low_threshold": 0.3},
            {"background_index": 3, "assign": "bipartite", "ignore_threshold": 0.2},
            {"min_negatives": 30, "ignore_threshold": 0.0},
            {"iou_threshold": 0.35, "variances": (0.1, 0.15, 0.2, 0.3)},
        ]
    )
    return [
        {"box_loss": box_loss, "class_weights": weight, "label_smoothing": smoothing, **next(turns)}
        for box_loss, weight, smoothing in itertools.product(BOX_LOSSES, weights, smoothings)
    ]


def _name(options: dict) -> str:
    return "-".join(str(v) for k, v in options.items() if k != "class_weights")


@pytest.mark.parametrize("options", _combinations(), ids=_name)
def test_combinations_equal_reference_on_every_instruction_set(device, options) -> None:
    """The kernel in float32 against the reference in float64; equal bit for bit among kernels."""
    heads, objects = _heads(), _objects(regions=True)
    double = [x.double() for x in (*heads, PRIORS, objects.boxes)]
    expected = loss_and_gradients(multibox_loss_reference, *double, *objects[1:], **options)
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}
    inputs = [x.to(device) for x in (*heads, PRIORS, *objects)]
    results = []
    try:
        for name in _C.instruction_sets():
            _C.set_instruction_set(name)
            results.append(loss_and_gradients(multibox_loss, *inputs, **moved))
    finally:
        _C.set_instruction_set(_C.instruction_sets()[-1])
    assert torch.equal(results[0][2].cpu(), expected[2])
    for i, what in ((0, "box_loss"), (1, "class_loss"), (3, "grad_deltas"), (4, "grad_logits")):
        assert_close(results[0][i].cpu(), expected[i], what=what)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("box_loss", ["giou", "ciou"])
def test_half_inputs_equal_reference(device, dtype, box_loss) -> None:
    """Arithmetic is float32 or better; gradients come back rounded once."""
    options = {"box_loss": box_loss, "label_smoothing": 0.1}
    heads, objects = [x.to(dtype) for x in _heads()], _objects()
    double = [x.double() for x in (*heads, PRIORS, objects.boxes)]
    expected = loss_and_gradients(multibox_loss_reference, *double, *objects[1:], **options)
    inputs = [x.to(device) for x in (*heads, PRIORS, *objects)]
    actual = loss_and_gradients(multibox_loss, *inputs, **options)
    for i in (0, 1):
        assert_close(actual[i].cpu(), expected[i])
    for i in (3, 4):
        assert actual[i].dtype == dtype
        assert_close(actual[i].cpu(), expected[i], tolerance=torch.finfo(dtype).eps)


@pytest.mark.parametrize("scale", [12.0, 1e4])
def test_large_logits_overflow_nothing(device, scale) -> None:
    """Exponents are shifted; the smoothed loss of a class far below is large, not infinite."""
    heads, objects = _heads(scale=scale), _objects()
    options = {"label_smoothing": 0.1, "class_weights": WEIGHTS + 0.1}
    double = [x.double() for x in (*heads, PRIORS, objects.boxes)]
    expected = loss_and_gradients(multibox_loss_reference, *double, *objects[1:], **options)
    inputs = [x.to(device) for x in (*heads, PRIORS, *objects)]
    options["class_weights"] = options["class_weights"].to(device)
    actual = loss_and_gradients(multibox_loss, *inputs, **options)
    for i in (1, 4):
        assert actual[i].isfinite().all()
        assert_close(actual[i].cpu(), expected[i])


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
def test_class_loss_is_torchs_cross_entropy(weights, smoothing) -> None:
    """Summed over the selected rows: torch's ``weight`` and ``label_smoothing``, no mean."""
    (deltas, logits), objects = _heads(), _objects()
    options = {"min_negatives": 40, "normalizer": "none"}
    matched = match(PRIORS, objects.boxes, objects.offsets)
    labels = objects.labels[objects.offsets[:-1, None] + matched.clamp(min=0)]
    target = torch.where(matched >= 0, labels, 0)
    # Everything is selected, so that the test has no mining of its own.
    options["min_negatives"] = P
    loss = multibox_loss(
        deltas,
        logits,
        PRIORS,
        *objects,
        class_weights=weights,
        label_smoothing=smoothing,
        **options,
    )[1]
    rows = logits.double().flatten(0, 1), target.flatten()
    weights = None if weights is None else weights.double()
    expected = F.cross_entropy(
        *rows, weight=weights, label_smoothing=smoothing, reduction="none"
    ).sum()
    assert_close(loss, expected)


@pytest.mark.parametrize(
    ("box_loss", "theirs"),
    [
        ("giou", "generalized_box_iou_loss"),
        ("diou", "distance_box_iou_loss"),
        ("ciou", "complete_box_iou_loss"),
    ],
)
def test_box_loss_is_torchvisions(torchvision, box_loss, theirs) -> None:
    """Of the decoded boxes of the positives, divided by their number."""
    (deltas, logits), objects = _heads(), _objects()
    deltas[..., 2:] *= 8  # beyond the clamp of the scale, some of them
    matched = match(PRIORS, objects.boxes, objects.offsets)
    image, prior = (matched >= 0).nonzero(as_tuple=True)
    row = objects.offsets[image] + matched[image, prior]
    leaf = deltas.double().requires_grad_()
    decoded = decode_boxes(leaf[image, prior], PRIORS[prior].double(), (0.1, 0.2))
    rows = getattr(torchvision.ops, theirs)(decoded, objects.boxes[row].double())
    expected = rows.sum() / len(rows)
    actual = loss_and_gradients(multibox_loss, deltas, logits, PRIORS, *objects, box_loss=box_loss)
    assert_close(actual[0], expected.detach())
    assert_close(actual[3], 2 * torch.autograd.grad(expected, leaf)[0])


@pytest.mark.parametrize("box_loss", BOX_LOSSES[2:])
def test_edges_that_coincide_share_the_gradient(device, box_loss) -> None:
    """Decoded boxes on a grid: equal to their object, touching it, inside it, apart from it."""
    corners = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
    boxes = torch.cat((corners, corners + torch.tensor([[2.0, 4.0]])), dim=1) / 4
    deltas, logits = torch.zeros(1, 16, 4), torch.zeros(1, 16, 3)
    for shift in range(16):
        objects = boxes.roll(shift, 0), torch.ones(16).long(), torch.tensor([0, 16])
        options = {"box_loss": box_loss, "matches": torch.arange(16).view(1, 16)}
        double = [x.double() for x in (deltas, logits, boxes, objects[0])]
        expected = loss_and_gradients(multibox_loss_reference, *double, *objects[1:], **options)
        options["matches"] = options["matches"].to(device)
        inputs = [x.to(device) for x in (deltas, logits, boxes, *objects)]
        actual = loss_and_gradients(multibox_loss, *inputs, **options)
        assert (actual[0].cpu() - expected[0]).abs() < 2e-6  # equal boxes cost nothing
        assert (actual[3].cpu() - expected[3]).abs().max() < 2e-6


@pytest.mark.parametrize("box_loss", BOX_LOSSES)
def test_broken_deltas_stay_in_their_row(device, box_loss) -> None:
    """The loss says so; gradients of other rows are as they were."""
    (deltas, logits), objects = _heads(), _objects()
    inputs = [x.to(device) for x in (logits, PRIORS, *objects)]
    healthy = loss_and_gradients(multibox_loss, deltas.to(device), *inputs, box_loss=box_loss)
    row = healthy[3].ne(0).any(2).nonzero()[0].tolist()
    deltas[row[0], row[1], 1] = torch.nan
    broken = loss_and_gradients(multibox_loss, deltas.to(device), *inputs, box_loss=box_loss)
    assert not broken[0].isfinite()
    healthy[3][row[0], row[1]] = broken[3][row[0], row[1]] = 0
    assert torch.equal(broken[3], healthy[3])


@pytest.mark.parametrize("box_loss", BOX_LOSSES)
@pytest.mark.parametrize("columns", [[0], [2], [3], [0, 2], [2, 3], [0, 1, 2, 3]], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 20.67, 20.68])
def test_wild_deltas_have_the_gradient_of_pytorch(value, columns, box_loss) -> None:
    """On both sides of the clamp, and NaN in the same places: nothing passes a clamp of NaN."""
    (deltas, logits), objects = _heads(), _objects()
    deltas[..., columns] = value
    double = [x.double() for x in (deltas, logits, PRIORS, objects.boxes)]
    single, loss = (deltas, logits, PRIORS, *objects), {"box_loss": box_loss}
    expected = loss_and_gradients(multibox_loss_reference, *double, *objects[1:], **loss)
    for k, actual in enumerate(loss_and_gradients(multibox_loss, *single, **loss)):
        torch.testing.assert_close(
            actual.double(), expected[k].double(), rtol=1e-4, atol=1e-6, equal_nan=True
        )


@pytest.mark.parametrize("box_loss", ["giou", "diou"])
def test_a_scale_that_underflowed_keeps_the_gradient_of_the_centre(box_loss) -> None:
    """A box without width has a finite loss, and so it has a gradient."""
    (deltas, logits), objects = _heads(), _objects()
    deltas[..., 2] = -math.inf
    double = [x.double() for x in (deltas, logits, PRIORS, objects.boxes)]
    options = {"box_loss": box_loss}
    expected = loss_and_gradients(multibox_loss_reference, *double, *objects[1:], **options)[3]
    assert expected.isfinite().all()
    actual = loss_and_gradients(multibox_loss, deltas, logits, PRIORS, *objects, **options)[3]
    assert_close(actual, expected)


def test_a_clamped_scale_has_no_gradient(device) -> None:
    """As in decoding, whose boxes grow no further."""
    (deltas, logits), objects = _heads(), _objects()
    deltas[..., 2] = 100
    inputs = [x.to(device) for x in (deltas, logits, PRIORS, *objects)]
    gradient = loss_and_gradients(multibox_loss, *inputs, box_loss="giou")[3]
    assert gradient[..., 2].eq(0).all()
    assert gradient[..., 3].ne(0).any()


@pytest.mark.parametrize("options", _combinations()[1:24:4], ids=_name)
def test_gradcheck_of_the_reference(options) -> None:
    """The definition's own gradient, in float64; not CIoU's, which leaves out a part by design."""
    objects = random_objects(2, seeded(2), classes=3)
    generator = seeded(0)
    deltas = torch.randn(2, 8, 4, generator=generator, dtype=torch.float64).requires_grad_()
    logits = torch.randn(2, 8, 3, generator=generator, dtype=torch.float64).requires_grad_()
    priors, boxes = PRIORS[:8].double(), objects.boxes.double()
    options = options | {"background_index": 0}
    if options["class_weights"] is not None:
        options["class_weights"] = WEIGHTS[:3]

    def both(deltas: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        return multibox_loss_reference(deltas, logits, priors, boxes, *objects[1:], **options)[:2]

    assert torch.autograd.gradcheck(both, (deltas, logits))


def test_negative_background_counts_from_the_last_class(device) -> None:
    """Rows and maps alike; -C is the first."""
    deltas, logits = (x.to(device) for x in _heads())
    objects = _objects()
    targets = [x.to(device) for x in (PRIORS, *objects._replace(labels=objects.labels - 1))]
    expected = multibox_loss(deltas, logits, *targets, background_index=C - 1)
    for heads in ((deltas, logits), (as_maps(deltas, CELLS), as_maps(logits, CELLS))):
        actual = multibox_loss(*heads, *targets, background_index=-1)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    first = multibox_loss(deltas, logits, *targets, background_index=-C)
    plain = multibox_loss(deltas, logits, *targets)
    assert all(torch.equal(a, b) for a, b in zip(first, plain, strict=True))


def test_mining_sees_no_weights() -> None:
    """The same rows train, whatever they weigh."""
    (deltas, logits), objects = _heads(), _objects()
    plain = loss_and_gradients(multibox_loss, deltas, logits, PRIORS, *objects)[4].ne(0).any(2)
    weighted = loss_and_gradients(
        multibox_loss, deltas, logits, PRIORS, *objects, class_weights=WEIGHTS + 0.1
    )[4]
    assert torch.equal(weighted.ne(0).any(2), plain)


@pytest.mark.parametrize("options", [{}, {"box_loss": "diou", "label_smoothing": 0.1}], ids=str)
def test_channels_first_heads_are_read_in_place(options) -> None:
    """Transposed views: equal results, gradients laid out like the heads, no memory but theirs."""
    heads, objects = _heads(), _objects()
    plain = loss_and_gradients(multibox_loss, *heads, PRIORS, *objects, **options)
    leaves = [x.transpose(1, 2).contiguous().requires_grad_() for x in heads]

    def step() -> tuple[Tensor, ...]:
        losses = multibox_loss(*(x.transpose(1, 2) for x in leaves), PRIORS, *objects, **options)
        return *losses, *torch.autograd.grad(2 * losses[0] + 3 * losses[1], leaves)

    result = step()
    for gradient, leaf, expected in zip(result[3:], leaves, plain[3:], strict=True):
        assert gradient.stride() == leaf.stride()
        assert torch.equal(gradient.transpose(1, 2), expected)
    assert all(torch.equal(a, b) for a, b in zip(result[:3], plain[:3], strict=True))
    with torch.profiler.profile(profile_memory=True) as profiler:
        step()
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profiler.events())
    # The two gradients and the codes; a copy of the logits alone would be as much again.
    needed = sum(x.numel() * 4 for x in leaves) + 4 * B * P
    assert needed <= allocated < needed + 2000


def _operator_inputs(device, **changed) -> tuple:
    """Arguments of the operator with every new option in use."""
    options = {
        "matches": match(PRIORS, *_objects()[::2]).to(device),
        "class_weights": WEIGHTS.to(device),
        "thresholds": (0.5, None, False, 0),
        "ignore_threshold": 0.4,
        "mining": (3.0, 2),
        "box_loss": 3,
        "coding": (1.0, (0.1, 0.1, 0.2, 0.2)),
        "label_smoothing": 0.1,
        "rest": (0, 1),
    } | changed
    heads, targets = _heads(), (PRIORS, *_objects(regions=True))
    values = [v if isinstance(v, tuple) else (v,) for v in options.values()]
    lists = [[x.to(device)] for x in heads]
    return *lists, *(x.to(device) for x in targets), *itertools.chain(*values)


@pytest.mark.parametrize("changed", [{}, {"matches": None, "box_loss": 1}], ids=str)
def test_registration(device, changed) -> None:
    """Schema, fake kernels and the backward against its own reference."""
    from ssd_fast.ops._loss_reference import backward_reference

    inputs = _operator_inputs(device, **changed)
    torch.library.opcheck(torch.ops.ssd_fast.multibox_loss.default, inputs)
    _, _, positives, code = torch.ops.ssd_fast.multibox_loss.default(*inputs)
    scales = torch.tensor(2.0, device=device), torch.tensor(3.0, device=device)
    backward = *scales, *inputs[:6], code, positives, inputs[7], *inputs[-6:]
    torch.library.opcheck(torch.ops.ssd_fast.multibox_loss_backward.default, backward)
    actual = torch.ops.ssd_fast.multibox_loss_backward.default(*backward)
    expected = backward_reference(*backward)
    for a, e in zip(actual[0] + actual[1], expected[0] + expected[1], strict=True):
        assert_close(a, e)


def test_compiles_without_a_graph_break() -> None:
    """Forward and backward with every new option in one graph."""
    compiled = torch.compile(multibox_loss, fullgraph=True, backend="aot_eager")
    objects = _objects(regions=True)
    options = {"class_weights": WEIGHTS, "label_smoothing": 0.1, "box_loss": "ciou"}
    matches = match(PRIORS, objects.boxes, objects.offsets)
    for given in ({}, {"matches": matches}, {"background_index": -1}):
        actual = loss_and_gradients(compiled, *_heads(), PRIORS, *objects, **options, **given)
        expected = loss_and_gradients(
            multibox_loss, *_heads(), PRIORS, *objects, **options, **given
        )
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_functional_gradient_equals_autograd() -> None:
    """``torch.func.grad`` goes through the operator, beside tensors without a gradient."""
    objects = _objects()
    options = {
        "class_weights": WEIGHTS,
        "box_loss": "giou",
        "matches": match(PRIORS, objects.boxes, objects.offsets),
    }

    def total(deltas: Tensor, logits: Tensor) -> Tensor:
        box_loss, class_loss, _ = multibox_loss(deltas, logits, PRIORS, *objects, **options)
        return 2 * box_loss + 3 * class_loss

    functional = torch.func.grad(total, argnums=(0, 1))(*_heads())
    expected = loss_and_gradients(multibox_loss, *_heads(), PRIORS, *objects, **options)[3:]
    assert all(torch.equal(a, b) for a, b in zip(functional, expected, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"matches": torch.zeros(B, P)},
            r"matches: expected \(3, 140\) int32 or int64.*torch.float32",
        ),
        ({"matches": torch.zeros(B, 5).int()}, r"matches: expected \(3, 140\) .* got \(3, 5\)"),
        ({"class_weights": WEIGHTS[1:]}, r"class_weights: expected \(7,\) float32.* got \(6,\)"),
        ({"class_weights": WEIGHTS.double()}, r"class_weights: expected \(7,\) float32.*float64"),
        ({"class_weights": WEIGHTS.to("meta")}, "class_weights: expected on cpu like priors"),
        ({"ignore_threshold": 1.5}, "ignore_threshold: expected .* from 0 to 1, got 1.5"),
        ({"label_smoothing": -0.1}, "label_smoothing: expected .* from 0 to 1, got -0.1"),
        ({"box_loss": "iou"}, "box_loss: expected one of 'smooth_l1', .* got 'iou'"),
        ({"background_index": -8}, "background_index: expected from -7 to 6 for 7 classes"),
        ({"background_index": -0.5}, "background_index: expected a whole number"),
    ],
)
def test_rejects(options, message) -> None:
    """One clear error that names the argument, here and in `heads_loss`."""
    with pytest.raises(ValueError, match=message):
        multibox_loss(*_heads(), PRIORS, *_objects(), **options)
    features = torch.zeros(B, 2, 7, 20)
    weights = torch.zeros(4, 2, 3, 3), torch.zeros(C, 2, 3, 3)
    heads = [features], [weights[0]], [None], [weights[1]], [None]
    with pytest.raises(ValueError, match=message):
        heads_loss(*heads, PRIORS, *_objects(), **options)
