# SPDX-License-Identifier: BSD-3-Clause
"""The loss's launchers: decisions against the float32 reference, values against float64."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton")

from ssd_fast.cross_entropy import background_key, cross_entropy
from ssd_fast.kernels.multibox_loss import launch_multibox_loss
from ssd_fast.kernels.multibox_loss_backward import launch_multibox_loss_backward
from ssd_fast.ops._levels import join_levels
from ssd_fast.ops._loss_reference import (
    _class_targets,
    backward_reference,
    box_losses,
    forward_reference,
    image_weights,
    positive_rows,
)
from ssd_fast.testing import (
    as_maps,
    assert_close,
    assert_same_rows,
    random_boxes,
    random_objects,
    seeded,
)

CELLS = [(4, 5, 4), (6, 3, 3), (2, 1, 1)]
P = sum(anchors * height * width for anchors, height, width in CELLS)
# How far a gradient in half precision may be from float64: half a unit in its last place.
ROUNDING = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


class Case(NamedTuple):
    """A batch of two, one image of it without objects every other time, and options.

    One of its objects is a region to ignore; the matches are given, some of them to no object.
    """

    C: int = 21
    layout: str = "rows"
    dtype: torch.dtype = torch.float32
    assign: int = 0
    normalizer: int = 0
    background: int = 0
    beta: float = 1.0
    min_negatives: int = 0
    scale: float = 3.0
    box_loss: int = 0
    label_smoothing: float = 0.0
    weighted: bool = False
    regions: bool = False
    given: bool = False
    rivals: bool = False  # two logits near 1000, whose difference decides
    block: int | None = None
    selection_block: int | None = None


CASES = [
    Case(),
    Case(C=2, layout="maps", normalizer=1, min_negatives=3, block=16),
    Case(layout="channels_last", dtype=torch.float16, background=20, beta=0.0, normalizer=2),
    Case(C=81, layout="maps", dtype=torch.bfloat16, assign=1, beta=0.11),
    Case(C=37, layout="sliced", assign=2, selection_block=128, block=64),
    Case(C=1204, layout="rows", dtype=torch.float16, block=128),
    Case(C=9, layout="channels_last", scale=80.0, min_negatives=9),
    Case(C=5, scale=1000.0, rivals=True, given=True, min_negatives=9),
    Case(layout="maps", box_loss=3, label_smoothing=0.1, weighted=True, regions=True, block=16),
    Case(C=37, layout="channels_last", box_loss=1, label_smoothing=1.0, scale=60.0, given=True),
    Case(
        C=5,
        layout="transposed",
        dtype=torch.bfloat16,
        box_loss=2,
        weighted=True,
        normalizer=1,
        background=4,
    ),
    Case(C=5, layout="columns", dtype=torch.float16),
]


def _lay_out(rows: Tensor, layout: str) -> list[Tensor]:
    if layout == "rows":
        return [rows]
    if layout == "sliced":  # neither channels nor rows lie side by side
        return [torch.stack((rows, rows), dim=-1)[..., 0]]
    if layout == "transposed":  # (B, K, P) in memory
        return [rows.transpose(1, 2).contiguous().transpose(1, 2)]
    maps = as_maps(rows, CELLS)
    if layout == "channels_last":
        maps = [x.contiguous(memory_format=torch.channels_last) for x in maps]
    if layout == "columns":  # (B, K, W, H) in memory: cells in (y, x) order are not evenly spaced
        maps = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in maps]
    return maps


def _inputs(case: Case, device: torch.device, seed: int = 0):
    generator = seeded(seed)
    priors = random_boxes(P, generator)
    objects = random_objects(2, generator, counts=(0, 4), classes=case.C)
    labels = objects.labels.where(objects.labels != case.background, torch.tensor(0))
    if case.regions:
        labels[0] = -1
    deltas = torch.randn(2, P, 4, generator=generator).to(case.dtype).to(device)
    logits = (torch.randn(2, P, case.C, generator=generator) * case.scale).to(case.dtype)
    if case.rivals:
        logits[..., 1:3] = 1000 + torch.rand(2, P, 2, generator=generator)
    targets = [x.to(device) for x in (priors, objects.boxes, labels, objects.offsets)]
    return _lay_out(deltas, case.layout), _lay_out(logits.to(device), case.layout), *targets


def _options(case: Case, device: torch.device | None = None):
    """The operator's, in its order, tensors first."""
    matches = torch.tensor([-1, -1, -1, -1, 0, 1, 3, 99, -2])
    matches = matches[torch.randint(0, len(matches), (2, P), generator=seeded(5))].to(device)
    weights = torch.linspace(0.2, 3.0, case.C).to(device)
    variances = (0.1, 0.1, 0.2, 0.2)
    return (
        matches if case.given else None, weights if case.weighted else None,
        0.4, 0.3, False, case.assign, 0.5, 3.0, case.min_negatives, case.box_loss, case.beta,
        variances, case.label_smoothing, case.background, case.normalizer,
    )  # fmt: skip


