# SPDX-License-Identifier: BSD-3-Clause
"""Where the originals crash, or return NaN, the compatible classes have a defined result.

Each test shows the original's failure first: a row of the table in `ssd_fast.compat`.
"""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers import amdegroot, lufficc, nvidia, sgrvinod
from ssd_fast import compat

C, P = 5, 6
NO_BOXES, NO_LABELS = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
THEIR_AMDEGROOT = amdegroot.MultiBoxLoss(C)
THEIR_LUFFICC = lufficc.MultiBoxLoss()


def our_amdegroot(**options) -> compat.amdegroot.MultiBoxLoss:
    return compat.amdegroot.MultiBoxLoss(C, 0.5, True, 0, True, 3, 0.5, False, **options)


@pytest.fixture
def toy() -> SimpleNamespace:
    """Six priors, one object on the second of them, one image, outputs with gradients."""
    x = torch.arange(P) / P
    priors = torch.stack([x + 0.08, torch.full((P,), 0.5), *[torch.full((P,), 0.15)] * 2], 1)
    box = torch.tensor([[0.17, 0.43, 0.32, 0.57]])
    return SimpleNamespace(
        priors=priors,
        dboxes=nvidia.DefaultBoxes(priors),
        box=box,
        label=torch.tensor([3]),
        deltas=torch.randn(1, P, 4, requires_grad=True),
        logits=torch.randn(1, P, C, requires_grad=True),
    )


def assert_trains_nothing(toy: SimpleNamespace, *losses: Tensor) -> None:
    """Zero losses with zero gradients."""
    assert [loss.item() for loss in losses] == [0.0] * len(losses)
    sum(losses).backward()
    assert not toy.deltas.grad.any()
    assert not toy.logits.grad.any()


def assert_trains_background(toy: SimpleNamespace, rows: int, loss: Tensor) -> None:
    """The loss is the cross-entropy of the hardest rows against the background."""
    background = F.cross_entropy(
        toy.logits[0].detach(), torch.zeros(P, dtype=torch.long), reduction="none"
    )
    expected = background.sort(descending=True).values[:rows].sum()
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=0)


def test_amdegroot_without_objects(toy):
    predictions = toy.deltas, toy.logits, toy.priors
    with pytest.raises(IndexError):
        THEIR_AMDEGROOT(predictions, [torch.zeros(0, 5)])
    _, loss = our_amdegroot(min_negatives=2)(predictions, [torch.zeros(0, 5)])
    assert_trains_background(toy, 2, loss)
    assert_trains_nothing(toy, *our_amdegroot()(predictions, [torch.tensor([])]))


def test_sgrvinod_without_objects(toy):
    arguments = toy.deltas, toy.logits, [NO_BOXES], [NO_LABELS]
    with pytest.raises(IndexError):
        sgrvinod.MultiBoxLoss(toy.priors)(*arguments)
    loss = compat.sgrvinod.MultiBoxLoss(toy.priors, min_negatives=3)(*arguments)
    assert_trains_background(toy, 3, loss)
    assert_trains_nothing(toy, compat.sgrvinod.MultiBoxLoss(toy.priors)(*arguments))


def test_sgrvinod_without_the_values_of_its_priors(toy):
    loss = compat.sgrvinod.MultiBoxLoss(toy.priors.to("meta")).to_empty(device="cpu")
    with pytest.raises(ValueError, match="priors_cxcy: made on the meta device"):
        loss(toy.deltas, toy.logits, [toy.box], [toy.label])


def test_nvidia_encode_without_objects(toy):
    with pytest.raises(IndexError):
        nvidia.Encoder(toy.dboxes).encode(NO_BOXES, NO_LABELS)
    boxes, labels = compat.nvidia.Encoder(toy.dboxes).encode(NO_BOXES, NO_LABELS)
    assert labels.tolist() == [0] * P
    torch.testing.assert_close(boxes, toy.priors)


def test_dense_losses_without_positives(toy):
    dense = torch.zeros(1, P, dtype=torch.long), torch.zeros(1, P, 4)
    arguments = toy.logits, toy.deltas, *dense
    assert all(loss.isnan() for loss in THEIR_LUFFICC(*arguments))
    _, loss = compat.lufficc.MultiBoxLoss(3, min_negatives=2)(*arguments)
    assert_trains_background(toy, 2, loss)
    assert_trains_nothing(toy, *compat.lufficc.MultiBoxLoss(3)(*arguments))


