# SPDX-License-Identifier: BSD-3-Clause
"""Matches made elsewhere and regions to ignore against the definitions, bit for bit."""

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from ssd_fast.assignment import checked_matches, ignore_regions, match_batch, valid_objects
from ssd_fast.kernels.given_matches import launch_given_matches
from ssd_fast.kernels.match import launch_match
from ssd_fast.testing import SCENES, adversarial_objects, seeded

C = 7
BACKGROUND = 2
WORDS = ["last", "bipartite", "none"]


def _scene(scene: str, seed: int):
    """Priors, and objects of which two in five are regions and some have no class's label."""
    generator = seeded(seed)
    priors = SCENES[list(SCENES)[seed % len(SCENES)]](90 + seed, generator).float()
    objects = adversarial_objects(scene, [0, 9, 4], generator)
    label = torch.tensor([-1, 1, 3, -1, 5, BACKGROUND, C, -2])
    labels = label[torch.randint(0, len(label), (13,), generator=generator)]
    return priors, objects.boxes, labels, objects.offsets


def _valid(boxes, labels):
    return valid_objects(boxes) & (labels >= 0) & (labels < C) & (labels != BACKGROUND)


def _ignored(matched, priors, boxes, labels, offsets, threshold):
    if threshold is None:
        return matched
    regions = valid_objects(boxes) & (labels == -1)
    return ignore_regions(matched, priors, boxes, offsets, regions, threshold)


def test_regions_equal_reference(kernel_device, full_count) -> None:
    """After all claims, and only of the background."""
    ignored = 0
    for seed in range(full_count(6, 120)):
        priors, boxes, labels, offsets = _scene(list(SCENES)[seed % len(SCENES)], seed // 6 + 1)
        threshold, assign = (0.5, 0.25, 1.0, 0.0)[seed % 4], (2, 0, 2, 1, 2)[seed % 5]
        matched = match_batch(
            priors, boxes, offsets, _valid(boxes, labels),
            iou_threshold=0.5, low_threshold=None, strict=False, assign=WORDS[assign],
        )  # fmt: skip
        expected = _ignored(matched, priors, boxes, labels, offsets, threshold)
        ignored += int((expected != matched).sum())
        moved = (x.to(kernel_device) for x in (priors, boxes, offsets))
        actual = launch_match(
            *moved, 0.5, None, False, assign, labels.to(kernel_device), C, BACKGROUND, threshold,
            block=(64, 256)[seed % 2],
        )  # fmt: skip
        assert torch.equal(actual.cpu(), expected)
    assert ignored > 0


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_nothing_of_a_prior_with_nan_lies_in_a_region(kernel_device, threshold) -> None:
    """Its share is 0, which a threshold of 0 takes for enough, as the reference does."""
    nan = float("nan")
    corners = [(nan, 0, 1, 1), (0, nan, 1, 1), (0, 0, nan, 1), (0, 0, 1, nan), (0, 0, 1, 1)]
    priors, region = torch.tensor(corners).float(), torch.tensor([[0.1, 0.1, 0.9, 0.9]])
    labels, offsets = torch.tensor([-1]), torch.tensor([0, 1])
    background = torch.full((1, 5), -1, dtype=torch.int32)
    expected = _ignored(background, priors, region, labels, offsets, threshold)
    assert (expected == -2).sum() == (5 if threshold == 0 else 1)
    given = (x.to(kernel_device) for x in (background, priors, region, labels, offsets))
    actual = launch_given_matches(*given, C, BACKGROUND, threshold)
    assert torch.equal(actual.cpu(), expected)


@pytest.mark.parametrize("scene", SCENES)
def test_given_matches_equal_reference(kernel_device, scene) -> None:
    """Numbers of valid objects stay; those of others, and beyond all objects, are ignored."""
    for seed, (threshold, dtype) in enumerate(((None, torch.int32), (0.5, torch.int64))):
        priors, boxes, labels, offsets = _scene(scene, seed)
        most = torch.iinfo(dtype).max
        numbers = torch.tensor([-1, -1, -1, *range(10), -2, -3, 99, most, -most - 1], dtype=dtype)
        pick = torch.randint(0, len(numbers), (3, len(priors)), generator=seeded(seed))
        matches = numbers[pick]
        matched = checked_matches(matches, offsets, _valid(boxes, labels))
        expected = _ignored(matched, priors, boxes, labels, offsets, threshold)
        moved = (x.to(kernel_device) for x in (matches, priors, boxes, labels, offsets))
        actual = launch_given_matches(*moved, C, BACKGROUND, threshold, block=128)
        assert torch.equal(actual.cpu(), expected)
        assert {-1, -2} <= set(expected.unique().tolist())


def test_given_matches_of_wild_offsets(kernel_device) -> None:
    """Nothing is read out of the boxes."""
    priors, boxes, labels, _ = _scene("random", 0)
    matches = torch.arange(len(priors)).repeat(3, 1) % 15
    offsets = torch.tensor([-5, 99, 4, 2**40])
    expected = checked_matches(matches, offsets, _valid(boxes, labels))
    moved = (x.to(kernel_device) for x in (matches, priors, boxes, labels, offsets))
    assert torch.equal(launch_given_matches(*moved, C, BACKGROUND, None).cpu(), expected)
