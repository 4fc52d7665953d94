# SPDX-License-Identifier: BSD-3-Clause
"""multibox_loss: values, decisions, gradients against the float64 reference; edges."""

import math

import pytest
import torch
from torch import Tensor

from ssd_fast.ops import match, mine, multibox_loss, multibox_loss_reference
from ssd_fast.ops._loss_reference import forward_reference
from ssd_fast.testing import (
    SCENES,
    Objects,
    adversarial_objects,
    as_maps,
    assert_same_rows,
    random_boxes,
    random_objects,
    seeded,
)

from .loss_cases import (
    CELLS,
    P_CELLS,
    assert_equals_float64,
    loss_and_gradients,
    operator_inputs,
    random_heads,
)


@pytest.mark.parametrize("C", [2, 21, 91, 1204])
@pytest.mark.parametrize("P", [1, 15, 17, 1000])
def test_equals_reference(device, P, C) -> None:
    """Odd sizes, one image of the batch without objects."""
    objects = adversarial_objects("random", [3, 0, 9], seeded(P), classes=C)
    assert_equals_float64(
        device, *random_heads(3, P, C, seed=C), random_boxes(P, seeded(1)), objects
    )


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
    assert_equals_float64(device, *random_heads(4, 600, 6, seed=2), priors, objects, **options)


@pytest.mark.parametrize("P", [1, 15, 17, 600])
@pytest.mark.parametrize("assign", ["last", "none"])
def test_every_prior_is_positive_at_a_threshold_of_zero(device, P, assign) -> None:
    """But none that pads the last block of the kernel."""
    priors, objects = random_boxes(P, seeded(0)), random_objects(2, seeded(1), counts=(1, 3))
    heads = random_heads(2, P, 21, seed=2)
    options = {"iou_threshold": 0.0, "assign": assign}
    assert_equals_float64(device, *heads, priors, objects, **options)
    arguments = (x.to(device) for x in (*heads, priors, *objects))
    assert multibox_loss(*arguments, **options)[2].tolist() == [P, P]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_equal_reference(device, dtype) -> None:
    """Arithmetic is float32; gradients come back in the dtype of the inputs."""
    deltas, logits = (x.to(dtype) for x in random_heads(2, 300, 21, seed=0))
    objects = random_objects(2, seeded(1))
    assert_equals_float64(device, deltas, logits, random_boxes(300, seeded(2)), objects)


def test_ssd300_with_200_objects(device) -> None:
    """A crowd on 8732 priors."""
    objects = adversarial_objects("random", [200, 0, 1], seeded(1))
    priors = random_boxes(8732, seeded(2))
    assert_equals_float64(device, *random_heads(3, 8732, 21, seed=0), priors, objects)


@pytest.mark.parametrize("scene", SCENES)
def test_decisions_equal_reference(device, scene, full_count) -> None:
    """Which rows are positive and mined, on adversarial targets, bad labels and tied logits."""
    for seed in range(full_count(20, 1700)):
        generator = seeded(seed)
        P, C = 30 + seed % 50, 2 + seed % 7
        priors = SCENES[list(SCENES)[seed % 5]](P, generator).float()
        objects = adversarial_objects(scene, [seed % 4, 0, 40 if seed % 8 == 0 else 6], generator)
        objects = objects._replace(labels=objects.labels % (C + 2) - 1)
        deltas, logits = random_heads(3, P, C, seed)
        if seed % 2:
            logits = logits.round()
        options = {"strict": seed % 3 == 0, "assign": seed % 3, "min_negatives": seed % 3}
        expected = forward_reference(
            *operator_inputs([deltas], [logits], priors, objects, **options)
        )[3]
        moved = Objects(*(x.to(device) for x in objects))
        code = torch.ops.ssd_fast.multibox_loss.default(
            *operator_inputs(
                [deltas.to(device)], [logits.to(device)], priors.to(device), moved, **options
            )
        )[3].cpu()
        assert torch.equal(code.where(code != -3, -1), expected.where(expected != -3, -1)), seed
        key = (logits - logits[..., :1]).exp()[..., 1:].sum(2)
        assert_same_rows(code == -3, expected == -3, key)


