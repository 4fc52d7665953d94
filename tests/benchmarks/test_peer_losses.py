# SPDX-License-Identifier: BSD-3-Clause
"""The naive designs match and weigh as published: one definition, and where each one differs."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import SMALL_CLASSES as C
from benchmarks.cases import small_problem
from benchmarks.peers import (
    amdegroot,
    lufficc,
    nvidia,
    sgrvinod,
    torchvision_ssd,
    vectorized,
)


def defined_match(boxes: Tensor, corners: Tensor) -> Tensor:
    """Object of each prior or -1, by IoU >= 0.5, then claims in order; in float64."""
    iou = torchvision_ssd.box_iou(boxes.double(), corners.double())
    match = torch.where(iou.amax(0) >= 0.5, iou.argmax(0), -1)
    for n in range(boxes.size(0)):
        match[iou[n].argmax()] = n
    return match


def defined_sums(problem: SimpleNamespace) -> tuple[Tensor, Tensor, Tensor]:
    """Per image: smooth-L1 sum, cross-entropy sum of positives and 3:1 hardest, positives."""
    rows = []
    for i, (boxes, labels) in enumerate(zip(problem.boxes, problem.labels, strict=True)):
        match = defined_match(boxes, problem.corners)
        positive = match >= 0
        owner = boxes.double()[match[positive]]
        prior = problem.priors.double()[positive]
        centre = ((owner[:, :2] + owner[:, 2:]) / 2 - prior[:, :2]) / prior[:, 2:] / 0.1
        size = ((owner[:, 2:] - owner[:, :2]) / prior[:, 2:]).log() / 0.2
        offsets = torch.cat([centre, size], 1)
        box = F.smooth_l1_loss(problem.deltas[i].double()[positive], offsets, reduction="sum")
        classes = torch.where(positive, labels[match.clamp(min=0)], 0)
        loss = F.cross_entropy(problem.logits[i].double(), classes, reduction="none")
        hardest = loss[~positive].sort(descending=True).values[: 3 * int(positive.sum())]
        rows.append(torch.stack([box, loss[positive].sum() + hardest.sum(), positive.sum()]))
    box_sums, class_sums, positives = torch.stack(rows).unbind(1)
    return box_sums, class_sums, positives


def targets_of(problem: SimpleNamespace) -> list[dict[str, Tensor]]:
    return [
        {"boxes": boxes, "labels": labels}
        for boxes, labels in zip(problem.boxes, problem.labels, strict=True)
    ]


def amdegroot_targets(problem: SimpleNamespace) -> list[Tensor]:
    return [
        torch.cat([boxes, (labels - 1)[:, None].float()], 1)
        for boxes, labels in zip(problem.boxes, problem.labels, strict=True)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_every_matcher_agrees_where_nothing_is_close(seed: int) -> None:
    problem = small_problem(seed, images=1)
    boxes, labels = problem.boxes[0], problem.labels[0]
    match = defined_match(boxes, problem.corners)
    expected = torch.where(match >= 0, labels[match.clamp(min=0)], 0)

    loc_t, conf_t = torch.empty(1, 500, 4), torch.empty(1, 500, dtype=torch.long)
    amdegroot.match(0.5, boxes, problem.priors, (0.1, 0.2), labels - 1, loc_t, conf_t, 0)
    assert conf_t[0].tolist() == expected.tolist()
    assert lufficc.assign_priors(boxes, labels, problem.corners, 0.5)[1].tolist() == (
        expected.tolist()
    )
    encoder = nvidia.Encoder(nvidia.DefaultBoxes(problem.priors))
    assert encoder.encode(boxes, labels)[1].tolist() == expected.tolist()
    assert sgrvinod.MultiBoxLoss(problem.priors)._match(boxes, labels)[1].tolist() == (
        expected.tolist()
    )
    (matched,) = torchvision_ssd.match_targets(targets_of(problem), [problem.corners])
    assert matched.tolist() == match.tolist()


def test_an_overlap_of_exactly_one_half_matches_everywhere_but_at_nvidia() -> None:
    priors = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.25, 0.125, 0.5, 0.25]])
    box, label = torch.tensor([[0.0, 0.0, 0.5, 0.25]]), torch.tensor([3])
    loc_t, conf_t = torch.empty(1, 2, 4), torch.empty(1, 2, dtype=torch.long)
    amdegroot.match(0.5, box, priors, (0.1, 0.2), label - 1, loc_t, conf_t, 0)
    assert conf_t[0].tolist() == [3, 3]
    assert sgrvinod.MultiBoxLoss(priors)._match(box, label)[1].tolist() == [3, 3]
    corners = amdegroot.point_form(priors)
    iou = torchvision_ssd.box_iou(box, corners)
    assert iou[0, 0] == 0.5
    assert torchvision_ssd.ssd_matcher(iou).tolist() == [0, 0]
    encoder = nvidia.Encoder(nvidia.DefaultBoxes(priors))
    assert encoder.encode(box, label)[1].tolist() == [0, 3]
    assert lufficc.assign_priors(box, label, corners, 0.5)[1].tolist() == [0, 3]  # 1e-5 below


def test_the_last_of_two_claimants_wins_and_the_first_may_be_left_without() -> None:
    priors = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]])
    corners = amdegroot.point_form(priors)
    boxes = torch.tensor([[0.3, 0.3, 0.7, 0.69], [0.3, 0.3, 0.7, 0.6]])
    labels = torch.tensor([1, 2])
    loc_t, conf_t = torch.empty(1, 2, 4), torch.empty(1, 2, dtype=torch.long)
    amdegroot.match(0.5, boxes, priors, (0.1, 0.2), labels - 1, loc_t, conf_t, 0)
    assert conf_t[0].tolist() == [2, 0]
    assert lufficc.assign_priors(boxes, labels, corners, 0.5)[1].tolist() == [2, 0]
    encoder = nvidia.Encoder(nvidia.DefaultBoxes(priors))
    assert encoder.encode(boxes, labels)[1].tolist() == [2, 0]
    matched = torchvision_ssd.ssd_matcher(torchvision_ssd.box_iou(boxes, corners))
    assert matched.tolist() == [1, -1]


def test_an_object_that_overlaps_nothing_is_forced_on_prior_0() -> None:
    priors = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.4, 0.4, 0.1, 0.1]])
    box, label = torch.tensor([[0.8, 0.8, 0.9, 0.9]]), torch.tensor([1])
    corners = amdegroot.point_form(priors)
    assert torchvision_ssd.ssd_matcher(torchvision_ssd.box_iou(box, corners)).tolist() == [0, -1]
    assert lufficc.assign_priors(box, label, corners, 0.5)[1].tolist() == [1, 0]


@pytest.mark.parametrize(("pixels", "overlap"), [(9, 0.989), (3, 0.909)])
def test_lufficc_adds_an_epsilon_that_small_boxes_feel(pixels: int, overlap: float) -> None:
    box = torch.tensor([[0.0, 0.0, pixels / 300, pixels / 300]])
    assert float(lufficc.iou_of(box, box)) == pytest.approx(overlap, abs=5e-4)


def test_an_image_without_objects_crashes_all_but_torchvision() -> None:
    problem = small_problem(0, images=1)
    none, no_labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
    predictions = (problem.deltas, problem.logits, problem.priors)
    with pytest.raises(IndexError):
        amdegroot.MultiBoxLoss(C)(predictions, [torch.zeros(0, 5)])
    with pytest.raises(IndexError):
        lufficc.SSDTargetTransform(problem.priors)(none, no_labels)
    with pytest.raises(IndexError):
        nvidia.Encoder(nvidia.DefaultBoxes(problem.priors)).encode(none, no_labels)
    with pytest.raises(IndexError):
        sgrvinod.MultiBoxLoss(problem.priors)(problem.deltas, problem.logits, [none], [no_labels])
    (matched,) = torchvision_ssd.match_targets(
        [{"boxes": none, "labels": no_labels}], [problem.corners]
    )
    assert matched.tolist() == [-1] * 500


@pytest.mark.parametrize("seed", range(3))
def test_losses_are_the_definition_in_each_normalisation(seed: int) -> None:
    problem = small_problem(seed)
    box, cls, positives = defined_sums(problem)
    by_batch = [float(box.sum() / positives.sum()), float(cls.sum() / positives.sum())]

    predictions = (problem.deltas, problem.logits, problem.priors)
    loss_l, loss_c = amdegroot.MultiBoxLoss(C)(predictions, amdegroot_targets(problem))
    assert [float(loss_l), float(loss_c)] == pytest.approx(by_batch, rel=1e-5)

    transform = lufficc.SSDTargetTransform(problem.priors)
    encoded = [transform(b, n) for b, n in zip(problem.boxes, problem.labels, strict=True)]
    locations, labels = (torch.stack(part) for part in zip(*encoded, strict=True))
    losses = lufficc.MultiBoxLoss()(problem.logits, problem.deltas, labels, locations)
    assert [float(loss) for loss in losses] == pytest.approx(by_batch, rel=1e-5)

    anchors = [problem.corners * 300] * 3
    targets = [{"boxes": t["boxes"] * 300, "labels": t["labels"]} for t in targets_of(problem)]
    matched = torchvision_ssd.match_targets(targets, anchors)
    head = {"bbox_regression": problem.deltas, "cls_logits": problem.logits}
    result = torchvision_ssd.compute_loss(targets, head, anchors, matched)
    assert [float(loss) for loss in result.values()] == pytest.approx(by_batch, rel=1e-5)

    padded = (torch.stack(problem.boxes), torch.stack(problem.labels))
    losses = vectorized.multibox_loss(problem.deltas, problem.logits, problem.corners, *padded)
    assert [float(loss) for loss in losses] == pytest.approx(by_batch, rel=1e-5)

    dboxes = nvidia.DefaultBoxes(problem.priors)
    encoded = [
        nvidia.Encoder(dboxes).encode(b, n)
        for b, n in zip(problem.boxes, problem.labels, strict=True)
    ]
    locations, labels = (torch.stack(part) for part in zip(*encoded, strict=True))
    loss = nvidia.Loss(dboxes)(
        problem.deltas.transpose(1, 2), problem.logits.transpose(1, 2),
        locations.transpose(1, 2), labels,
    )  # fmt: skip
    by_image = ((box + cls) / positives).mean()
    assert float(loss) == pytest.approx(float(by_image), rel=1e-5)
    assert abs(float(by_image) / sum(by_batch) - 1) > 1e-4  # the normalisation is a difference


def test_sgrvinod_averages_a_plain_l1_over_four_coordinates() -> None:
    problem = small_problem(1)
    criterion = sgrvinod.MultiBoxLoss(problem.priors)
    matched = [criterion._match(b, n) for b, n in zip(problem.boxes, problem.labels, strict=True)]
    locs, classes = (torch.stack(part) for part in zip(*matched, strict=True))
    positive = classes > 0
    l1 = (problem.deltas[positive] - locs[positive]).abs().sum() / (4 * positive.sum())
    _, cls, positives = defined_sums(problem)
    total = criterion(problem.deltas, problem.logits, problem.boxes, problem.labels)
    assert float(total) == pytest.approx(float(l1 + cls.sum() / positives.sum()), rel=1e-5)


def test_a_batch_without_positives_is_nan_at_lufficc_and_zero_at_torchvision_and_nvidia() -> None:
    problem = small_problem(0)
    labels = torch.zeros(3, 500, dtype=torch.long)
    regression, classification = lufficc.MultiBoxLoss()(
        problem.logits, problem.deltas, labels, problem.deltas
    )
    assert math.isnan(regression)
    assert math.isnan(classification)

    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    anchors = [problem.corners] * 3
    head = {"bbox_regression": problem.deltas, "cls_logits": problem.logits}
    matched = torchvision_ssd.match_targets([empty] * 3, anchors)
    losses = torchvision_ssd.compute_loss([empty] * 3, head, anchors, matched)
    assert [float(loss) for loss in losses.values()] == [0, 0]

    dboxes = nvidia.DefaultBoxes(problem.priors)
    background = dboxes("xywh").transpose(0, 1).expand(3, 4, 500)
    loss = nvidia.Loss(dboxes)(
        problem.deltas.transpose(1, 2), problem.logits.transpose(1, 2), background, labels
    )
    assert float(loss) == 0


def test_padding_neither_matches_nor_poisons_the_vectorized_loss() -> None:
    problem = small_problem(2)
    boxes, labels = torch.stack(problem.boxes), torch.stack(problem.labels)
    boxes[1], labels[1] = 0, 0  # an image without objects
    boxes, labels = torch.cat([boxes, 0 * boxes], 1), torch.cat([labels, 0 * labels], 1)
    owner, positive = vectorized.match(problem.corners, boxes, labels, 0.5)
    for image in (0, 2):
        match = defined_match(problem.boxes[image], problem.corners)
        assert positive[image].tolist() == (match >= 0).tolist()
        assert owner[image][match >= 0].tolist() == match[match >= 0].tolist()
    assert not positive[1].any()
    deltas = problem.deltas.requires_grad_()
    loss, _ = vectorized.multibox_loss(deltas, problem.logits, problem.corners, boxes, labels)
    (gradient,) = torch.autograd.grad(loss, deltas)
    assert gradient.isfinite().all()
    assert not gradient[~positive].any()


def test_one_maximum_for_the_batch_underflows_amdegroot_keys_of_low_rows() -> None:
    low, high = torch.zeros(1, C), torch.full((1, C), 200.0)
    assert amdegroot.log_sum_exp(torch.cat([low, high]))[0] == -math.inf
    assert float(amdegroot.log_sum_exp(low)) == pytest.approx(math.log(C))


def test_torchvision_counts_positives_twice_when_negatives_run_out_and_nvidia_does_not() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 4, C, generator=generator)
    labels = torch.tensor([[1, 2, 0, 0]])
    loss = F.cross_entropy(logits[0], labels[0], reduction="none")
    box = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(4, 1)
    target = {"boxes": box[:2], "labels": labels[0, :2]}
    head = {"bbox_regression": torch.zeros(1, 4, 4), "cls_logits": logits}
    matched = [torch.tensor([0, 1, -1, -1])]
    result = torchvision_ssd.compute_loss([target], head, [box], matched)
    twice = (loss.sum() + loss[:2].sum()) / 2
    assert float(result["classification"]) == pytest.approx(float(twice))

    dboxes = nvidia.DefaultBoxes(torch.tensor([[0.5, 0.5, 1.0, 1.0]]).repeat(4, 1))
    own = dboxes("xywh").transpose(0, 1)[None]
    total = nvidia.Loss(dboxes)(torch.zeros(1, 4, 4), logits.transpose(1, 2), own, labels)
    assert float(total) == pytest.approx(float(loss.sum() / 2))
