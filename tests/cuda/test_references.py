# SPDX-License-Identifier: BSD-3-Clause
"""The operators on a GPU, called as users call them, equal the CPU's: those are held to references.

Exact operators equal bit for bit. tests/kernels checks the Triton launchers in more detail.
"""

import math

import pytest
import torch

from ssd_fast import ops
from ssd_fast.boxes import decode_boxes
from ssd_fast.cross_entropy import background_key
from ssd_fast.priors import ssd300
from ssd_fast.suppression import NMS
from ssd_fast.testing import (
    CROWDS,
    SCENES,
    adversarial_objects,
    assert_close,
    assert_same_rows,
    crowded_boxes,
    flat_outputs,
    random_boxes,
    seeded,
)
from ssd_fast.testing_detections import assert_same_detections


def to(device, *tensors):
    return [x.to(device) for x in tensors]


@pytest.mark.parametrize("assign", ["last", "bipartite", "none"])
@pytest.mark.parametrize("scene", SCENES)
def test_match(gpu, scene, assign):
    for seed in range(5):
        generator = seeded(seed)
        priors = SCENES[list(SCENES)[seed]](500 + seed, generator).float()
        objects = adversarial_objects(scene, [3, 0, 40], generator)
        arguments = priors, objects.boxes, objects.offsets
        options = {"iou_threshold": (0.5, 1 / 3)[seed % 2], "assign": assign}
        found = ops.match(*to(gpu, *arguments), **options)
        assert found.device == gpu
        assert torch.equal(found.cpu(), ops.match(*arguments, **options))


@pytest.mark.parametrize("P", [1, 8732, 24564, 100_000])
def test_mine(gpu, P):
    loss = torch.randn(3, P, generator=seeded(P)).mul(4).round().div(4)  # with ties
    loss[0, ::7], loss[1, ::5] = math.nan, -0.0
    match = torch.full((3, P), -1, dtype=torch.int32)
    match[:, ::50], match[2, ::3] = 0, -2
    expected = ops.mine(loss, match)
    assert torch.equal(ops.mine(*to(gpu, loss, match)).cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("B", "C"), [(1, 21), (8, 21), (4, 81), (2, 2)])
def test_multibox_loss(gpu, make_batch, B, C, dtype):
    """Losses within 1e-5, gradients too, or within the rounding of their dtype."""
    deltas, logits, *targets = make_batch(B, C)
    heads = [x.to(dtype) for x in (deltas, logits)]
    expected = _loss_and_gradients([x.float() for x in heads], targets)
    found = _loss_and_gradients(to(gpu, *heads), to(gpu, *targets))
    rounding = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert all(x.device == gpu for x in found)
    _assert_same_training([x.cpu() for x in found], expected, heads[1], rounding)


def _assert_same_training(found, expected, logits, rounding=1e-5):
    """Losses and gradients of deltas and logits are equal."""
    names = ("box loss", "class loss", "gradient of deltas", "gradient of logits")
    # Rows whose mining keys lie within the band may be mined in each other's place.
    selected, wanted = (g[3].ne(0).any(dim=2) for g in (found, expected))
    assert_same_rows(selected, wanted, background_key(logits.float(), 0))
    alike = (selected == wanted).unsqueeze(2)
    for what, a, b in zip(names, found, expected, strict=True):
        if "loss" in what:
            assert_close(a, b, what=what)
        else:
            assert_close(a * alike, b * alike, tolerance=rounding, what=what)


