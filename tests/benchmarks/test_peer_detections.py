# SPDX-License-Identifier: BSD-3-Clause
"""The naive designs detect as published, and our torchvision is the installed one."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from benchmarks.cases import SMALL_CLASSES as C
from benchmarks.cases import small_problem
from benchmarks.peers import (
    amdegroot,
    lufficc,
    nvidia,
    qfgaohao,
    sgrvinod,
    torchvision_ssd,
)
from benchmarks.peers.torchvision_installed import installed_torchvision


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


@pytest.mark.usefixtures("torchvision")
def test_our_torchvision_is_torchvision() -> None:
    installed = installed_torchvision()
    assert installed is not None
    problem = small_problem(3)
    anchors = [problem.corners * 300] * 3
    targets = [
        {"boxes": boxes * 300, "labels": labels}
        for boxes, labels in zip(problem.boxes, problem.labels, strict=True)
    ]
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