def test_code_is_what_match_and_mine_say() -> None:
    """The fused operator decides what the two operators on their own decide."""
    deltas, logits = random_heads(4, 500, 21, seed=0)
    priors, objects = random_boxes(500, seeded(1)), random_objects(4, seeded(2))
    inputs = operator_inputs([deltas], [logits], priors, objects)
    code = torch.ops.ssd_fast.multibox_loss.default(*inputs)[3]
    matched = match(priors, objects.boxes, objects.offsets)
    assert torch.equal(code.where(code != -3, -1), matched)
    key = (logits - logits[..., :1]).exp()[..., 1:].sum(2)
    assert_same_rows(code == -3, mine(key, matched), key)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maps_equal_rows(device, memory_format, dtype) -> None:
    """The heads' raw maps, read in place, give what the concatenated rows give.

    On the CPU bit for bit; a GPU adds in an order that follows the layout.
    """
    deltas, logits = (x.to(device, dtype) for x in random_heads(2, P_CELLS, 7, seed=0))
    priors, objects = random_boxes(P_CELLS, seeded(1)), random_objects(2, seeded(2), classes=7)
    targets = [x.to(device) for x in (priors, *objects)]
    *rows, rows_deltas, rows_logits = loss_and_gradients(multibox_loss, deltas, logits, *targets)
    delta_maps, logit_maps = (
        [m.to(memory_format=memory_format).requires_grad_() for m in as_maps(x, CELLS)]
        for x in (deltas, logits)
    )
    maps = multibox_loss(delta_maps, logit_maps, *targets)
    _assert_alike(maps, rows)
    grads = torch.autograd.grad(2 * maps[0] + 3 * maps[1], delta_maps + logit_maps)
    expected = as_maps(rows_deltas, CELLS) + as_maps(rows_logits, CELLS)
    _assert_alike(grads, expected)
    for grad, level in zip(grads, delta_maps + logit_maps, strict=True):
        assert grad.stride() == level.stride()


def _assert_alike(found, expected) -> None:
    """Equal; on a GPU as far as sums in another order are."""
    for a, b in zip(found, expected, strict=True):
        rounding = torch.finfo(a.dtype).eps if a.is_floating_point() else 0
        slack = max(1e-5, rounding) if a.is_cuda and a.is_floating_point() else 0
        torch.testing.assert_close(a, b, rtol=slack, atol=1e-2 * slack)


def test_any_strides_and_no_argument_is_changed(device) -> None:
    """Transposed and expanded heads give what contiguous ones give."""
    deltas, logits = (x.to(device) for x in random_heads(2, 100, 5, seed=0))
    objects = random_objects(2, seeded(2), classes=5)
    targets = [x.to(device) for x in (random_boxes(100, seeded(1)), *objects)]
    copies = [x.clone() for x in (deltas, logits, *targets)]
    plain = loss_and_gradients(multibox_loss, deltas, logits, *targets)
    transposed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (deltas, logits)]
    _assert_alike(loss_and_gradients(multibox_loss, *transposed, *targets), plain)
    one = [x[:1].expand_as(x) for x in (deltas, logits)]
    dense = [x.contiguous() for x in one]
    assert torch.equal(multibox_loss(*one, *targets)[1], multibox_loss(*dense, *targets)[1])
    for x, copy in zip((deltas, logits, *targets), copies, strict=True):
        assert torch.equal(x, copy)


