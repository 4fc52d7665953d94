# SPDX-License-Identifier: BSD-3-Clause
"""focal_loss: equal to float64, to torchvision and on every machine; edges; bad input."""

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_fast import _C
from ssd_fast.dense_targets import DenseTargets
from ssd_fast.multibox import MultiBoxLoss
from ssd_fast.ops import focal_loss, focal_loss_reference, match, multibox_loss
from ssd_fast.targets import Targets
from ssd_fast.testing import as_maps, random_boxes, random_objects, seeded

SETS = _C.instruction_sets()
CELLS = [(4, 6, 5), (6, 3, 3), (2, 1, 1)]
P = sum(a * h * w for a, h, w in CELLS)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Leaves the best instruction set behind."""
    yield
    _C.set_instruction_set(SETS[-1])


def batch(seed=0, classes=7, priors=P, scale=4.0, dtype=torch.float32):
    """Deltas, logits, priors and targets; one object of each batch is a region to ignore."""
    generator = seeded(seed)
    objects = random_objects(2, generator, counts=(1, 6), classes=max(classes, 2))
    labels = objects.labels.clamp(max=classes - 1)
    labels[0] = -1
    deltas = torch.randn(2, priors, 4, generator=generator).to(dtype)
    logits = (scale * torch.randn(2, priors, classes, generator=generator)).to(dtype)
    boxes = random_boxes(priors, generator)
    return deltas, logits, boxes, objects._replace(labels=labels)


def losses_and_gradients(function, deltas, logits, priors, objects, **options):
    """Box loss, class loss, positives, and the gradients of 1 x box + 2 x class."""
    lists = [x if isinstance(x, list) else [x] for x in (deltas, logits)]
    maps = [[x.detach().requires_grad_() for x in levels] for levels in lists]
    box, classes, positives = function(*maps, priors, *objects[:3], **options)
    flat = [x for levels in maps for x in levels]
    return box, classes, positives, *torch.autograd.grad(box + 2 * classes, flat)


def assert_equals_float64(deltas, logits, priors, objects, rounding=1e-5, **options):
    found = losses_and_gradients(focal_loss, deltas, logits, priors, objects, **options)
    wide = losses_and_gradients(
        focal_loss_reference, deltas.double(), logits.double(), priors, objects, **options
    )
    assert found[2].equal(wide[2])
    for name, one, other in zip(("box", "class"), found[:2], wide[:2], strict=True):
        assert abs(one - other) <= 1e-5 * abs(other) + 1e-30, name
    for name, one, other in zip(("deltas", "logits"), found[3:], wide[3:], strict=True):
        assert one.dtype == deltas.dtype
        largest = float(other.abs().max())
        smallest = torch.finfo(deltas.dtype).smallest_normal / 1024  # what float16 cannot hold
        error = (one.double() - other).abs()
        assert bool((error <= rounding * largest + max(smallest, 1e-30)).all()), name


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**31),
    classes=st.sampled_from([1, 2, 7, 16, 21, 91]),
    priors=st.sampled_from([1, 15, 17, 200]),
    scale=st.sampled_from([0.1, 4.0, 40.0, 1000.0]),
    name=st.sampled_from(SETS),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    options=st.fixed_dictionaries(
        {
            "alpha": st.sampled_from([0.25, -1.0, 0.0, 1.0]),
            "gamma": st.sampled_from([2.0, 0.0, 1.0, 0.5, 3.7]),
            "box_loss": st.sampled_from(["smooth_l1", "l1", "giou"]),
            "low_threshold": st.sampled_from([None, 0.3]),
            "ignore_threshold": st.sampled_from([None, 0.5]),
            "normalizer": st.sampled_from(["positives", "image", "none"]),
            "background_index": st.sampled_from([0, -1, None]),
        }
    ),
)
def test_equals_float64(seed, classes, priors, scale, name, dtype, options):
    """On every instruction set, in every dtype, for small and large logits."""
    _C.set_instruction_set(name)
    rounding = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert_equals_float64(*batch(seed, classes, priors, scale, dtype), rounding, **options)


@pytest.mark.parametrize("gamma", [2.0, 0.0, 1.5])
@pytest.mark.parametrize("classes", [1, 21])
def test_layouts_and_instruction_sets_agree(classes, gamma):
    """Rows, maps, channels_last, channels first, strided: read in place; sets bit for bit."""
    deltas, logits, priors, objects = batch(1, classes)
    options = {"gamma": gamma, "background_index": None}
    expected = losses_and_gradients(focal_loss, deltas, logits, priors, objects, **options)
    maps = as_maps(deltas, CELLS), as_maps(logits, CELLS)
    last = [[x.to(memory_format=torch.channels_last) for x in levels] for levels in maps]
    gaps = torch.zeros(2, P, 2 * classes)[..., ::2].copy_(logits)
    layouts = [
        ([deltas], [logits]),
        maps,
        tuple(last),
        ([deltas.mT.contiguous().mT], [logits.mT.contiguous().mT]),
        ([deltas], [gaps]),
    ]
    for one, other in layouts:
        _C.set_instruction_set(SETS[0])
        found = losses_and_gradients(focal_loss, one, other, priors, objects, **options)
        for a, b in zip(found[:2], expected[:2], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
        levels = len(one)
        pieces = expected[3], expected[4]
        if levels > 1:
            pieces = as_maps(expected[3], CELLS), as_maps(expected[4], CELLS)
        else:
            pieces = [expected[3]], [expected[4]]
        for got, want in zip(found[3:], (*pieces[0], *pieces[1]), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-12)
        for got, level in zip(found[3:], (*one, *other), strict=True):
            assert got.stride() == torch.empty_like(level).stride()
        for name in SETS[1:]:
            _C.set_instruction_set(name)
            again = losses_and_gradients(focal_loss, one, other, priors, objects, **options)
            for a, b in zip(again, found, strict=True):
                assert torch.equal(a, b), name


def test_repeatable_with_any_number_of_threads():
    inputs = batch(3, 21, 5000)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = losses_and_gradients(focal_loss, *inputs)
        for count in (2, 5):
            torch.set_num_threads(count)
            for a, b in zip(losses_and_gradients(focal_loss, *inputs), expected, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("alpha", [0.25, 0.6, -1.0])
@pytest.mark.parametrize("gamma", [2.0, 0.0, 0.7])
def test_equals_torchvision_on_matched_targets(torchvision, alpha, gamma):
    """Its sigmoid_focal_loss on one-hot targets, without the rows between the thresholds."""
    deltas, logits, priors, objects = batch(2)
    labels = objects.labels.clamp(min=1)
    objects = objects._replace(labels=labels)
    matched = match(priors, objects.boxes, objects.offsets, low_threshold=0.4)
    target = torch.zeros_like(logits)
    for i in range(2):
        rows = (matched[i] >= 0).nonzero().squeeze(1)
        target[i, rows, labels[objects.offsets[i] + matched[i, rows]]] = 1
    valid = matched != -2
    assert not bool(valid.all())
    expected = torchvision.ops.sigmoid_focal_loss(
        logits[valid], target[valid], alpha=alpha, gamma=gamma, reduction="sum"
    )
    options = {"alpha": alpha, "gamma": gamma, "normalizer": "none", "low_threshold": 0.4}
    found = focal_loss(deltas, logits, priors, *objects[:3], **options)[1]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_equals_torchvisions_retinanet(torchvision):
    """The class loss of its head, an image at a time normalised, from its own matching."""
    deltas, logits, priors, objects = batch(4)
    objects = objects._replace(labels=objects.labels.clamp(min=1))
    targets = [
        {"boxes": objects.boxes[a:b], "labels": objects.labels[a:b]}
        for a, b in objects.offsets.unfold(0, 2, 1).tolist()
    ]
    matched = match(priors, objects.boxes, objects.offsets, low_threshold=0.4, assign="none")
    head = torchvision.models.detection.retinanet.RetinaNetClassificationHead(8, 1, 7)
    expected = head.compute_loss(targets, {"cls_logits": logits}, list(matched.long()))
    found = focal_loss(
        deltas, logits, priors, *objects[:3], low_threshold=0.4, assign="none",
        normalizer="image", background_index=0,
    )  # fmt: skip
    torch.testing.assert_close(found[1], expected, rtol=1e-5, atol=0)


def test_box_loss_and_positives_are_those_of_multibox_loss():
    deltas, logits, priors, objects = batch(5)
    for options in ({}, {"box_loss": "ciou"}, {"matches": torch.randint(-2, 4, (2, P))}):
        one = focal_loss(deltas, logits, priors, *objects[:3], **options)
        other = multibox_loss(deltas, logits, priors, *objects[:3], **options)
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[2], other[2])


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (-1.0, 0.5), (0.6, 0.0)])
def test_gradients_of_the_reference(alpha, gamma):
    deltas, logits, priors, objects = batch(6, classes=3, priors=8)
    wide = deltas.double().requires_grad_(), logits.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda d, x: focal_loss_reference(
            d, x, priors, *objects[:3], alpha=alpha, gamma=gamma, normalizer="image"
        )[:2],
        wide,
    )


def test_one_row_by_hand():
    """P = 1/2 everywhere: alpha / 4 log 2 for the target, (1 - alpha) / 4 log 2 for the rest."""
    prior = torch.tensor([[0.0, 0, 1, 1], [4.0, 4, 5, 5]])
    objects = Targets(prior[:1], torch.tensor([2]), torch.tensor([0, 1]))
    inputs = torch.zeros(1, 2, 4), torch.zeros(1, 2, 3), prior, *objects[:3]
    found = focal_loss(*inputs)
    expected = math.log(2) / 4 * (0.25 + 5 * 0.75)
    torch.testing.assert_close(found[1], torch.tensor(expected))
    assert found[2].tolist() == [1]
    assert focal_loss(*inputs, background_index=2)[2].tolist() == [0]


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 0.5])
def test_infinite_logits(gamma):
    """-inf costs nothing where the target is 0, +inf everything; ignored rows cost nothing."""
    deltas, logits, priors, objects = batch(0, classes=2, priors=3)
    nothing = objects._replace(offsets=torch.tensor([0, 0, 0]))
    logits = torch.tensor([[[-math.inf] * 2] * 3] * 2)
    found = losses_and_gradients(focal_loss, deltas, logits, priors, nothing, gamma=gamma)
    assert found[1] == 0
    assert not bool(found[4].any())
    logits[0, 1, 0] = math.inf
    found = losses_and_gradients(focal_loss, deltas, logits, priors, nothing, gamma=gamma)
    assert found[1] == math.inf
    assert found[4][0, 1].tolist() == [1.5, 0]
    logits[1, 2, 1] = math.nan
    found = losses_and_gradients(focal_loss, deltas, logits, priors, nothing, gamma=gamma)
    assert bool(found[1].isnan())
    assert found[4].isnan().nonzero().tolist() == [[1, 2, 1]]
    ignored = torch.full((2, 3), -2)
    options = {"gamma": gamma, "matches": ignored}
    found = losses_and_gradients(focal_loss, deltas, logits, priors, nothing, **options)
    assert found[1] == 0
    assert not bool(found[4].any())


@pytest.mark.parametrize(("batch_size", "priors"), [(0, 5), (2, 0), (0, 0)])
def test_nothing_in_nothing_out(batch_size, priors):
    inputs = torch.zeros(batch_size, priors, 4), torch.zeros(batch_size, priors, 3)
    objects = torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(batch_size + 1).long()
    for function in (focal_loss, focal_loss_reference):
        box, classes, positives = function(*inputs, random_boxes(priors, seeded(0)), *objects)
        assert (float(box), float(classes), positives.tolist()) == (0, 0, [0] * batch_size)


@pytest.mark.parametrize("matches", [False, True])
def test_registration(matches):
    deltas, logits, priors, objects = batch(0, 3, 20)
    given_matches = torch.zeros(2, 20).int() if matches else None
    arguments = ([deltas], [logits], priors, *objects[:3])
    options = (0, 1.0, [0.1, 0.1, 0.2, 0.2], 0.25, 2.0, 0, 0)
    torch.library.opcheck(
        torch.ops.ssd_fast.focal_loss.default,
        (*arguments, given_matches, 0.5, 0.4, False, 0, 0.5, *options),
    )
    forward = torch.ops.ssd_fast.focal_loss.default
    *_, positives, code = forward(*arguments, None, 0.5, 0.4, False, 0, 0.5, *options)
    one = torch.ones(())
    torch.library.opcheck(
        torch.ops.ssd_fast.focal_loss_backward.default,
        (one, one, *arguments, code, positives, *options),
    )


def test_compiles_without_a_graph_break():
    deltas, logits, priors, objects = batch(0)
    compiled = torch.compile(
        lambda d, x: focal_loss(d, x, priors, *objects[:3]), fullgraph=True, backend="aot_eager"
    )
    for a, b in zip(
        losses_and_gradients(
            lambda d, x, *_: compiled(d[0], x[0]), deltas, logits, priors, objects
        ),
        losses_and_gradients(focal_loss, deltas, logits, priors, objects),
        strict=True,
    ):
        assert torch.equal(a, b)
    with torch.no_grad():
        assert torch.equal(
            compiled(deltas, logits)[1], focal_loss(deltas, logits, priors, *objects[:3])[1]
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"alpha: expected a number from 0 to 1, or a negative one .* got 1.5"),
        ({"alpha": math.nan}, r"alpha: expected .* got nan"),
        ({"gamma": -1}, r"gamma: expected a finite number >= 0, got -1"),
        ({"gamma": math.inf}, r"gamma: expected .* got inf"),
        ({"background_index": 7}, r"background_index: expected from 0 to 6"),
        ({"box_loss": "iou"}, r"box_loss: expected one of"),
        ({"matches": torch.zeros(2, 3)}, r"matches: expected \(2, \d+\) int32 or int64"),
    ],
)
def test_rejects(options, message):
    deltas, logits, priors, objects = batch(0)
    with pytest.raises(ValueError, match=message):
        focal_loss(deltas, logits, priors, *objects[:3], **options)


def test_through_the_module():
    """MultiBoxLoss(classification="focal") is the operator; without a group the world is here."""
    deltas, logits, priors, objects = batch(7)
    options = {"alpha": 0.4, "gamma": 1.5, "low_threshold": 0.4, "box_loss": "giou"}
    for normalizer in ("image", "world"):
        loss = MultiBoxLoss(priors, classification="focal", normalizer=normalizer, **options)
        found = loss(deltas, logits, Targets(*objects))
        same = "positives" if normalizer == "world" else normalizer
        expected = focal_loss(deltas, logits, priors, *objects[:3], normalizer=same, **options)
        torch.testing.assert_close(found["bbox_regression"], expected[0])
        torch.testing.assert_close(found["classification"], expected[1])
        again = MultiBoxLoss(priors, **loss.config)(deltas, logits, Targets(*objects))
        assert torch.equal(again["classification"], found["classification"])
    for name, value in {
        "ratio": 2.0, "min_negatives": 3, "label_smoothing": 0.1, "class_weights": [1.0] * 7
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=f"{name}: the focal loss takes none"):
            MultiBoxLoss(priors, classification="focal", **{name: value})
    with pytest.raises(ValueError, match="gamma: expected a finite number >= 0, got -2"):
        MultiBoxLoss(priors, classification="focal", gamma=-2)
    with pytest.raises(ValueError, match="classification: expected 'softmax' or 'focal'"):
        MultiBoxLoss(priors, classification="sigmoid")
    with pytest.raises(ValueError, match="gamma: of classification='focal' alone"):
        MultiBoxLoss(priors, gamma=1.0)


def test_through_the_module_without_a_background():
    """Class 0 is an object's there; what cannot be said without a background is refused."""
    deltas, logits, priors, (boxes, labels, offsets, *_) = batch(7)
    labels = labels.clamp(0, 6) - labels.clamp(0, 6).min()
    targets = Targets(boxes, labels, offsets)
    loss = MultiBoxLoss(priors, classification="focal", background_index=None)
    found = loss(deltas, logits, targets)
    expected = focal_loss(deltas, logits, priors, boxes, labels, offsets, background_index=None)
    assert torch.equal(found["classification"], expected[1])
    packed = [
        {"boxes": boxes[a:b], "labels": labels[a:b]}
        for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    ]
    assert torch.equal(loss(deltas, logits, packed)["classification"], expected[1])
    dense = DenseTargets(
        torch.zeros(logits.shape[:2], dtype=torch.int64), torch.zeros(*logits.shape[:2], 4)
    )
    with pytest.raises(ValueError, match="DenseTargets need a label for the background"):
        loss(deltas, logits, dense)


def test_an_exponent_that_float32_rounds_to_zero():
    """Is zero for every loop, or 0 times infinity would be NaN."""
    deltas, logits, priors, objects = batch(7)
    tiny = focal_loss(deltas, logits * 100, priors, *objects[:3], gamma=1e-50)
    none = focal_loss(deltas, logits * 100, priors, *objects[:3], gamma=0)
    assert torch.equal(tiny[1], none[1])
    assert bool(tiny[1].isfinite())