@pytest.mark.parametrize("box_loss", ["l1", "giou", "diou", "ciou"])
@pytest.mark.parametrize("what", ["weights", "smoothing", "both", "matches", "regions"])
def test_multibox_loss_options(gpu, make_batch, box_loss, what):
    """Class weights, label smoothing, given matches and regions to ignore, with each box loss."""
    *heads, priors, boxes, labels, offsets = make_batch(4, 21)
    options = {"box_loss": box_loss}
    if what in ("weights", "both"):
        options["class_weights"] = torch.linspace(0.1, 2.0, 21)
    if what in ("smoothing", "both"):
        options["label_smoothing"] = 0.1
    if what == "matches":
        options["matches"] = ops.match(priors, boxes, offsets, assign="bipartite").long()
        options["matches"][:, ::100] = torch.tensor([99, -7, -2, 2**40]).repeat(22)
    if what == "regions":
        labels[::2] = -1
    targets = priors, boxes, labels, offsets
    expected = _loss_and_gradients(heads, targets, **options)
    options = {k: v.to(gpu) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    found = _loss_and_gradients(to(gpu, *heads), to(gpu, *targets), **options)
    _assert_same_training([x.cpu() for x in found], expected, heads[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"gamma": 1.5, "alpha": -1.0, "box_loss": "ciou"}])
def test_focal_loss(gpu, make_batch, dtype, options):
    """Losses within 1e-5, gradients too, or within the rounding of their dtype."""
    deltas, logits, *targets = make_batch(4, 21)
    options = {"low_threshold": 0.4, "loss": ops.focal_loss, **options}
    heads = [x.to(dtype) for x in (deltas, logits)]
    expected = _loss_and_gradients([x.float() for x in heads], targets, **options)
    found = _loss_and_gradients(to(gpu, *heads), to(gpu, *targets), **options)
    rounding = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    names = ("box loss", "class loss", "gradient of deltas", "gradient of logits")
    for what, a, b in zip(names, found, expected, strict=True):
        tolerance = 1e-5 if "loss" in what else rounding
        assert_close(a.cpu(), b, tolerance=tolerance, what=what)


def _loss_and_gradients(heads, targets, loss=ops.multibox_loss, **options):
    heads = [x.clone().requires_grad_() for x in heads]
    box, classes, positives = loss(*heads, *targets, **options)
    gradients = torch.autograd.grad(box + classes, heads)
    assert positives.dtype == torch.int64
    assert all(g.dtype == h.dtype for g, h in zip(gradients, heads, strict=True))
    return box.detach(), classes.detach(), *gradients


@pytest.mark.parametrize("shape", [(3, 7), (2, 8732)])
def test_encode_and_decode(gpu, shape):
    priors = random_boxes(shape[1], seeded(0))
    deltas = torch.randn(*shape, 4, generator=seeded(1))
    boxes = ops.decode(*to(gpu, deltas, priors), (0.1, 0.2))
    expected = decode_boxes(deltas.double(), priors.double(), (0.1, 0.2))
    assert_close(boxes.cpu(), expected, what="decode")
    back = ops.encode(boxes, priors.to(gpu), (0.1, 0.2))
    assert_close(back.cpu(), deltas, tolerance=1e-4, what="encode")


@pytest.mark.parametrize(("B", "C"), [(1, 21), (5, 81)])
@pytest.mark.parametrize("nms", NMS)
def test_detect(gpu, make_batch, needs_kernel, B, C, nms):
    needs_kernel("detect")
    deltas, logits, priors, *_ = make_batch(B, C)
    found = ops.detect(*to(gpu, deltas, logits, priors), nms=nms)
    assert all(x.device == gpu for x in found)
    expected = ops.detect(deltas, logits, priors, nms=nms)
    boxes = decode_boxes(deltas.double(), priors.double(), (0.1, 0.2))
    on_cpu = type(found)(*(x.cpu() for x in found))
    assert_same_detections(on_cpu, expected, logits.double().softmax(2), boxes, nms=nms)


