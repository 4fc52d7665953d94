# SPDX-License-Identifier: BSD-3-Clause
"""multibox_loss: values, decisions, gradients against the float64 reference; edges, bad input."""

import math

import pytest
import torch
from torch import Tensor

from ssd_fast.ops import match, mine, multibox_loss, multibox_loss_reference
from ssd_fast.ops._multibox import backward_reference, forward_reference
from ssd_fast.testing import (
    SCENES,
    Objects,
    adversarial_objects,
    as_maps,
    assert_close,
    assert_same_rows,
    random_boxes,
    random_objects,
    seeded,
)

CELLS = [(4, 5, 5), (6, 3, 2), (4, 1, 1)]
P_CELLS = 4 * 25 + 6 * 6 + 4


def _heads(B: int, P: int, C: int, seed: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Random deltas and logits, (B, P, 4) and (B, P, C)."""
    generator = seeded(seed)
    logits = torch.randn(B, P, C, generator=generator) * scale
    return torch.randn(B, P, 4, generator=generator) * scale, logits


def _loss_and_gradients(function, deltas, logits, *targets, **options):
    """Both losses, num_positives, and the gradients of ``2 box_loss + 3 class_loss``."""
    deltas, logits = deltas.clone().requires_grad_(), logits.clone().requires_grad_()
    box_loss, class_loss, num_positives = function(deltas, logits, *targets, **options)
    grads = torch.autograd.grad(2 * box_loss + 3 * class_loss, (deltas, logits))
    return box_loss.detach(), class_loss.detach(), num_positives, *grads


def _assert_equals_float64(device, deltas, logits, priors, objects, **options) -> None:
    """The kernel in float32 (or less) against the reference in float64, forward and backward."""
    targets = priors, *objects
    actual = _loss_and_gradients(
        multibox_loss, *(x.to(device) for x in (deltas, logits, *targets)), **options
    )
    # The reference decides in float32 as the kernel does; only its sums are float64.
    double = deltas.double(), logits.double(), priors.double(), objects.boxes.double()
    expected = _loss_and_gradients(multibox_loss_reference, *double, *objects[1:], **options)
    assert torch.equal(actual[2].cpu(), expected[2])
    names = ("box_loss", "class_loss", None, "grad_deltas", "grad_logits")
    for name, a, e in zip(names, actual, expected, strict=True):
        if name:
            half = name.startswith("grad") and a.dtype != torch.float32
            tolerance = {"tolerance": torch.finfo(a.dtype).eps} if half else {}
            assert_close(a.cpu(), e, what=name, **tolerance)


@pytest.mark.parametrize("C", [2, 21, 91, 1204])
@pytest.mark.parametrize("P", [1, 15, 17, 1000])
def test_equals_reference(device, P, C) -> None:
    """Odd sizes, one image of the batch without objects."""
    objects = adversarial_objects("random", [3, 0, 9], seeded(P), classes=C)
    _assert_equals_float64(device, *_heads(3, P, C, seed=C), random_boxes(P, seeded(1)), objects)


@pytest.mark.parametrize(
    "options",
    [
        {"assign": "bipartite", "iou_threshold": 0.45},
        {"assign": "none", "strict": True, "low_threshold": 0.3},
        {"ratio": 1.5, "min_negatives": 20},
        {"ratio": 0.0},
        {"beta": 0.0},
        {"beta": 0.11, "variances": (0.1, 0.15, 0.2, 0.3)},
        {"background_index": 5},
        {"background_index": 4, "normalizer": "image"},
        {"normalizer": "none"},
    ],
    ids=str,
)
def test_every_option_equals_reference(device, options) -> None:
    """Each option on its own, at SSD300's size and less."""
    priors = random_boxes(600, seeded(0))
    objects = random_objects(4, seeded(1), counts=(0, 10), classes=6)
    _assert_equals_float64(device, *_heads(4, 600, 6, seed=2), priors, objects, **options)


@pytest.mark.parametrize("P", [1, 15, 17, 600])
@pytest.mark.parametrize("assign", ["last", "none"])
def test_every_prior_is_positive_at_a_threshold_of_zero(device, P, assign) -> None:
    """But none that pads the last block of the kernel."""
    priors, objects = random_boxes(P, seeded(0)), random_objects(2, seeded(1), counts=(1, 3))
    heads = _heads(2, P, 21, seed=2)
    options = {"iou_threshold": 0.0, "assign": assign}
    _assert_equals_float64(device, *heads, priors, objects, **options)
    arguments = (x.to(device) for x in (*heads, priors, *objects))
    assert multibox_loss(*arguments, **options)[2].tolist() == [P, P]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_equal_reference(device, dtype) -> None:
    """Arithmetic is float32; gradients come back in the dtype of the inputs."""
    deltas, logits = (x.to(dtype) for x in _heads(2, 300, 21, seed=0))
    objects = random_objects(2, seeded(1))
    _assert_equals_float64(device, deltas, logits, random_boxes(300, seeded(2)), objects)


def test_ssd300_with_200_objects(device) -> None:
    """A crowd on 8732 priors."""
    objects = adversarial_objects("random", [200, 0, 1], seeded(1))
    priors = random_boxes(8732, seeded(2))
    _assert_equals_float64(device, *_heads(3, 8732, 21, seed=0), priors, objects)


def _operator_inputs(deltas, logits, priors, objects, **options) -> tuple:
    """Arguments of ``torch.ops.ssd_fast.multibox_loss``, in its order."""
    defaults = {
        "matches": None,
        "class_weights": None,
        "iou_threshold": 0.5,
        "low_threshold": None,
        "strict": False,
        "assign": 0,
        "ignore_threshold": 0.5,
        "ratio": 3.0,
        "min_negatives": 0,
        "box_loss": 0,
        "beta": 1.0,
        "variances": (0.1, 0.1, 0.2, 0.2),
        "label_smoothing": 0.0,
        "background_index": 0,
        "normalizer": 0,
    }
    return deltas, logits, priors, *objects, *(defaults | options).values()


@pytest.mark.parametrize("scene", SCENES)
def test_decisions_equal_reference(device, scene, full_count) -> None:
    """Which rows are positive and mined, on adversarial targets, bad labels and tied logits."""
    for seed in range(full_count(20, 1700)):
        generator = seeded(seed)
        P, C = 30 + seed % 50, 2 + seed % 7
        priors = SCENES[list(SCENES)[seed % 5]](P, generator).float()
        objects = adversarial_objects(scene, [seed % 4, 0, 40 if seed % 8 == 0 else 6], generator)
        objects = objects._replace(labels=objects.labels % (C + 2) - 1)
        deltas, logits = _heads(3, P, C, seed)
        if seed % 2:
            logits = logits.round()
        options = {"strict": seed % 3 == 0, "assign": seed % 3, "min_negatives": seed % 3}
        expected = forward_reference(
            *_operator_inputs([deltas], [logits], priors, objects, **options)
        )[3]
        moved = Objects(*(x.to(device) for x in objects))
        code = torch.ops.ssd_fast.multibox_loss.default(
            *_operator_inputs(
                [deltas.to(device)], [logits.to(device)], priors.to(device), moved, **options
            )
        )[3].cpu()
        assert torch.equal(code.where(code != -3, -1), expected.where(expected != -3, -1)), seed
        key = (logits - logits[..., :1]).exp()[..., 1:].sum(2)
        assert_same_rows(code == -3, expected == -3, key)


def test_code_is_what_match_and_mine_say() -> None:
    """The fused operator decides what the two operators on their own decide."""
    deltas, logits = _heads(4, 500, 21, seed=0)
    priors, objects = random_boxes(500, seeded(1)), random_objects(4, seeded(2))
    inputs = _operator_inputs([deltas], [logits], priors, objects)
    code = torch.ops.ssd_fast.multibox_loss.default(*inputs)[3]
    matched = match(priors, objects.boxes, objects.offsets)
    assert torch.equal(code.where(code != -3, -1), matched)
    key = (logits - logits[..., :1]).exp()[..., 1:].sum(2)
    assert_same_rows(code == -3, mine(key, matched), key)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_equal_rows(device, memory_format, dtype) -> None:
    """The heads' raw maps, read in place, give what the concatenated rows give, bit for bit."""
    deltas, logits = (x.to(device, dtype) for x in _heads(2, P_CELLS, 7, seed=0))
    priors, objects = random_boxes(P_CELLS, seeded(1)), random_objects(2, seeded(2), classes=7)
    targets = [x.to(device) for x in (priors, *objects)]
    *rows, rows_deltas, rows_logits = _loss_and_gradients(multibox_loss, deltas, logits, *targets)
    delta_maps, logit_maps = (
        [m.to(memory_format=memory_format).requires_grad_() for m in as_maps(x, CELLS)]
        for x in (deltas, logits)
    )
    maps = multibox_loss(delta_maps, logit_maps, *targets)
    assert all(torch.equal(a, b) for a, b in zip(maps, rows, strict=True))
    grads = torch.autograd.grad(2 * maps[0] + 3 * maps[1], delta_maps + logit_maps)
    expected = as_maps(rows_deltas, CELLS) + as_maps(rows_logits, CELLS)
    for grad, level, want in zip(grads, delta_maps + logit_maps, expected, strict=True):
        assert torch.equal(grad, want)
        assert grad.stride() == level.stride()


def test_any_strides_and_no_argument_is_changed(device) -> None:
    """Transposed, expanded and sliced heads give what contiguous ones give."""
    deltas, logits = (x.to(device) for x in _heads(2, 100, 5, seed=0))
    objects = random_objects(2, seeded(2), classes=5)
    targets = [x.to(device) for x in (random_boxes(100, seeded(1)), *objects)]
    copies = [x.clone() for x in (deltas, logits, *targets)]
    plain = _loss_and_gradients(multibox_loss, deltas, logits, *targets)
    transposed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (deltas, logits)]
    for a, b in zip(_loss_and_gradients(multibox_loss, *transposed, *targets), plain, strict=True):
        assert torch.equal(a, b)
    one = [x[:1].expand_as(x) for x in (deltas, logits)]
    dense = [x.contiguous() for x in one]
    assert torch.equal(multibox_loss(*one, *targets)[1], multibox_loss(*dense, *targets)[1])
    for x, copy in zip((deltas, logits, *targets), copies, strict=True):
        assert torch.equal(x, copy)


