# SPDX-License-Identifier: BSD-3-Clause
"""The definitions of box arithmetic, on examples worked by hand."""

import math

import pytest
import torch

from ssd_fast.boxes import box_area, box_iof, box_iou, decode_boxes, encode_boxes, four_variances
from ssd_fast.testing import random_boxes, seeded


def test_iou_of_boxes_worked_by_hand() -> None:
    """Half overlap, containment, a shared edge, identity, and no overlap."""
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    b = torch.tensor(
        [[1.0, 0, 3, 2], [0.5, 0.5, 1.5, 1.5], [2, 0, 4, 2], [0, 0, 2, 2], [5, 5, 6, 6]]
    )
    expected = torch.tensor([[2 / 6, 1 / 4, 0.0, 1.0, 0.0]])
    torch.testing.assert_close(box_iou(a, b), expected, rtol=0, atol=0)


def test_iou_of_empty_and_broken_boxes_is_zero() -> None:
    """No epsilon, and yet no NaN."""
    empty = torch.tensor([[1.0, 1, 1, 1], [3, 3, 2, 2], [math.nan, 0, 1, 1]])
    assert box_iou(empty, empty).eq(0).all()


def test_iof_of_boxes_worked_by_hand() -> None:
    """Half of it, all of it, a quarter of it, an edge of it; none of a broken one."""
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0], [2, 0, 0, 2], [math.nan, 0, 1, 1]])
    b = torch.tensor([[1.0, 0, 3, 2], [-1, -1, 3, 3], [0.5, 0.5, 1.5, 1.5], [2, 0, 4, 2]])
    assert box_iof(a, b).tolist() == [[0.5, 1.0, 0.25, 0.0], [0.0] * 4, [0.0] * 4]


def test_iou_equals_torchvision(torchvision) -> None:
    """Equal bit for bit wherever boxes have an area."""
    a, b = random_boxes(200, seeded(0)), random_boxes(300, seeded(1))
    assert torch.equal(box_iou(a, b), torchvision.ops.box_iou(a, b))


def test_area_keeps_its_sign() -> None:
    """An inverted box has a negative area, which marks it as broken."""
    assert box_area(torch.tensor([[0.0, 0, 2, 3], [2, 0, 0, 3]])).tolist() == [6, -6]


def test_encode_worked_by_hand() -> None:
    """A box shifted by half the prior's width and twice as tall."""
    prior = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    box = torch.tensor([[1.0, -1.0, 3.0, 3.0]])
    expected = torch.tensor([[0.5 / 0.1, 0.0, 0.0, math.log(2) / 0.2]])
    torch.testing.assert_close(encode_boxes(box, prior, (0.1, 0.2)), expected)


def test_decode_inverts_encode() -> None:
    """Also with four variances."""
    priors, boxes = random_boxes(500, seeded(0)).double(), random_boxes(500, seeded(1)).double()
    variances = (0.1, 0.15, 0.2, 0.25)
    decoded = decode_boxes(encode_boxes(boxes, priors, variances), priors, variances)
    torch.testing.assert_close(decoded, boxes, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "variances",
    [(0.1,), (0.1, 0.2, 0.3), (0.1, 0.0), (0.1, math.nan), (), 0.1, None, "ab", (10**400, 1)],
)
def test_variances_are_two_or_four_positive_numbers(variances) -> None:
    """Anything else is named."""
    with pytest.raises(ValueError, match="variances: expected 2 or 4 positive finite numbers"):
        four_variances(variances)