@pytest.mark.parametrize("flat", [False, True])
def test_detect_sigmoids(gpu, make_batch, needs_kernel, flat):
    """Each class against the background, without a column of its own; flat as RetinaNet starts."""
    needs_kernel("detect")
    deltas, logits, priors, *_ = _flat_heads(torch.float32) if flat else make_batch(2, 21)
    logits = logits - 4.6 if flat else logits[..., 1:] - logits[..., :1]
    options = {"scores": "sigmoid", "background_index": None}
    found = ops.detect(*to(gpu, deltas, logits, priors), **options)
    expected = ops.detect(deltas, logits, priors, **options)
    boxes = decode_boxes(deltas.double(), priors.double(), (0.1, 0.2))
    on_cpu = type(found)(*(x.cpu() for x in found))
    assert_same_detections(
        on_cpu, expected, logits.double().sigmoid(), boxes, background_index=None
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_detect_flat_scores(gpu, needs_kernel, dtype):
    """More candidates than a list holds; in bfloat16 with many equal scores."""
    needs_kernel("detect")
    deltas, logits, priors = _flat_heads(dtype)
    found = ops.detect(*to(gpu, deltas, logits, priors))
    expected = ops.detect(deltas, logits, priors)
    boxes = decode_boxes(deltas.double(), priors.double(), (0.1, 0.2))
    on_cpu = type(found)(*(x.cpu() for x in found))
    assert_same_detections(on_cpu, expected, logits.double().softmax(2), boxes)
    again = ops.detect(*to(gpu, deltas, logits, priors))
    assert all(torch.equal(a, b) for a, b in zip(again, found, strict=True))


def _flat_heads(dtype):
    priors = ssd300("voc")
    deltas, logits = flat_outputs(2, priors, seeded(0))
    return deltas.to(dtype), logits.to(dtype), priors


# Below and beyond a word, a block's limit, a tile, a large tile.
@pytest.mark.parametrize("n", [1, 63, 65, 1000, 4096, 4097, 8192, 8193, 20_000])
@pytest.mark.parametrize("crowd", CROWDS)
def test_nms(gpu, needs_kernel, crowd, n):
    needs_kernel("nms")
    boxes, scores = crowded_boxes(crowd, n, seeded(n))
    scores = (scores * 1000).round() / 1000 if n % 2 else scores  # with ties
    arguments = to(gpu, boxes, scores)
    expected = ops.nms(boxes, scores, 0.45)
    assert torch.equal(ops.nms(*arguments, 0.45).cpu(), expected)
    keep, count = ops.nms_padded(*arguments, 0.45)
    assert int(count) == len(expected)
    assert torch.equal(keep[: len(expected)].cpu(), expected)
    assert bool((keep[len(expected) :] == -1).all())
    for classes in (1, 2, 80, 5000):
        idxs = torch.randint(-classes, classes, (n,), generator=seeded(classes)) * 2**40
        found = ops.batched_nms(*arguments, idxs.to(gpu), 0.45)
        assert torch.equal(found.cpu(), ops.batched_nms(boxes, scores, idxs, 0.45))


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("threshold", [0.0, 1 / 3, 0.45, 1.0, -math.inf])
def test_nms_of_adversarial_boxes(gpu, scene, threshold):
    for n in (70, 700):
        boxes = SCENES[scene](n, seeded(n)).float()
        scores = torch.randint(-3, 20, (n,), generator=seeded(n)).float() * 0.5
        scores[scores == 4] = math.nan
        idxs = torch.arange(n) % 3
        found = ops.nms(*to(gpu, boxes, scores), threshold)
        assert torch.equal(found.cpu(), ops.nms(boxes, scores, threshold))
        found = ops.batched_nms(*to(gpu, boxes, scores, idxs), threshold)
        assert torch.equal(found.cpu(), ops.batched_nms(boxes, scores, idxs, threshold))


def test_nms_of_very_many_boxes(gpu, needs_kernel):
    """Large tiles; half a million boxes in segments; a long segment among short ones."""
    needs_kernel("nms")
    n = 150_000
    boxes, scores = crowded_boxes("random", n, seeded(0))
    assert torch.equal(ops.nms(*to(gpu, boxes, scores), 0.45).cpu(), ops.nms(boxes, scores, 0.45))
    idxs = torch.arange(n).mul(7919) % 1000
    idxs[idxs < 50] = 5
    assert torch.equal(
        ops.batched_nms(*to(gpu, boxes, scores, idxs), 0.45).cpu(),
        ops.batched_nms(boxes, scores, idxs, 0.45),
    )
