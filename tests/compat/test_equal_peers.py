# SPDX-License-Identifier: BSD-3-Clause
"""On healthy input the compatible classes give the numbers and the gradients of the originals."""

import inspect

import pytest
import torch
from torch import Tensor

from benchmarks.cases import Case, make_case
from benchmarks.peers import amdegroot, lufficc, nvidia, sgrvinod
from ssd_fast import compat
from ssd_fast.testing import Objects, seeded

C = 21
AMDEGROOT_OPTIONS = (C, 0.5, True, 0, True, 3, 0.5, False, False)


def random_case(seed: int) -> Case:
    """Few priors at random places, objects near some of them: decisions may be close."""
    generator = seeded(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    centres, sizes = uniform(400, 2), 0.05 + 0.4 * uniform(400, 2)
    priors = torch.cat([centres - sizes / 2, centres + sizes / 2], 1)
    counts = torch.randint(1, 6, (3,), generator=generator)
    near = torch.randint(400, (int(counts.sum()),), generator=generator)
    boxes = priors[near] + 0.01 * uniform(len(near), 4)
    labels = torch.randint(1, C, (len(near),), generator=generator)
    objects = Objects(boxes, labels, torch.cat([torch.zeros(1).long(), counts.cumsum(0)]))
    deltas = torch.randn(3, 400, 4, generator=generator)
    return Case(objects, priors, deltas, 2 * torch.randn(3, 400, C, generator=generator))


@pytest.fixture(params=["trained", "flat", 0, 1, 2, 3, 4, 5], ids=str)
def case(request) -> Case:
    if isinstance(request.param, int):
        return random_case(request.param)
    return make_case(2, C, flat=request.param == "flat")


def leaves(case: Case, *, transposed: bool = False) -> tuple[Tensor, Tensor]:
    """The network's outputs, fresh leaves of autograd."""
    outputs = case.deltas, case.logits
    if transposed:
        outputs = tuple(x.transpose(1, 2).contiguous() for x in outputs)
    deltas, logits = (x.clone().requires_grad_() for x in outputs)
    return deltas, logits


def assert_same(case: Case, ours, theirs, *, transposed: bool = False) -> None:
    """Losses to 1e-5, gradients of a weighted sum of them to 1e-5 of the largest."""
    results = []
    for losses in (ours, theirs):
        inputs = leaves(case, transposed=transposed)
        found = losses(*inputs)
        found = found if isinstance(found, tuple) else (found,)
        sum((k + 1) * loss for k, loss in enumerate(found)).backward()
        results.append((found, [x.grad for x in inputs]))
    (losses, gradients), (expected, expected_gradients) = results
    for loss, reference in zip(losses, expected, strict=True):
        assert reference > 0
        torch.testing.assert_close(loss, reference, rtol=1e-5, atol=0)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        largest = float(reference.abs().max())
        torch.testing.assert_close(gradient, reference, rtol=1e-5, atol=1e-5 * largest)


def test_amdegroot(case):
    ours = compat.amdegroot.MultiBoxLoss(*AMDEGROOT_OPTIONS)
    theirs = amdegroot.MultiBoxLoss(C)
    assert_same(
        case,
        lambda d, x: ours((d, x, case.priors_xywh), case.amdegroot_targets),
        lambda d, x: theirs((d, x, case.priors_xywh), case.amdegroot_targets),
    )


def dense_targets(case: Case, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Labels (B, P) and locations (B, P, 4) of lufficc's and qfgaohao's loaders."""
    transform = lufficc.SSDTargetTransform(case.priors_xywh, iou_threshold=iou_threshold)
    encoded = [transform(b, n) for b, n in zip(case.boxes, case.labels, strict=True)]
    locations, labels = (torch.stack(part) for part in zip(*encoded, strict=True))
    return labels, locations


def test_lufficc(case):
    targets = dense_targets(case, 0.5)
    ours, theirs = compat.lufficc.MultiBoxLoss(neg_pos_ratio=3), lufficc.MultiBoxLoss(3)
    assert_same(case, lambda d, x: ours(x, d, *targets), lambda d, x: theirs(x, d, *targets))


def test_qfgaohao(case):
    targets = dense_targets(case, 0.45)
    ours = compat.qfgaohao.MultiboxLoss(case.priors_xywh, 0.45, 2, 0.1, 0.2, "cpu")
    theirs = lufficc.MultiBoxLoss(2)
    assert_same(case, lambda d, x: ours(x, d, *targets), lambda d, x: theirs(x, d, *targets))


def test_sgrvinod(case):
    ours = compat.sgrvinod.MultiBoxLoss(case.priors_xywh, alpha=2.0)
    theirs = sgrvinod.MultiBoxLoss(case.priors_xywh, alpha=2.0)
    assert_same(
        case,
        lambda d, x: ours(d, x, case.boxes, case.labels),
        lambda d, x: theirs(d, x, case.boxes, case.labels),
    )


def test_nvidia_loss(case):
    encoder = nvidia.Encoder(case.default_boxes)
    encoded = [encoder.encode(b, n) for b, n in zip(case.boxes, case.labels, strict=True)]
    boxes, labels = (torch.stack(part) for part in zip(*encoded, strict=True))
    gloc = boxes.transpose(1, 2).contiguous()
    ours, theirs = compat.nvidia.Loss(case.default_boxes), nvidia.Loss(case.default_boxes)
    assert_same(
        case,
        lambda d, x: ours(d, x, gloc, labels),
        lambda d, x: theirs(d, x, gloc, labels),
        transposed=True,
    )
    ours.load_state_dict(theirs.state_dict())


def test_nvidia_encode(case):
    ours, theirs = compat.nvidia.Encoder(case.default_boxes), nvidia.Encoder(case.default_boxes)
    for boxes, labels in zip(case.boxes, case.labels, strict=True):
        found, found_labels = ours.encode(boxes, labels)
        expected, expected_labels = theirs.encode(boxes, labels)
        assert found_labels.equal(expected_labels)
        assert found.equal(expected)


@pytest.mark.parametrize("case", ["trained", 0, 1], indirect=True, ids=str)
@pytest.mark.parametrize("options", [{}, {"criteria": 0.5, "max_output": 7}])
def test_nvidia_decode_batch(case, options):
    deltas, logits = (x.transpose(1, 2).contiguous() for x in (case.deltas, case.logits))
    logits[:, 0] += 1.5  # few of the flat scores pass 0.05, as in a trained network
    found = compat.nvidia.Encoder(case.default_boxes).decode_batch(deltas, logits, **options)
    expected = nvidia.Encoder(case.default_boxes).decode_batch(deltas, logits, **options)
    for ours, theirs in zip(found, expected, strict=True):
        assert len(theirs[2]) > 0
        assert ours[1].equal(theirs[1])
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours[2], theirs[2], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (
            compat.amdegroot.MultiBoxLoss,
            "num_classes overlap_thresh prior_for_matching bkg_label neg_mining neg_pos"
            " neg_overlap encode_target use_gpu",
        ),
        (compat.amdegroot.MultiBoxLoss.forward, "self predictions targets"),
        (compat.lufficc.MultiBoxLoss, "neg_pos_ratio"),
        (
            compat.lufficc.MultiBoxLoss.forward,
            "self confidence predicted_locations labels gt_locations",
        ),
        (
            compat.qfgaohao.MultiboxLoss,
            "priors iou_threshold neg_pos_ratio center_variance size_variance device",
        ),
        (compat.sgrvinod.MultiBoxLoss, "priors_cxcy threshold neg_pos_ratio alpha"),
        (
            compat.sgrvinod.MultiBoxLoss.forward,
            "self predicted_locs predicted_scores boxes labels",
        ),
        (compat.nvidia.Loss, "dboxes"),
        (compat.nvidia.Loss.forward, "self ploc plabel gloc glabel"),
        (compat.nvidia.Encoder, "dboxes"),
        (compat.nvidia.Encoder.encode, "self bboxes_in labels_in criteria"),
        (compat.nvidia.Encoder.decode_batch, "self bboxes_in scores_in criteria max_output"),
    ],
)
def test_signatures_are_theirs(function, parameters):
    """By position and by name; what is added has a default and goes by keyword alone."""
    signature = inspect.signature(function).parameters.values()
    theirs = [p.name for p in signature if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert theirs == parameters.split()
    added = [p for p in signature if p.kind is p.KEYWORD_ONLY]
    assert all(p.default is not p.empty for p in added)
