# SPDX-License-Identifier: BSD-3-Clause
"""The naive designs decide and weigh as published: one definition, and where each one differs."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers import (
    amdegroot,
    lufficc,
    nvidia,
    qfgaohao,
    sgrvinod,
    torchvision_ssd,
    vectorized,
)
from benchmarks.peers.torchvision_installed import installed_torchvision

C = 5


def small_problem(seed: int, images: int = 3) -> SimpleNamespace:
    """500 random priors, a few objects an image near some of them, random predictions."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    priors = torch.cat([uniform(500, 2), 0.05 + 0.4 * uniform(500, 2)], 1)
    boxes, labels = [], []
    for _ in range(images):
        near = priors[torch.randperm(500, generator=generator)[:4]]
        boxes.append(amdegroot.point_form(near * (1 + 0.1 * uniform(4, 4))))
        labels.append(torch.randint(1, C, (4,), generator=generator))
    return SimpleNamespace(
        priors=priors,
        corners=amdegroot.point_form(priors),
        boxes=boxes,
        labels=labels,
        deltas=torch.randn(images, 500, 4, generator=generator),
        logits=2 * torch.randn(images, 500, C, generator=generator),
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


# Matching ----------------------------------------------------------------------------------------


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


# Losses ------------------------------------------------------------------------------------------


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


# Detection ---------------------------------------------------------------------------------------


def greedy_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Kept indices, best first: the definition, for peers that call a compiled NMS."""
    iou = torchvision_ssd.box_iou(boxes, boxes)
    kept: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if all(iou[j, i] <= iou_threshold for j in kept):
            kept.append(i)
    return torch.tensor(kept, dtype=torch.long)


def batched_greedy_nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    keep = [
        (labels == label).nonzero()[:, 0][
            greedy_nms(boxes[labels == label], scores[labels == label], threshold)
        ]
        for label in range(1, int(labels.max()) + 1)
    ]
    together = torch.cat([torch.zeros(0, dtype=torch.long), *keep])
    return together[scores[together].argsort(descending=True, stable=True)]


def defined_detections(problem: SimpleNamespace, image: int, threshold: float) -> list[list[float]]:
    """Rows (label, score, corners) above `threshold` that per-class NMS at 0.45 keeps, sorted."""
    scores = problem.logits[image].softmax(-1)
    boxes = amdegroot.decode(problem.deltas[image], problem.priors, (0.1, 0.2))
    rows = []
    for label in range(1, C):
        candidates = (scores[:, label] > threshold).nonzero()[:, 0]
        keep = candidates[greedy_nms(boxes[candidates], scores[candidates, label], 0.45)]
        rows += [[label, float(scores[k, label]), *boxes[k].tolist()] for k in keep.tolist()]
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def as_rows(boxes: Tensor, labels: Tensor, scores: Tensor) -> list[list[float]]:
    rows = torch.cat([labels[:, None].to(boxes), scores[:, None], boxes], 1).tolist()
    return sorted(rows, key=lambda row: (-row[1], row[0]))


@pytest.fixture(scope="module")
def confident() -> SimpleNamespace:
    """Predictions where about one prior in ten is an object, boxes near their priors."""
    problem = small_problem(7, images=2)
    problem.logits[:, :, 0] += 4
    problem.deltas = problem.deltas * 0.3
    return problem


def test_detections_are_the_definition_at_each_threshold(confident: SimpleNamespace) -> None:
    probabilities = confident.logits.softmax(-1)
    detected = amdegroot.Detect(C, top_k=500)(confident.deltas, probabilities, confident.priors)
    sgr = sgrvinod.detect_objects(confident.deltas, confident.logits, confident.priors, top_k=9999)
    for image in range(2):
        expected = torch.tensor(defined_detections(confident, image, 0.01))
        assert expected.size(0) > 100
        padded = detected[image].flatten(0, 1)
        labels = torch.arange(C).repeat_interleave(500)
        found = padded[:, 0] > 0
        rows = as_rows(padded[found, 1:], labels[found], padded[found, 0])
        torch.testing.assert_close(torch.tensor(rows), expected)
        rows = as_rows(sgr[0][image], sgr[1][image], sgr[2][image])
        torch.testing.assert_close(torch.tensor(rows), expected)

    boxes = torch.stack(
        [amdegroot.decode(deltas, confident.priors, (0.1, 0.2)) for deltas in confident.deltas]
    )
    best = lufficc.PostProcessor(greedy_nms)(probabilities, boxes)[0]
    expected = torch.tensor(defined_detections(confident, 0, 0.01))[:100]
    expected[:, 2:] *= 300
    torch.testing.assert_close(torch.tensor(as_rows(*best)), expected)


def test_nvidia_wants_5_percent_and_answers_in_ascending_order(confident: SimpleNamespace) -> None:
    encoder = nvidia.Encoder(nvidia.DefaultBoxes(confident.priors))
    offsets, logits = confident.deltas.transpose(1, 2), confident.logits.transpose(1, 2)
    before = offsets.clone()
    for image, result in enumerate(encoder.decode_batch(offsets, logits, max_output=9999)):
        expected = torch.tensor(defined_detections(confident, image, 0.05))
        torch.testing.assert_close(torch.tensor(as_rows(*result)), expected)
        assert (result[2].diff() >= 0).all()
    assert torch.equal(offsets, before)
    assert encoder.decode_batch(offsets, logits, max_output=7)[0][2].size(0) == 7


def test_qfgaohao_suppresses_with_its_epsilon(confident: SimpleNamespace) -> None:
    boxes, labels, scores = qfgaohao.predict(
        confident.logits[:1], confident.deltas[:1], confident.priors, candidate_size=500
    )
    expected = torch.tensor(defined_detections(confident, 0, 0.01))
    expected[:, 2:] *= 300
    torch.testing.assert_close(torch.tensor(as_rows(boxes, labels, scores)), expected)
    twin = torch.tensor([[0.0, 0.0, 0.01, 0.01, 0.9], [0.0, 0.0, 0.01, 0.01, 0.8]])
    assert qfgaohao.hard_nms(twin, 0.95).size(0) == 2  # its own IoU is 0.909 to a 3 pixel box
    assert qfgaohao.hard_nms(twin, 0.9).size(0) == 1


def test_amdegroot_limits_each_class_but_not_the_image(confident: SimpleNamespace) -> None:
    probabilities = confident.logits.softmax(-1)
    detected = amdegroot.Detect(C, top_k=20)(confident.deltas, probabilities, confident.priors)
    found = detected[..., 0] > 0
    assert found.sum(2).max() <= 20
    assert found.sum((1, 2)).min() > 20
    assert (detected[:, 0] == 0).all()


def test_an_image_without_detections() -> None:
    logits = torch.zeros(1, 6, C)
    logits[..., 0] = 20
    priors, deltas = torch.full((6, 4), 0.3), torch.zeros(1, 6, 4)
    boxes, labels, scores = sgrvinod.detect_objects(deltas, logits, priors)
    assert boxes[0].tolist() == [[0, 0, 1, 1]]
    assert (labels[0].tolist(), scores[0].tolist()) == ([0], [0])
    encoder = nvidia.Encoder(nvidia.DefaultBoxes(priors))
    (result,) = encoder.decode_batch(deltas.transpose(1, 2), logits.transpose(1, 2))
    assert [part.numel() for part in result] == [0, 0, 0]
    assert [part.numel() for part in qfgaohao.predict(logits, deltas, priors)] == [0, 0, 0]
    assert not amdegroot.Detect(C)(deltas, logits.softmax(-1), priors).any()


def test_torchvision_clips_before_suppressing() -> None:
    corners = torch.tensor([[-90.0, 0.0, 10.0, 100.0], [-10.0, 0.0, 10.0, 100.0]])
    logits = torch.tensor([[[0.0, 5.0], [0.0, 4.0]]])
    head = {"bbox_regression": torch.zeros(1, 2, 4), "cls_logits": logits}
    (result,) = torchvision_ssd.postprocess_detections(
        head, [corners], [(300, 300)], batched_greedy_nms
    )
    assert result["boxes"].tolist() == [[0, 0, 10, 100]]  # unclipped, their IoU is 0.2


def test_nvidia_default_boxes_are_8732_box_major() -> None:
    dboxes = nvidia.dboxes300_coco()
    xywh = dboxes("xywh")
    assert xywh.shape == (8732, 4)
    assert (xywh[: 38 * 38, 2:] == xywh[0, 2:]).all()  # the whole first plane has one shape
    torch.testing.assert_close(xywh[1, 0] - xywh[0, 0], torch.tensor(8 / 300))  # x runs fastest
    torch.testing.assert_close(amdegroot.point_form(xywh), dboxes("ltrb"))


# Against the installed torchvision ---------------------------------------------------------------


@pytest.mark.usefixtures("torchvision")
def test_our_torchvision_is_torchvision() -> None:
    installed = installed_torchvision()
    assert installed is not None
    problem = small_problem(3)
    anchors = [problem.corners * 300] * 3
    targets = [{"boxes": t["boxes"] * 300, "labels": t["labels"]} for t in targets_of(problem)]
    targets[1] = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    head = {"bbox_regression": problem.deltas, "cls_logits": problem.logits}

    matched = torchvision_ssd.match_targets(targets, anchors)
    assert torch.equal(torch.stack(matched), torch.stack(installed.match(targets, anchors)))

    def losses_and_gradients(compute_loss: Callable[..., dict[str, Tensor]]) -> list[Tensor]:
        leaves = {key: value.clone().requires_grad_() for key, value in head.items()}
        losses = list(compute_loss(targets, leaves, anchors, matched).values())
        return [*losses, *torch.autograd.grad(torch.stack(losses).sum(), list(leaves.values()))]

    torch.testing.assert_close(
        losses_and_gradients(torchvision_ssd.compute_loss),
        losses_and_gradients(installed.compute_loss),
    )

    shapes = [(300, 300)] * 3
    detections = torchvision_ssd.postprocess_detections(
        head, anchors, shapes, installed.batched_nms
    )
    torch.testing.assert_close(detections, installed.postprocess(head, anchors, shapes))
