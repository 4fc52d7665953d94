# SPDX-License-Identifier: BSD-3-Clause
"""The focal loss's launchers: codes by the definition, values against float64."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton")

from ssd_fast.assignment import checked_matches, ignore_regions, match_batch, valid_objects
from ssd_fast.kernels.focal_loss import launch_focal_loss
from ssd_fast.kernels.focal_loss_backward import launch_focal_loss_backward
from ssd_fast.ops._levels import join_levels
from ssd_fast.ops._loss_reference import box_losses, image_weights
from ssd_fast.testing import as_maps, assert_close, random_boxes, random_objects, seeded

CELLS = [(4, 5, 4), (6, 3, 3), (2, 1, 1)]
P = sum(anchors * height * width for anchors, height, width in CELLS)
# How far a gradient in half precision may be from float64: half a unit in its last place.
ROUNDING = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


class Case(NamedTuple):
    """A batch of two, and options. One object is a region to ignore, or matches are given."""

    C: int = 7
    layout: str = "rows"
    dtype: torch.dtype = torch.float32
    normalizer: int = 0
    background: int = 0
    alpha: float = 0.25
    gamma: float = 2.0
    box_loss: int = 0
    scale: float = 4.0
    regions: bool = False
    given: bool = False
    block: int | None = None


CASES = [
    Case(regions=True),
    Case(C=20, layout="maps", normalizer=1, alpha=-1.0, gamma=1.5, box_loss=3, block=64),
    Case(C=203, dtype=torch.float16, gamma=0.0, normalizer=2, block=128),
    Case(layout="channels_last", dtype=torch.bfloat16, background=6, gamma=1.0, given=True),
    Case(C=1, layout="transposed", background=-1, scale=60.0, box_loss=1, block=32),
    Case(C=3, layout="columns"),
]
GIVEN = Case(given=True)


def _lay_out(rows: Tensor, layout: str) -> list[Tensor]:
    if layout == "rows":
        return [rows]
    if layout == "transposed":  # (B, K, P) in memory
        return [rows.transpose(1, 2).contiguous().transpose(1, 2)]
    maps = as_maps(rows, CELLS)
    if layout == "channels_last":
        maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    if layout == "columns":  # (B, K, W, H) in memory: cells in (y, x) order are not evenly spaced
        maps = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in maps]
    return maps


def _inputs(case: Case):
    """The tensors of a case, on the CPU: levels, targets, matches."""
    generator = seeded(0)
    priors = random_boxes(P, generator)
    objects = random_objects(2, generator, counts=(3, 4), classes=max(case.C, 2))
    labels = (objects.labels - 1) % case.C
    labels = labels.where(labels != case.background, 1)
    if case.regions:
        labels[::3] = -1
    numbers = torch.tensor([-1, -1, -1, 0, 1, 99, -2])
    matches = numbers[torch.randint(0, len(numbers), (2, P), generator=generator)]
    deltas = torch.randn(2, P, 4, generator=generator).to(case.dtype)
    logits = (torch.randn(2, P, case.C, generator=generator) * case.scale).to(case.dtype)
    levels = _lay_out(deltas, case.layout), _lay_out(logits, case.layout)
    targets = priors, objects.boxes, labels, objects.offsets
    return *levels, *targets, matches if case.given else None


def _options(case: Case):
    """The operator's after the matches."""
    variances = (0.1, 0.1, 0.2, 0.2)
    return (0.4, 0.3, False, 0, 0.5, case.box_loss, 1.0, variances, case.alpha, case.gamma,
            case.background, case.normalizer)  # fmt: skip


def _to(device, inputs):
    def move(x):
        return (
            [y.to(device) for y in x] if isinstance(x, list) else x if x is None else x.to(device)
        )

    return [move(x) for x in inputs]


def _codes(case: Case, inputs):
    """Positives (B,) and codes (B, P) by the definition."""
    _, _, priors, boxes, labels, offsets, matches = inputs
    has_area = valid_objects(boxes)
    valid = has_area & (labels >= 0) & (labels < case.C) & (labels != case.background)
    if matches is None:
        code = match_batch(
            priors, boxes, offsets, valid,
            iou_threshold=0.4, low_threshold=0.3, strict=False, assign="last",
        )  # fmt: skip
    else:
        code = checked_matches(matches, offsets, valid)
    code = ignore_regions(code, priors, boxes, offsets, has_area & (labels == -1), 0.5)
    return (code >= 0).sum(dim=1), code