def test_nvidia_loss_without_positives(toy):
    """Theirs is 0 as well, and can not be made to train."""
    gloc, glabel = toy.priors.t()[None], torch.zeros(1, P, dtype=torch.long)
    ploc, plabel = toy.deltas.transpose(1, 2), toy.logits.transpose(1, 2)
    assert nvidia.Loss(toy.dboxes)(ploc, plabel, gloc, glabel) == 0
    loss = compat.nvidia.Loss(toy.dboxes, min_negatives=2)(ploc, plabel, gloc, glabel)
    assert_trains_background(toy, 2, loss)
    assert_trains_nothing(toy, compat.nvidia.Loss(toy.dboxes)(ploc, plabel, gloc, glabel))


def test_box_targets_without_positives(toy):
    """A batch whose only object overlaps no prior."""
    away = torch.tensor([[0.1, 0.05, 0.2, 0.15]])
    losses = our_amdegroot()(
        (toy.deltas, toy.logits, toy.priors), [torch.cat([away, torch.zeros(1, 1)], 1)]
    )
    loss = compat.sgrvinod.MultiBoxLoss(toy.priors)(toy.deltas, toy.logits, [away], [toy.label])
    assert_trains_nothing(toy, *losses, loss)


def test_an_object_that_overlaps_no_prior_takes_none(toy):
    """Theirs gives it prior 0, even where another object has that one."""
    away = torch.tensor([[0.1, 0.05, 0.2, 0.15]])
    boxes = torch.cat([amdegroot.point_form(toy.priors[:1]), away])
    labels = torch.tensor([2, 4])
    assert nvidia.Encoder(toy.dboxes).encode(boxes, labels)[1].tolist() == [4] + [0] * (P - 1)
    found = compat.nvidia.Encoder(toy.dboxes).encode(boxes, labels)[1]
    assert found.tolist() == [2] + [0] * (P - 1)


@pytest.mark.parametrize(
    "broken", [(0.2, 0.5, 0.2, 0.6), (0.4, 0.5, 0.2, 0.6), (0.2, 0.5, math.inf, 0.6)]
)
def test_a_box_without_area(toy, broken):
    boxes = torch.cat([toy.box, torch.tensor([broken])])
    target = torch.cat([boxes, torch.tensor([[2.0], [1.0]])], 1)
    predictions = toy.deltas, toy.logits, toy.priors
    assert not all(loss.isfinite() for loss in THEIR_AMDEGROOT(predictions, [target]))
    with pytest.raises(ValueError, match=r"targets\[0\]\['boxes'\]\[1\] is .*invalid='drop'"):
        our_amdegroot()(predictions, [target])
    dropped = our_amdegroot(invalid="drop")(predictions, [target])
    alone = our_amdegroot()(predictions, [target[:1]])
    assert [float(x) for x in dropped] == [float(x) for x in alone]

    labels = torch.tensor([3, 2])
    assert not sgrvinod.MultiBoxLoss(toy.priors)(
        toy.deltas, toy.logits, [boxes], [labels]
    ).isfinite()
    with pytest.raises(ValueError, match=r"targets\[0\]\['boxes'\]\[1\] is .*invalid='drop'"):
        compat.sgrvinod.MultiBoxLoss(toy.priors)(toy.deltas, toy.logits, [boxes], [labels])
    ours = compat.sgrvinod.MultiBoxLoss(toy.priors, invalid="drop")
    assert ours(toy.deltas, toy.logits, [boxes], [labels]) == ours(
        toy.deltas, toy.logits, [toy.box], [toy.label]
    )


def test_a_box_without_area_in_dense_targets(toy):
    """Its rows train nothing: neither as an object nor as background."""
    labels = torch.tensor([[0, 2, 0, 1, 0, 0]])
    boxes = toy.priors.clone()
    boxes[3, 2] = 0
    ploc, plabel = toy.deltas.transpose(1, 2), toy.logits.transpose(1, 2)
    arguments = ploc, plabel, boxes.t()[None], labels
    assert not nvidia.Loss(toy.dboxes)(*arguments).isfinite()
    loss = compat.nvidia.Loss(toy.dboxes)(*arguments)
    loss.backward()
    assert not toy.deltas.grad[0, 3].any()
    assert not toy.logits.grad[0, 3].any()
    without = [0, 1, 2, 4, 5]
    healthy = compat.nvidia.Loss(nvidia.DefaultBoxes(toy.priors[without]))
    expected = healthy(
        ploc[..., without], plabel[..., without], boxes[without].t()[None], labels[:, without]
    )
    torch.testing.assert_close(loss, expected)

    offsets = torch.zeros(1, P, 4)
    offsets[0, 3, 2] = -math.inf
    arguments = toy.logits, toy.deltas, labels, offsets
    assert not all(loss.isfinite() for loss in THEIR_LUFFICC(*arguments))
    assert all(loss.isfinite() for loss in compat.lufficc.MultiBoxLoss(3)(*arguments))


