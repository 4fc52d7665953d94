# SPDX-License-Identifier: BSD-3-Clause
"""multibox_loss with matches made elsewhere, and with regions to ignore."""

import pytest
import torch
from torch import Tensor

from ssd_fast.ops import match, multibox_loss, multibox_loss_reference
from ssd_fast.testing import Objects, assert_close, random_boxes, random_objects, seeded

from .loss_cases import loss_and_gradients

B, P, C = 3, 140, 7
PRIORS = random_boxes(P, seeded(0))


def _heads() -> tuple[Tensor, Tensor]:
    generator = seeded(0)
    logits = torch.randn(B, P, C, generator=generator) * 2
    return torch.randn(B, P, 4, generator=generator), logits


def _objects() -> Objects:
    """Up to six objects an image."""
    return random_objects(B, seeded(1), counts=(0, 6), classes=C)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("assign", ["last", "bipartite", "none"])
def test_matches_equal_internal_matching(device, dtype, assign) -> None:
    """What `match` returns gives what matching inside gives, bit for bit."""
    objects = _objects()
    inputs = [x.to(device) for x in (*_heads(), PRIORS, *objects)]
    matching = {"iou_threshold": 0.4, "low_threshold": 0.3, "assign": assign}
    matches = match(PRIORS, objects.boxes, objects.offsets, **matching).to(device, dtype)
    inside = loss_and_gradients(multibox_loss, *inputs, **matching)
    given = loss_and_gradients(multibox_loss, *inputs, matches=matches)
    assert all(torch.equal(a, b) for a, b in zip(given, inside, strict=True))
    # Strides do not matter: the operator sees (B, P), however it lies.
    strided = matches.t().contiguous().t()
    again = loss_and_gradients(multibox_loss, *inputs, matches=strided)
    assert all(torch.equal(a, b) for a, b in zip(again, inside, strict=True))


def test_matches_that_fit_nothing_are_ignored(device) -> None:
    """Out of the image's range, of a broken object, of a region, or a number without meaning."""
    deltas, logits = _heads()
    objects = random_objects(B, seeded(1), counts=(3, 3), classes=C)
    objects.labels[1] = -1
    objects.labels[4] = C
    objects.boxes[6, 2] = torch.nan
    matches = torch.full((B, P), -1)
    matches[:, :6] = torch.tensor([0, 1, 2, 3, -3, 2**40])
    inputs = [x.to(device) for x in (deltas, logits, PRIORS, *objects)]
    operator = torch.ops.ssd_fast.multibox_loss.default
    options = (0.5, None, False, 0, None, 3.0, 0, 0, 1.0, (0.1,) * 4, 0.0, 0, 0)
    for number in (torch.int64, torch.int32):
        given = matches.clamp(max=2**31 - 1).to(device, number)
        code = operator([inputs[0]], [inputs[1]], *inputs[2:], given, None, *options)[3].cpu()
        assert code[0, :6].tolist() == [0, -2, 2, -2, -2, -2]
        assert code[1, :6].tolist() == [0, -2, 2, -2, -2, -2]
        assert code[2, :6].tolist() == [-2, 1, 2, -2, -2, -2]
        assert ((code[:, 6:] == -1) | (code[:, 6:] == -3)).all()
    none = random_objects(B, seeded(1), counts=(0, 0))
    losses = multibox_loss(*inputs[:3], *(x.to(device) for x in none), matches=given)
    assert losses[2].tolist() == [0, 0, 0]


def test_regions_to_ignore_by_hand(device) -> None:
    """A prior of whose area the share lies in one region is no background; a positive stays one."""
    priors = torch.tensor(
        [[0, 0, 4, 4], [2, 0, 6, 4], [3, 0, 7, 4], [0, 0, 8, 8], [8, 8, 9, 9], [0, 1, 2, 3.0]]
    )
    # Two halves that are one region only together, an object inside, a broken region.
    boxes = torch.tensor(
        [[0, 0, 4, 4], [4, 0, 8, 4], [0, 1, 2, 3], [9, 9, 8, 8], [8, 8, 9, float("inf")]]
    )
    labels = torch.tensor([-1, -1, 2, -1, -1])
    targets = [x.to(device) for x in (priors, boxes, labels, torch.tensor([0, 5]))]
    heads = [torch.zeros(1, 6, k, device=device) for k in (4, 3)]
    operator = torch.ops.ssd_fast.multibox_loss.default
    codes = {}
    for threshold in (None, 0.0, 0.5, 0.51, 1.0):
        options = (0.5, None, False, 2, threshold, 0.0, 0, 0, 1.0, (0.1,) * 4, 0.0, 0, 0)
        result = operator([heads[0]], [heads[1]], *targets, None, None, *options)
        codes[threshold] = result[3].tolist()[0]
    assert codes == {
        None: [-1, -1, -1, -1, -1, 2],
        0.0: [-2, -2, -2, -2, -2, 2],
        0.5: [-2, -2, -2, -1, -1, 2],
        0.51: [-2, -1, -2, -1, -1, 2],
        1.0: [-2, -1, -1, -1, -1, 2],
    }


def test_regions_decide_as_the_reference(device, full_count) -> None:
    """Bit for bit on grids, where shares are exact and equal the threshold."""
    for seed in range(full_count(40, 2000)):
        generator = seeded(seed)
        corners = torch.randint(0, 6, (40, 2, 2), generator=generator).float() / 8
        priors = torch.cat((corners[:, 0], corners[:, 0] + corners[:, 1]), dim=1)[: 17 + seed % 20]
        objects = random_objects(2, generator, counts=(0, 5), classes=4)
        objects = objects._replace(boxes=(objects.boxes * 8).round() / 8)
        objects.labels[torch.rand(len(objects.labels), generator=generator) < 0.6] = -1
        heads = [torch.randn(2, len(priors), k, generator=generator) for k in (4, 4)]
        options = {"ignore_threshold": (0.0, 0.25, 0.5, 0.75, 1.0)[seed % 5], "min_negatives": 99}
        expected = multibox_loss_reference(*heads, priors, *objects, **options)
        inputs = [x.to(device) for x in (*heads, priors, *objects)]
        actual = multibox_loss(*inputs, **options)
        assert torch.equal(actual[2].cpu(), expected[2]), seed
        assert_close(actual[1].cpu(), expected[1], what=str(seed))  # every background is in it
