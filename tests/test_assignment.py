# SPDX-License-Identifier: BSD-3-Clause
"""The definitions of matching and mining, on examples worked by hand."""

import math

import pytest
import torch

from ssd_fast.assignment import match_image, mine_batch, round_to_float32, valid_objects

PRIORS = torch.tensor([[0.0, 0, 2, 2], [2, 0, 4, 2], [0, 0, 4, 2]])


def _match(boxes: list[list[float]], assign: str, threshold: float = 0.5) -> list[int]:
    objects = torch.tensor(boxes)
    options = {"low_threshold": None, "strict": False, "assign": assign}
    valid = valid_objects(objects)
    return match_image(PRIORS, objects, valid, iou_threshold=threshold, **options).tolist()


def test_each_prior_goes_to_the_object_it_overlaps_most() -> None:
    """Overlaps 1, 0, 1/2 with the first object and 0, 3/4, 3/8 with the second."""
    assert _match([[0, 0, 2, 2], [2.5, 0, 4, 2]], "none") == [0, 1, 0]


def test_the_last_of_two_claims_wins() -> None:
    """Both objects want prior 0."""
    assert _match([[0, 0, 2, 1], [0, 0, 1, 2]], "last", threshold=0.9) == [1, -1, -1]


def test_bipartite_claims_keep_both_objects() -> None:
    """Of equal pairs the lowest object takes the prior; the other takes its next best."""
    assert _match([[0, 0, 2, 1], [0, 0, 1, 2]], "bipartite", threshold=0.9) == [0, -1, 1]


@pytest.mark.parametrize("box", [[1, 0, 0, 1], [0, 0, 0, 1], [0, 0, math.inf, 1], [math.nan] * 4])
def test_objects_without_a_finite_positive_area_are_not_valid(box) -> None:
    """They match nothing."""
    assert not valid_objects(torch.tensor([box], dtype=torch.float32)).any()


def test_thresholds_are_rounded_to_float32() -> None:
    """0.1 in float32 is above 0.1, so an overlap of float32(0.1) reaches it."""
    assert round_to_float32(0.1) == float(torch.tensor(0.1))
    assert round_to_float32(1e300) == math.inf


def test_mining_worked_by_hand() -> None:
    """One positive, ratio 2: the two hardest of the candidates; ignored priors are none."""
    loss = torch.tensor([[9.0, 8, 1, 7, 7]])
    match = torch.tensor([[0, -2, -1, -1, -1]])
    selected = mine_batch(loss, match, ratio=2.0, min_negatives=0)
    assert selected.tolist() == [[False, False, False, True, True]]
