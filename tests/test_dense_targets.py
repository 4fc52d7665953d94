# SPDX-License-Identifier: BSD-3-Clause
"""DenseTargets: what a loader matched trains as what the loss would have matched."""

import pytest
import torch

from ssd_fast import DenseTargets, MultiBoxLoss, Targets
from ssd_fast.ops import match
from ssd_fast.testing import random_boxes, random_objects, seeded

PRIORS = random_boxes(80, seeded(0))
MATCHING = {"iou_threshold": 0.4, "low_threshold": 0.3}


def _heads(classes: int = 5) -> list[torch.Tensor]:
    generator = seeded(1)
    return [torch.randn(3, 80, k, generator=generator, requires_grad=True) for k in (4, classes)]


def _dense(objects, background: int = 0) -> DenseTargets:
    """What `match` says, prior by prior."""
    matches = match(PRIORS, objects.boxes, objects.offsets, **MATCHING)
    row = objects.offsets[:-1, None] + matches.clamp(min=0)
    other = torch.where(matches == -1, background, -1)
    return DenseTargets(objects.labels[row].where(matches >= 0, other), objects.boxes[row])


@pytest.mark.parametrize("background", [0, 4, -1])
@pytest.mark.parametrize("normalizer", ["positives", "world"])
def test_equals_the_objects_it_came_from(background, normalizer) -> None:
    """Losses and gradients bit for bit; ignored priors train nothing."""
    objects = random_objects(3, seeded(2), counts=(1, 5), classes=5)
    if background:
        objects = objects._replace(labels=objects.labels - 1)
    loss = MultiBoxLoss(PRIORS, background_index=background, normalizer=normalizer, **MATCHING)
    heads = _heads()
    results = []
    for targets in (Targets(*objects), _dense(objects, background % 5)):
        losses = loss(*heads, targets)
        total = losses["bbox_regression"] + losses["classification"]
        results.append((*losses.values(), *torch.autograd.grad(total, heads)))
    assert results[0][0] > 0
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_what_cannot_train_is_ignored() -> None:
    """Other negative labels, classes that the loss does not have, boxes without area."""
    labels = torch.tensor([[1, -1, -7, 5, 2, 0, 1]])
    boxes = torch.rand(1, 7, 4) * 0.1 + torch.tensor([0.1, 0.1, 0.5, 0.5])
    boxes[0, 4] = torch.nan
    boxes[0, 5] = torch.inf
    boxes[0, 6, 2] = 0
    heads = [torch.randn(1, 7, k, requires_grad=True) for k in (4, 5)]
    loss = MultiBoxLoss(PRIORS[:7], min_negatives=7)
    losses = loss(*heads, DenseTargets(labels, boxes))
    gradients = torch.autograd.grad(sum(losses.values()), heads)
    assert gradients[0].ne(0).any(2).tolist() == [[True] + [False] * 6]
    assert gradients[1].ne(0).any(2).tolist() == [[True, *[False] * 4, True, False]]


def test_shares_the_memory_of_its_boxes_and_moves() -> None:
    """No copy on the way to the operator."""
    targets = DenseTargets(torch.zeros(2, 3).long(), torch.rand(2, 3, 4))
    objects, matches = targets.as_matches()
    assert objects.boxes.data_ptr() == targets.boxes.data_ptr()
    assert objects.offsets.tolist() == [0, 3, 6]
    assert matches.tolist() == [[-1] * 3] * 2
    assert targets.to("meta").boxes.is_meta
    none = DenseTargets(torch.zeros(2, 0).long(), torch.zeros(2, 0, 4)).as_matches()
    assert none[0].offsets.tolist() == [0, 0, 0]


def test_rejects() -> None:
    """Wrong shapes and dtypes, and matches twice."""
    labels, boxes = torch.zeros(3, 80).long(), torch.zeros(3, 80, 4)
    loss = MultiBoxLoss(PRIORS)
    for targets, message in (
        (DenseTargets(labels.int(), boxes), r"labels: expected \(B, P\) int64"),
        (DenseTargets(labels[0], boxes), r"labels: expected \(B, P\) int64"),
        (DenseTargets(labels, boxes[:2]), r"boxes: expected \(3, 80, 4\)"),
        (DenseTargets(labels, boxes.double()), "boxes: expected float32"),
        (DenseTargets(labels[:, :9], boxes[:, :9]), r"matches: expected \(3, 80\)"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(*_heads(), targets)
    with pytest.raises(ValueError, match="matches: DenseTargets are matches already"):
        loss(*_heads(), DenseTargets(labels, boxes), matches=labels)