def test_a_label_out_of_range(toy):
    target = torch.cat([toy.box, torch.tensor([[C - 1.0]])], 1)
    predictions = toy.deltas, toy.logits, toy.priors
    with pytest.raises((IndexError, RuntimeError)):
        THEIR_AMDEGROOT(predictions, [target])
    message = rf"targets\[0\]\['labels'\]\[0\] is {C - 1}: .* less than num_classes = {C - 1}"
    with pytest.raises(ValueError, match=message):
        our_amdegroot()(predictions, [target])

    arguments = toy.deltas, toy.logits, [toy.box], [torch.tensor([C])]
    with pytest.raises((IndexError, RuntimeError)):
        sgrvinod.MultiBoxLoss(toy.priors)(*arguments)
    with pytest.raises(ValueError, match=rf"\['labels'\]\[0\] is {C}: .* num_classes = {C}"):
        compat.sgrvinod.MultiBoxLoss(toy.priors)(*arguments)


def test_a_dense_label_out_of_range(toy):
    labels = torch.tensor([[0, 1, 0, C, 0, 0]])
    arguments = toy.logits, toy.deltas, labels, torch.zeros(1, P, 4)
    with pytest.raises((IndexError, RuntimeError)):
        THEIR_LUFFICC(*arguments)
    with pytest.raises(ValueError, match=rf"labels\[0, 3\] is {C}: expected less than {C}"):
        compat.lufficc.MultiBoxLoss(3)(*arguments)


def test_an_object_labelled_as_background(toy):
    """Theirs trains on it as background, without a word."""
    arguments = toy.deltas, toy.logits, [toy.box], [torch.tensor([0])]
    assert sgrvinod.MultiBoxLoss(toy.priors)(*arguments).isnan()
    with pytest.raises(ValueError, match=r"\['labels'\]\[0\] is 0, the background"):
        compat.sgrvinod.MultiBoxLoss(toy.priors)(*arguments)


def test_logits_far_below_the_largest_of_the_batch(toy):
    """Theirs takes the worst row for the easiest; the loss of the hardest rows tells."""
    logits = torch.zeros(1, P, C)
    logits[0, :, 0] = 120.0  # sure of the background, on all rows but
    logits[0, 4] = torch.tensor([-20.0, 0.0, 0.0, 0.0, 0.0])  # this one, which is sure of objects
    toy.logits = logits.requires_grad_()
    target = torch.cat([toy.box, torch.tensor([[2.0]])], 1)
    predictions = toy.deltas, toy.logits, toy.priors
    _, loss = our_amdegroot()(predictions, [target])
    _, expected = lufficc_on(toy)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    _, theirs = THEIR_AMDEGROOT(predictions, [target])
    assert theirs < expected - 10


def lufficc_on(toy: SimpleNamespace) -> tuple[Tensor, Tensor]:
    """The original of lufficc, which computes a log-softmax of each row by itself."""
    locations, labels = lufficc.SSDTargetTransform(toy.priors)(toy.box, toy.label)
    losses: tuple[Tensor, Tensor] = THEIR_LUFFICC(
        toy.logits, toy.deltas, labels[None], locations[None]
    )
    return losses


def test_many_positives_count_once(toy):
    """Their first releases added the mask of ranks to the positives': its 2 ran over them."""
    labels = torch.tensor([[1, 2, 3, 4, 0, 0]])
    ploc, plabel = toy.deltas.transpose(1, 2), toy.logits.transpose(1, 2)
    arguments = ploc, plabel, toy.priors.t()[None], labels
    loss = compat.nvidia.Loss(toy.dboxes)(*arguments)
    rows = F.cross_entropy(toy.logits[0], labels[0], reduction="none")
    boxes = F.smooth_l1_loss(toy.deltas, torch.zeros(1, P, 4), reduction="none")[0, :4].sum()
    torch.testing.assert_close(loss, (boxes + rows.sum()) / 4)
    torch.testing.assert_close(loss, nvidia.Loss(toy.dboxes)(*arguments))
    positive = labels[0] > 0
    rank = rows.masked_fill(positive, 0).argsort(descending=True).argsort()
    weight = positive.float() + (rank < min(3 * 4, P)).float()
    assert (boxes + (weight * rows).sum()) / 4 > loss + 0.1