def test_gradcheck_of_the_reference() -> None:
    """The definition's own gradient, in float64."""
    priors, objects = random_boxes(8, seeded(1)).double(), random_objects(2, seeded(2), classes=3)
    deltas, logits = (x.double().requires_grad_() for x in _heads(2, 8, 3, seed=0))
    boxes = objects.boxes.double()

    def both(deltas: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        return multibox_loss_reference(deltas, logits, priors, boxes, *objects[1:])[:2]

    assert torch.autograd.gradcheck(both, (deltas, logits))


@pytest.mark.parametrize("normalizer", ["positives", "image", "none"])
def test_nothing_selected_gives_zero_loss_and_zero_gradient(device, normalizer) -> None:
    """A batch without objects: every peer divides by zero or trains on nothing."""
    deltas, logits = (x.to(device) for x in _heads(2, 50, 5, seed=0))
    none = random_objects(2, seeded(0), counts=(0, 0))
    targets = [x.to(device) for x in (random_boxes(50, seeded(1)), *none)]
    result = _loss_and_gradients(multibox_loss, deltas, logits, *targets, normalizer=normalizer)
    assert [float(x.abs().max()) for x in result] == [0, 0, 0, 0, 0]


def test_images_without_objects_train_with_min_negatives(device) -> None:
    """Ten negatives an image, and only they, get a gradient."""
    deltas, logits = (x.to(device) for x in _heads(2, 50, 5, seed=0))
    none = random_objects(2, seeded(0), counts=(0, 0))
    targets = [x.to(device) for x in (random_boxes(50, seeded(1)), *none)]
    _, class_loss, _, grad_deltas, grad_logits = _loss_and_gradients(
        multibox_loss, deltas, logits, *targets, min_negatives=10
    )
    assert class_loss > 0
    assert grad_deltas.eq(0).all()
    assert grad_logits.ne(0).any(2).sum(1).tolist() == [10, 10]


@pytest.mark.parametrize(("B", "P"), [(0, 5), (3, 0), (0, 0)])
def test_empty_batches_and_priors(device, B, P) -> None:
    """Nothing to learn from is not an error."""
    deltas, logits = (x.to(device) for x in _heads(B, P, 3, seed=0))
    objects = Objects(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(B + 1).long())
    targets = [x.to(device) for x in (random_boxes(P, seeded(1)), *objects)]
    for normalizer in ("positives", "image", "none"):
        result = _loss_and_gradients(multibox_loss, deltas, logits, *targets, normalizer=normalizer)
        assert result[0] == result[1] == 0
        assert result[3].shape == (B, P, 4)


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_huge_logits_overflow_nothing(device, scale) -> None:
    """Keys overflow to infinity and tie; the losses do not overflow."""
    deltas, logits = _heads(2, 64, 5, seed=0)
    objects = random_objects(2, seeded(1), classes=5)
    _assert_equals_float64(device, deltas, logits * scale, random_boxes(64, seeded(2)), objects)


@pytest.mark.parametrize("target", [0.0, -1100.0], ids=["in reach", "far below"])
def test_rivals_at_large_logits_share_a_gradient_to_all_digits(target) -> None:
    """Two logits near 1000, or 0, and a target: their difference decides, whatever its own."""
    generator = seeded(0)
    logits = 1000 * torch.randn(1, 64, 5, generator=generator)
    logits[..., 1:3] = 1000 + torch.rand(1, 64, 2, generator=generator)
    logits[..., 3] = target
    priors, matches = random_boxes(64, seeded(1)), torch.arange(64).unsqueeze(0)
    objects = Objects(priors, torch.full((64,), 3), torch.tensor([0, 64]))
    heads = torch.zeros(1, 64, 4), logits
    _assert_equals_float64(torch.device("cpu"), *heads, priors, objects, matches=matches)


def test_tiny_losses_keep_their_digits(device) -> None:
    """Confident negatives: log-softmax would cancel to zero or lose two digits."""
    deltas, logits = _heads(1, 64, 5, seed=0)
    logits[..., 0] += 30
    none = random_objects(1, seeded(0), counts=(0, 0))
    priors = random_boxes(64, seeded(1))
    _assert_equals_float64(device, deltas, logits, priors, none, min_negatives=64)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_poisoned_logits_poison_only_what_selects_them(device, poison) -> None:
    """NaN counts as the hardest negative; an image that is not poisoned keeps its gradient."""
    deltas, logits = (x.to(device) for x in _heads(2, 50, 5, seed=0))
    objects = random_objects(2, seeded(3), counts=(3, 3), classes=5)
    targets = [x.to(device) for x in (random_boxes(50, seeded(1)), *objects)]
    healthy = _loss_and_gradients(multibox_loss, deltas, logits, *targets)
    logits[0, :, 2] = poison
    result = _loss_and_gradients(multibox_loss, deltas, logits, *targets)
    assert torch.equal(result[2], healthy[2])
    assert torch.equal(result[4][1], healthy[4][1])
    assert math.isfinite(float(result[1])) == (poison == -math.inf and not _labelled(objects, 2))


def _labelled(objects: Objects, label: int) -> bool:
    """Whether an object of the first image has this label."""
    return bool((objects.labels[: objects.offsets[1]] == label).any())


def test_broken_objects_do_not_poison_the_batch(device) -> None:
    """NaN, inverted, mislabelled and surplus objects leave the loss of the others alone."""
    deltas, logits = (x.to(device) for x in _heads(1, 200, 5, seed=0))
    priors = random_boxes(200, seeded(1))
    healthy = random_objects(1, seeded(2), counts=(3, 3), classes=5)
    plain = multibox_loss(deltas, logits, *(x.to(device) for x in (priors, *healthy)))
    nan = math.nan
    broken = torch.tensor([[nan, nan, nan, nan], [0.9, 0.1, 0.2, 0.8], [0, 0, 1, 1], [0, 0, 1, 1]])
    boxes = torch.cat((broken, healthy.boxes, broken))
    labels = torch.cat((torch.tensor([1, 1, 0, 5]), healthy.labels, torch.tensor([1, 1, -9, 99])))
    offsets = torch.tensor([0, 4 + 3])
    with_broken = multibox_loss(
        deltas, logits, *(x.to(device) for x in (priors, boxes, labels, offsets))
    )
    assert all(torch.equal(a, b) for a, b in zip(with_broken, plain, strict=True))


def test_threads_change_nothing() -> None:
    """Losses and gradients are equal bit for bit for one and two threads."""
    deltas, logits = _heads(5, 700, 21, seed=0)
    targets = random_boxes(700, seeded(1)), *random_objects(5, seeded(2))
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(_loss_and_gradients(multibox_loss, deltas, logits, *targets))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_functional_gradient_equals_autograd() -> None:
    """``torch.func.grad`` goes through the operator."""
    deltas, logits = _heads(2, 60, 5, seed=0)
    targets = random_boxes(60, seeded(1)), *random_objects(2, seeded(2), classes=5)

    def total(deltas: Tensor, logits: Tensor) -> Tensor:
        box_loss, class_loss, _ = multibox_loss(deltas, logits, *targets)
        return 2 * box_loss + 3 * class_loss

    functional = torch.func.grad(total, argnums=(0, 1))(deltas, logits)
    expected = _loss_and_gradients(multibox_loss, deltas, logits, *targets)[3:]
    assert all(torch.equal(a, b) for a, b in zip(functional, expected, strict=True))


def test_variances_that_change_in_place_are_read_anew(device) -> None:
    """Options are remembered between calls; what can change its value is not."""
    deltas, logits = (x.to(device) for x in _heads(1, 60, 5, seed=0))
    targets = random_boxes(60, seeded(1)), *random_objects(1, seeded(2), classes=5)
    targets = [x.to(device) for x in targets]
    variances = torch.tensor([0.1, 0.2])
    first = multibox_loss(deltas, logits, *targets, variances=variances)
    variances.mul_(3)
    second = multibox_loss(deltas, logits, *targets, variances=variances)
    fresh = multibox_loss(deltas, logits, *targets, variances=variances.tolist())
    assert first[0] != second[0]
    assert torch.equal(second[0], fresh[0])


def test_autograd_leaves_nothing_else_to_differentiate(device) -> None:
    """Counts carry no gradient, frozen heads and targets give none, a second one is refused."""
    deltas, logits = (x.to(device) for x in _heads(2, 60, 5, seed=0))
    objects = random_objects(2, seeded(2), classes=5)
    targets = [x.to(device) for x in (random_boxes(60, seeded(1)), *objects)]
    plain = multibox_loss(deltas, logits, *targets)
    assert not any(x.requires_grad for x in plain)
    learned = [targets[0], targets[1].clone().requires_grad_(), *targets[2:]]
    assert not any(x.requires_grad for x in multibox_loss(deltas, logits, *learned))
    logits.requires_grad_()
    with torch.no_grad():
        assert not any(x.requires_grad for x in multibox_loss(deltas, logits, *targets))
    losses = multibox_loss(deltas, logits, *targets)
    assert [x.requires_grad for x in losses] == [True, True, False]
    assert all(torch.equal(a, b) for a, b in zip(losses, plain, strict=True))
    for loss in (losses[1], losses[1] ** 2):
        (first,) = torch.autograd.grad(loss, logits, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate twice"):
            first.square().sum().backward()
    losses = multibox_loss(deltas, logits, *targets)
    targets[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        losses[0].backward()


def test_compiles_without_a_graph_break() -> None:
    """Forward and backward in one graph; targets of a fixed capacity never recompile."""
    targets = random_boxes(60, seeded(1))
    compiled = torch.compile(multibox_loss, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(4):
            objects = random_objects(2, seeded(seed), counts=(0, 6), classes=5)
            spare = 12 - objects.boxes.size(0)
            padded = Objects(
                torch.cat((objects.boxes, torch.full((spare, 4), math.nan))),
                torch.cat((objects.labels, torch.zeros(spare).long())),
                objects.offsets,
            )
            heads = _heads(2, 60, 5, seed)
            actual = _loss_and_gradients(compiled, *heads, targets, *padded)
            expected = _loss_and_gradients(multibox_loss, *heads, targets, *objects)
            assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("maps", [False, True])
def test_registration(device, maps) -> None:
    """Schema, fake kernel and compilation, forward and backward."""
    deltas, logits = (x.to(device) for x in _heads(2, P_CELLS, 3, seed=0))
    heads = (as_maps(deltas, CELLS), as_maps(logits, CELLS)) if maps else ([deltas], [logits])
    objects = Objects(*(x.to(device) for x in random_objects(2, seeded(1), classes=3)))
    inputs = _operator_inputs(*heads, random_boxes(P_CELLS, seeded(2)).to(device), objects)
    torch.library.opcheck(torch.ops.ssd_fast.multibox_loss.default, inputs)
    _, _, num_positives, code = torch.ops.ssd_fast.multibox_loss.default(*inputs)
    one = torch.ones((), device=device)
    torch.library.opcheck(
        torch.ops.ssd_fast.multibox_loss_backward.default,
        (one, one, *inputs[:6], code, num_positives, inputs[7], *inputs[-6:]),
    )


@pytest.mark.parametrize("normalizer", range(3))
def test_backward_equals_its_reference(device, normalizer) -> None:
    """The operator's own backward reference, which serves devices without a kernel."""
    deltas, logits = _heads(2, P_CELLS, 7, seed=0)
    heads = as_maps(deltas, CELLS), as_maps(logits, CELLS)
    objects = random_objects(2, seeded(1), classes=7)
    inputs = _operator_inputs(*heads, random_boxes(P_CELLS, seeded(2)), objects)
    _, _, num_positives, code = torch.ops.ssd_fast.multibox_loss.default(*inputs)
    scales = torch.tensor(2.0), torch.tensor(3.0)
    rest = *inputs[:6], code, num_positives, inputs[7], *inputs[-6:-1], normalizer
    actual = torch.ops.ssd_fast.multibox_loss_backward.default(*scales, *rest)
    expected = backward_reference(*scales, *rest)
    for a, e in zip(actual[0] + actual[1], expected[0] + expected[1], strict=True):
        assert_close(a, e)


def test_backward_survives_targets_that_changed(device) -> None:
    """Boxes, labels and offsets overwritten between forward and backward: no crash."""
    deltas, logits = (x.to(device) for x in _heads(2, 50, 5, seed=0))
    objects = [x.to(device) for x in random_objects(2, seeded(1), classes=5)]
    inputs = _operator_inputs([deltas], [logits], random_boxes(50, seeded(2)).to(device), objects)
    _, _, num_positives, code = torch.ops.ssd_fast.multibox_loss.default(*inputs)
    objects[1].fill_(2**40)
    objects[2].fill_(-3)
    one = torch.ones((), device=device)
    grads = torch.ops.ssd_fast.multibox_loss_backward.default(
        one, one, *inputs[:6], code, num_positives, inputs[7], *inputs[-6:]
    )
    assert grads[0][0].eq(0).all()


D, L, PRIORS = torch.zeros(2, 3, 4), torch.zeros(2, 3, 5), torch.zeros(3, 4)
BOXES, LABELS, OFFSETS = torch.zeros(4, 4), torch.zeros(4).long(), torch.tensor([0, 2, 4])
MAP_D, MAP_L = torch.zeros(2, 12, 1, 1), torch.zeros(2, 15, 1, 1)


@pytest.mark.parametrize(
    ("changed", "options", "message"),
    [
        ({0: D[0]}, {}, r"deltas\[0\]: expected \(B, P, K\) or .* got \(3, 4\)"),
        ({0: None}, {}, r"deltas\[0\]: expected \(B, P, K\) or .* W\), got NoneType None"),
        ({0: D.numpy()}, {}, r"deltas\[0\]: expected .* got ndarray"),
        ({1: L[..., :0]}, {}, r"logits: expected at least one class, got \(2, 3, 0\)"),
        ({0: D.double()}, {}, r"deltas\[0\]: expected float32, float16 or bfloat16"),
        ({1: L[:1]}, {}, r"logits\[0\]: expected .* with B = 2, got \(1, 3, 5\)"),
        ({1: L[:, :2]}, {}, r"logits\[0\]: expected 3 rows as in deltas\[0\]"),
        ({0: [D, D]}, {}, "logits: expected as many levels as deltas"),
        ({0: [], 1: []}, {}, "logits: expected as many levels as deltas and at least one"),
        ({0: MAP_D}, {}, r"logits\[0\]: expected the layout and map size of deltas\[0\]"),
        ({0: MAP_D, 1: MAP_L[:, :14]}, {}, r"logits\[0\]: expected a multiple of 3 channels"),
        ({0: MAP_D[:, :11], 1: MAP_L}, {}, r"deltas\[0\]: expected 4 channels for each box"),
        ({0: [D, D], 1: [L, L[..., :4]]}, {}, r"logits\[1\]: expected 5 classes as in the levels"),
        ({0: [D, D.half()], 1: [L, L]}, {}, r"deltas\[1\], logits\[1\]: expected one dtype"),
        ({2: PRIORS[:2]}, {}, "priors: expected one for each of the 3 rows of deltas, got 2"),
        ({3: BOXES[:3]}, {}, "labels: expected one for each of the 3 boxes, got 4"),
        ({4: LABELS.int()}, {}, "labels: expected a vector of torch.int64"),
        ({5: OFFSETS[:2]}, {}, "offsets: expected 3 numbers for a batch of 2 images, got 2"),
        ({3: BOXES.to("meta")}, {}, "boxes: expected on cpu like priors, got meta"),
        (
            {},
            {"background_index": 5},
            "background_index: expected from 0 to 4 for 5 classes, got 5",
        ),
        ({}, {"variances": (0.1,)}, "variances: expected 2 or 4 positive"),
        ({}, {"normalizer": "batch"}, "normalizer: expected one of 'positives', 'image', 'none'"),
        ({}, {"beta": -1.0}, "beta: expected .* got -1.0"),
        ({}, {"ratio": math.nan}, "ratio: expected .* got nan"),
        ({}, {"strict": "no"}, "strict: expected True or False, got str 'no'"),
        ({}, {"background_index": 0.5}, "background_index: expected a whole number .* got 0.5"),
        ({}, {"ratio": "3"}, "ratio: expected .* got str '3'"),
        ({}, {"min_negatives": 2.5}, "min_negatives: expected a whole number .* got 2.5"),
    ],
)
def test_rejects(changed, options, message) -> None:
    """One clear error that names the argument, and the level where there are several."""
    arguments = [D, L, PRIORS, BOXES, LABELS, OFFSETS]
    for index, value in changed.items():
        arguments[index] = value
    with pytest.raises(ValueError, match=message):
        multibox_loss(*arguments, **options)