def test_gradcheck_of_the_reference() -> None:
    """The definition's own gradient, in float64."""
    priors, objects = random_boxes(8, seeded(1)).double(), random_objects(2, seeded(2), classes=3)
    deltas, logits = (x.double().requires_grad_() for x in random_heads(2, 8, 3, seed=0))
    boxes = objects.boxes.double()

    def both(deltas: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        return multibox_loss_reference(deltas, logits, priors, boxes, *objects[1:])[:2]

    assert torch.autograd.gradcheck(both, (deltas, logits))


@pytest.mark.parametrize("normalizer", ["positives", "image", "none"])
def test_nothing_selected_gives_zero_loss_and_zero_gradient(device, normalizer) -> None:
    """A batch without objects: every peer divides by zero or trains on nothing."""
    deltas, logits = (x.to(device) for x in random_heads(2, 50, 5, seed=0))
    none = random_objects(2, seeded(0), counts=(0, 0))
    targets = [x.to(device) for x in (random_boxes(50, seeded(1)), *none)]
    result = loss_and_gradients(multibox_loss, deltas, logits, *targets, normalizer=normalizer)
    assert [float(x.abs().max()) for x in result] == [0, 0, 0, 0, 0]


def test_images_without_objects_train_with_min_negatives(device) -> None:
    """Ten negatives an image, and only they, get a gradient."""
    deltas, logits = (x.to(device) for x in random_heads(2, 50, 5, seed=0))
    none = random_objects(2, seeded(0), counts=(0, 0))
    targets = [x.to(device) for x in (random_boxes(50, seeded(1)), *none)]
    _, class_loss, _, grad_deltas, grad_logits = loss_and_gradients(
        multibox_loss, deltas, logits, *targets, min_negatives=10
    )
    assert class_loss > 0
    assert grad_deltas.eq(0).all()
    assert grad_logits.ne(0).any(2).sum(1).tolist() == [10, 10]


@pytest.mark.parametrize(("B", "P"), [(0, 5), (3, 0), (0, 0)])
def test_empty_batches_and_priors(device, B, P) -> None:
    """Nothing to learn from is not an error."""
    deltas, logits = (x.to(device) for x in random_heads(B, P, 3, seed=0))
    objects = Objects(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(B + 1).long())
    targets = [x.to(device) for x in (random_boxes(P, seeded(1)), *objects)]
    for normalizer in ("positives", "image", "none"):
        result = loss_and_gradients(multibox_loss, deltas, logits, *targets, normalizer=normalizer)
        assert result[0] == result[1] == 0
        assert result[3].shape == (B, P, 4)


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_huge_logits_overflow_nothing(device, scale) -> None:
    """Keys overflow to infinity and tie; the losses do not overflow."""
    deltas, logits = random_heads(2, 64, 5, seed=0)
    objects = random_objects(2, seeded(1), classes=5)
    assert_equals_float64(device, deltas, logits * scale, random_boxes(64, seeded(2)), objects)


@pytest.mark.parametrize("target", [0.0, -1100.0], ids=["in reach", "far below"])
def test_rivals_at_large_logits_share_a_gradient_to_all_digits(device, target) -> None:
    """Two logits near 1000, or 0, and a target: their difference decides, whatever its own."""
    generator = seeded(0)
    logits = 1000 * torch.randn(1, 64, 5, generator=generator)
    logits[..., 1:3] = 1000 + torch.rand(1, 64, 2, generator=generator)
    logits[..., 3] = target
    priors, matches = random_boxes(64, seeded(1)), torch.arange(64).unsqueeze(0)
    objects = Objects(priors, torch.full((64,), 3), torch.tensor([0, 64]))
    heads = torch.zeros(1, 64, 4), logits
    assert_equals_float64(device, *heads, priors, objects, matches=matches)


def test_tiny_losses_keep_their_digits(device) -> None:
    """Confident negatives: log-softmax would cancel to zero or lose two digits."""
    deltas, logits = random_heads(1, 64, 5, seed=0)
    logits[..., 0] += 30
    none = random_objects(1, seeded(0), counts=(0, 0))
    priors = random_boxes(64, seeded(1))
    assert_equals_float64(device, deltas, logits, priors, none, min_negatives=64)


def test_many_equal_logits_add_up(device) -> None:
    """As an untrained network's are: each addition to one running sum would err the same way."""
    priors, matches = random_boxes(64, seeded(0)), torch.arange(64).unsqueeze(0)
    matches[:, 32:] = -1
    logits = torch.full((1, 64, 1204), -12.648829)
    logits[:, :32, 3] = 0  # positives and negatives that are sure of what they are
    logits[:, 32:, 0] = 0
    objects = Objects(priors, torch.full((64,), 3), torch.tensor([0, 64]))
    heads = torch.zeros(1, 64, 4), logits
    assert_equals_float64(device, *heads, priors, objects, matches=matches)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_poisoned_logits_poison_only_what_selects_them(device, poison) -> None:
    """NaN counts as the hardest negative; an image that is not poisoned keeps its gradient."""
    deltas, logits = (x.to(device) for x in random_heads(2, 50, 5, seed=0))
    objects = random_objects(2, seeded(3), counts=(3, 3), classes=5)
    targets = [x.to(device) for x in (random_boxes(50, seeded(1)), *objects)]
    healthy = loss_and_gradients(multibox_loss, deltas, logits, *targets)
    logits[0, :, 2] = poison
    result = loss_and_gradients(multibox_loss, deltas, logits, *targets)
    assert torch.equal(result[2], healthy[2])
    assert torch.equal(result[4][1], healthy[4][1])
    assert math.isfinite(float(result[1])) == (poison == -math.inf and not _labelled(objects, 2))


def _labelled(objects: Objects, label: int) -> bool:
    """Whether an object of the first image has this label."""
    return bool((objects.labels[: objects.offsets[1]] == label).any())


def test_broken_objects_do_not_poison_the_batch(device) -> None:
    """NaN, inverted, mislabelled and surplus objects leave the loss of the others alone."""
    deltas, logits = (x.to(device) for x in random_heads(1, 200, 5, seed=0))
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


@pytest.mark.parametrize(("B", "P", "C"), [(5, 700, 21), (1, 4000, 81)], ids=["images", "pieces"])
def test_threads_change_nothing(B, P, C) -> None:
    """Equal bit for bit for one and two threads, which share images, or pieces of a large one."""
    deltas, logits = random_heads(B, P, C, seed=0)
    targets = random_boxes(P, seeded(1)), *random_objects(B, seeded(2), classes=C)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(
                loss_and_gradients(multibox_loss, deltas, logits, *targets, min_negatives=P // 2)
            )
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_variances_that_change_in_place_are_read_anew(device) -> None:
    """Options are remembered between calls; what can change its value is not."""
    deltas, logits = (x.to(device) for x in random_heads(1, 60, 5, seed=0))
    targets = random_boxes(60, seeded(1)), *random_objects(1, seeded(2), classes=5)
    targets = [x.to(device) for x in targets]
    variances = torch.tensor([0.1, 0.2])
    first = multibox_loss(deltas, logits, *targets, variances=variances)
    variances.mul_(3)
    second = multibox_loss(deltas, logits, *targets, variances=variances)
    fresh = multibox_loss(deltas, logits, *targets, variances=variances.tolist())
    assert first[0] != second[0]
    assert torch.equal(second[0], fresh[0])