def test_two_objects_that_claim_one_prior(toy):
    """The last one has it, in every call: by index on the CPU, unordered on CUDA in theirs."""
    boxes = toy.priors[:1].clone()
    boxes = amdegroot.point_form(torch.cat([boxes, boxes]))
    labels = torch.tensor([2, 4])
    found = compat.nvidia.Encoder(toy.dboxes).encode(boxes, labels)[1]
    assert found.tolist() == [4] + [0] * (P - 1)


def test_decode_batch_leaves_its_input(toy):
    deltas, logits = toy.deltas.detach().transpose(1, 2), toy.logits.detach().transpose(1, 2)
    before = deltas.clone()
    compat.nvidia.Encoder(toy.dboxes).decode_batch(deltas, logits)
    assert deltas.equal(before)


def test_decode_batch_without_detections(toy):
    nothing = torch.full((1, C, P), -50.0)
    nothing[:, 0] = 50
    ((boxes, labels, scores),) = compat.nvidia.Encoder(toy.dboxes).decode_batch(
        torch.zeros(1, 4, P), nothing
    )
    assert (boxes.shape, labels.shape, scores.shape) == ((0, 4), (0,), (0,))


def test_wrong_shapes_are_named(toy):
    with pytest.raises(ValueError, match=r"predictions: expected logits of 5 classes"):
        our_amdegroot()((toy.deltas, toy.logits[..., :3], toy.priors), [torch.zeros(0, 5)])
    with pytest.raises(ValueError, match=r"targets\[0\]: expected \(n, 5\).*got \(1, 4\)"):
        our_amdegroot()((toy.deltas, toy.logits, toy.priors), [toy.box])
    with pytest.raises(ValueError, match=r"targets: expected one for each of the 1 images, got 2"):
        our_amdegroot()((toy.deltas, toy.logits, toy.priors), [torch.zeros(0, 5)] * 2)
    with pytest.raises(ValueError, match=r"boxes, labels: .* 1 images, got 1 and 0"):
        compat.sgrvinod.MultiBoxLoss(toy.priors)(toy.deltas, toy.logits, [toy.box], [])
    with pytest.raises(ValueError, match=r"labels: expected \(1, 6\).*got \(6,\)"):
        compat.lufficc.MultiBoxLoss(3)(
            toy.logits, toy.deltas, torch.zeros(P, dtype=torch.long), toy.deltas
        )
    with pytest.raises(ValueError, match=r"labels_in: expected \(1,\), one for each box"):
        compat.nvidia.Encoder(toy.dboxes).encode(toy.box, NO_LABELS)


ROWS = {
    "an image without objects": (
        test_amdegroot_without_objects,
        test_sgrvinod_without_objects,
        test_nvidia_encode_without_objects,
    ),
    "no positive in the batch": (
        test_dense_losses_without_positives,
        test_nvidia_loss_without_positives,
        test_box_targets_without_positives,
    ),
    "a box without area, or not finite": (
        test_a_box_without_area,
        test_a_box_without_area_in_dense_targets,
    ),
    "a label out of range": (test_a_label_out_of_range, test_a_dense_label_out_of_range),
    "label 0 for an object": (test_an_object_labelled_as_background,),
    "an object that overlaps no prior": (test_an_object_that_overlaps_no_prior_takes_none,),
    "logits 104 below the largest of the batch": (test_logits_far_below_the_largest_of_the_batch,),
    "positives on more than a quarter of an image's rows": (test_many_positives_count_once,),
    "two objects that claim one prior": (test_two_objects_that_claim_one_prior,),
    "decode_batch": (test_decode_batch_leaves_its_input,),
}


def test_every_row_of_the_documented_table_has_its_tests():
    """The first column of the table in `ssd_fast.compat`, word for word and in its order."""
    lines = compat.__doc__.splitlines()
    rule = next(i for i, line in enumerate(lines) if line.lstrip().startswith("-----"))
    width = lines[rule].index("-  -")
    column = " ".join(line[:width] for line in lines[rule + 1 :]).split()
    assert column == " ".join(ROWS).split()
    assert all(callable(test) for tests in ROWS.values() for test in tests)