def _double(x):
    return [t.double().cpu() for t in x] if isinstance(x, list) else x.cpu()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_reference(kernel_device, case) -> None:
    """Codes, losses and gradients, for every layout, dtype and option."""
    deltas, logits, *_ = inputs = _inputs(case, kernel_device)
    options = _options(case, kernel_device)
    box_loss, class_loss, positives, code = launch_multibox_loss(
        *inputs, *options, block=case.block, selection_block=case.selection_block
    )
    cpu = [[t.cpu() for t in x] if isinstance(x, list) else x.cpu() for x in inputs]
    on_cpu = [x.cpu() if isinstance(x, Tensor) else x for x in options]
    *_, expected_positives, expected = forward_reference(*cpu, *on_cpu)
    code, priors = code.cpu(), cpu[2]
    assert torch.equal(positives.cpu(), expected_positives)
    rows = join_levels(cpu[0], cpu[1])
    assert torch.equal(code.masked_fill(code == -3, -1), expected.masked_fill(expected == -3, -1))
    assert_same_rows(code == -3, expected == -3, background_key(rows[1].float(), case.background))

    # Given the decisions, values agree with float64.
    deltas64, logits64 = (x.double() for x in rows)
    boxes, labels, offsets = cpu[3:]
    weight = image_weights(expected_positives, case.normalizer)
    image, prior, row = positive_rows(code, offsets)
    smooth = box_losses(
        deltas64[image, prior], priors.double()[prior], boxes.double()[row], *options[9:12]
    )
    selected, target = _class_targets(code, offsets, labels, case.background)
    entropy = cross_entropy(logits64[selected], target, on_cpu[1], case.label_smoothing)
    entropy = entropy * weight[selected.nonzero()[:, 0]]
    assert_close(box_loss.cpu(), (smooth * weight[image]).sum(), what="box_loss")
    assert_close(class_loss.cpu(), entropy.sum(), what="class_loss")

    scales = torch.tensor(1.3), torch.tensor(-0.7)
    gradients = launch_multibox_loss_backward(
        *(x.to(kernel_device) for x in scales), *inputs, code.to(kernel_device), positives,
        options[1], *options[9:], block=case.block,
    )  # fmt: skip
    expected_gradients = backward_reference(
        *(x.double() for x in scales), _double(deltas), _double(logits), priors.double(),
        boxes.double(), labels, offsets, code, expected_positives, on_cpu[1],
        *options[9:],
    )  # fmt: skip
    for actual, wanted, given in zip(gradients, expected_gradients, (deltas, logits), strict=True):
        for a, w, g in zip(actual, wanted, given, strict=True):
            assert a.stride() == torch.empty_like(g).stride()
            assert a.dtype == g.dtype
            assert_close(a.cpu(), w, tolerance=ROUNDING[case.dtype], what="gradient")


def test_infinite_and_nan_logits(kernel_device) -> None:
    """They stay in their rows: selected, the loss is not finite; the other image is unharmed."""
    case = Case(C=5, min_negatives=4)
    for value in (float("inf"), float("-inf"), float("nan")):
        deltas, logits, *targets = _inputs(case, kernel_device)
        logits[0][0, 7, 3] = value
        logits[0][0, 9, 0] = value
        expected = forward_reference([deltas[0].cpu()], [logits[0].cpu()],
                                      *(x.cpu() for x in targets), *_options(case))  # fmt: skip
        actual = launch_multibox_loss(deltas, logits, *targets, *_options(case))
        assert torch.equal(actual[3].cpu(), expected[3])
        torch.testing.assert_close(actual[1].cpu(), expected[1], rtol=1e-5, atol=0, equal_nan=True)


def test_codes_of_other_targets_are_passed_over(kernel_device) -> None:
    """The backward neither reads nor writes out of bounds when codes fit no object."""
    deltas, logits, *targets = _inputs(Case(C=5), kernel_device)
    code = torch.full((2, P), 10**6, dtype=torch.int32, device=kernel_device)
    one = torch.ones((), device=kernel_device)
    gradients = launch_multibox_loss_backward(
        one,
        one,
        deltas,
        logits,
        *targets,
        code,
        targets[3][:2],
        None,
        *_options(Case())[9:],
    )
    assert not any(bool(x.any()) for levels in gradients for x in levels)


def test_repeats_are_equal(kernel_device) -> None:
    """Bit for bit."""
    inputs, options = _inputs(Case(), kernel_device), _options(Case())
    first, second = (launch_multibox_loss(*inputs, *options) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_no_images(kernel_device) -> None:
    """Zero losses."""
    deltas, logits, priors, boxes, labels, _ = _inputs(Case(), kernel_device)
    offsets = torch.zeros(1, dtype=torch.int64, device=kernel_device)
    losses = launch_multibox_loss(
        [deltas[0][:0]],
        [logits[0][:0]],
        priors,
        boxes,
        labels,
        offsets,
        *_options(Case()),
    )
    assert [float(x) for x in losses[:2]] == [0, 0]
    assert losses[3].shape == (0, P)