def _float64(case: Case, inputs, positives, code):
    """Losses, given the decisions, as torchvision's sigmoid_focal_loss has them; and the leaves."""
    deltas, logits = ([x.double().requires_grad_() for x in levels] for levels in inputs[:2])
    priors, boxes, labels, offsets = inputs[2:6]
    delta_rows, x = join_levels(deltas, logits)
    image, prior = (code >= 0).nonzero(as_tuple=True)
    row = offsets[image] + code[image, prior]
    t = torch.zeros_like(x)
    t[image, prior, labels[row]] = 1
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(x, t, reduction="none")
    missing = 1 - (x.sigmoid() * t + (1 - x.sigmoid()) * (1 - t))
    terms = entropy * missing**case.gamma
    if case.alpha >= 0:
        terms = terms * (case.alpha * t + (1 - case.alpha) * (1 - t))
    weight = image_weights(positives, case.normalizer)
    class_loss = ((terms.sum(dim=2) * (code != -2)).sum(dim=1) * weight).sum()
    box_rows = box_losses(
        delta_rows[image, prior], priors.double()[prior], boxes.double()[row], *_options(case)[5:8]
    )
    return (box_rows * weight[image]).sum(), class_loss, (deltas, logits)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_reference(kernel_device, case) -> None:
    """Codes, losses and gradients, for every layout, dtype and option."""
    inputs, options = _inputs(case), _options(case)
    moved = _to(kernel_device, inputs)
    box_loss, class_loss, positives, code = launch_focal_loss(*moved, *options, block=case.block)
    expected_positives, expected_code = _codes(case, inputs)
    assert torch.equal(code.cpu(), expected_code)
    assert torch.equal(positives.cpu(), expected_positives)
    assert {-1, -2} < set(expected_code.unique().tolist())

    expected_box, expected_class, leaves = _float64(case, inputs, expected_positives, expected_code)
    assert_close(box_loss.cpu(), expected_box.detach(), what="box_loss")
    assert_close(class_loss.cpu(), expected_class.detach(), what="class_loss")

    scales = torch.tensor(1.3), torch.tensor(-0.7)
    gradients = launch_focal_loss_backward(
        *_to(kernel_device, scales), *moved[:6], code, positives, *options[5:], block=case.block
    )
    (1.3 * expected_box - 0.7 * expected_class).backward()
    for actual, wanted, given in zip(gradients, leaves, inputs[:2], strict=True):
        for a, w, g in zip(actual, wanted, given, strict=True):
            assert a.stride() == torch.empty_like(g).stride()
            assert a.dtype == g.dtype
            assert_close(a.cpu(), w.grad, tolerance=ROUNDING[case.dtype], what="gradient")


@pytest.mark.parametrize("logit", [-torch.inf, torch.inf, torch.nan])
def test_infinite_and_nan_logits(kernel_device, logit) -> None:
    """Sure and right costs nothing, sure and wrong everything; NaN stays in its element."""
    options = _options(GIVEN)
    inputs = _inputs(GIVEN)
    background = _codes(GIVEN, inputs)[1][0].tolist().index(-1)
    inputs[1][0][0, background, 1] = logit
    moved = _to(kernel_device, inputs)
    _, class_loss, positives, code = launch_focal_loss(*moved, *options)
    assert bool(class_loss.isfinite()) == (logit == -torch.inf)
    one = torch.ones((), device=kernel_device)
    _, (gradient,) = launch_focal_loss_backward(
        one, one, *moved[:6], code, positives, *options[5:]
    )  # fmt: skip
    finite = gradient.cpu().isfinite()
    assert bool(finite[0, background, 1]) == (logit == logit)
    finite[0, background, 1] = True
    assert bool(finite.all())


def test_codes_of_other_targets_are_passed_over(kernel_device) -> None:
    """The backward neither reads nor writes out of bounds when codes fit no object."""
    case = Case(C=3)
    *inputs, _ = _to(kernel_device, _inputs(case))
    code = torch.full((2, P), 10**6, dtype=torch.int32, device=kernel_device)
    one = torch.ones((), device=kernel_device)
    gradients = launch_focal_loss_backward(
        one, one, *inputs, code, inputs[5][:2], *_options(case)[5:]
    )
    assert not any(bool(x.any()) for levels in gradients for x in levels)


def test_repeats_are_equal(kernel_device) -> None:
    """Bit for bit."""
    inputs, options = _to(kernel_device, _inputs(GIVEN)), _options(GIVEN)
    first, second = (launch_focal_loss(*inputs, *options) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_no_images(kernel_device) -> None:
    """Zero losses."""
    (deltas,), (logits,), priors, boxes, labels, _, _ = _to(kernel_device, _inputs(Case()))
    offsets = torch.zeros(1, dtype=torch.int64, device=kernel_device)
    losses = launch_focal_loss(
        [deltas[:0]], [logits[:0]], priors, boxes, labels, offsets, None, *_options(Case())
    )
    assert [float(x) for x in losses[:2]] == [0, 0]
    assert losses[3].shape == (0, P)
