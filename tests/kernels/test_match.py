# SPDX-License-Identifier: BSD-3-Clause
"""launch_match against the reference: adversarial scenes, block sizes, wild offsets."""

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton")

from ssd_fast.kernels.match import launch_match
from ssd_fast.ops import match_reference
from ssd_fast.testing import (
    SCENES,
    adversarial_objects,
    random_boxes,
    random_objects,
    seeded,
)

ASSIGNS = ["last", "bipartite", "none"]


def _check(device, priors, boxes, offsets, block, assign, threshold=0.5, low=None, strict=False):
    expected = match_reference(
        priors,
        boxes,
        offsets,
        iou_threshold=threshold,
        low_threshold=low,
        strict=strict,
        assign=ASSIGNS[assign],
    )
    moved = (x.to(device) for x in (priors, boxes, offsets))
    actual = launch_match(*moved, threshold, low, strict, assign, block=block)
    assert torch.equal(actual.cpu(), expected)


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("assign", range(3))
def test_decisions_equal_reference(kernel_device, scene, assign, full_count) -> None:
    """Ties, touching, nested, duplicate and broken boxes; one, many and none."""
    for seed in range(2 * assign, full_count(1, 60) + 2 * assign):
        generator = seeded(seed)
        priors = SCENES[list(SCENES)[seed % len(SCENES)]](40 + seed % 60, generator).float()
        objects = adversarial_objects(scene, [0, 6], generator)
        threshold = (0.5, 1 / 3, 0.25, 0.0)[seed % 4]
        low = None if seed % 2 else threshold / 2
        block = (128, 64, 256)[seed % 3]
        _check(
            kernel_device,
            priors,
            objects.boxes,
            objects.offsets,
            block,
            assign,
            threshold,
            low,
            strict=seed % 3 == 0,
        )


@pytest.mark.parametrize("assign", range(3))
def test_ssd_sized(kernel_device, assign) -> None:
    """8732 priors, as many as SSD300 has."""
    priors = random_boxes(8732, seeded(0))
    objects = random_objects(2, seeded(1), counts=(1, 2))
    _check(kernel_device, priors, objects.boxes, objects.offsets, 4096, assign)


def test_many_identical_objects_share_out_the_priors(kernel_device) -> None:
    """More objects than priors, more than one block of objects, all wanting the same."""
    priors = random_boxes(3, seeded(0))
    boxes = torch.tensor([[0.1, 0.1, 0.9, 0.9]]).repeat(66, 1)
    _check(kernel_device, priors, boxes, torch.tensor([0, 66]), 128, 1)


def test_wild_offsets_are_clamped(kernel_device) -> None:
    """Offsets out of the boxes, and backwards."""
    priors, boxes = random_boxes(20, seeded(0)), random_boxes(3, seeded(1))
    for offsets in ([-5, 99, 0, 2**40], [0, 1, 1], [3, 3], [0, 2, 1]):
        _check(kernel_device, priors, boxes, torch.tensor(offsets), 128, 0)


def test_bad_labels_match_nothing(kernel_device) -> None:
    """As objects without area: indices do not shift."""
    priors = random_boxes(30, seeded(0))
    boxes = priors[:5].contiguous()
    labels = torch.tensor([0, 21, -1, 2**40, 7])
    for assign in range(3):
        matched = launch_match(
            *(x.to(kernel_device) for x in (priors, boxes, torch.tensor([0, 5]))),
            0.5, None, False, assign, labels.to(kernel_device), 21, 0,
        )  # fmt: skip
        assert set(matched.cpu().flatten().tolist()) == {-1, 4}


@pytest.mark.parametrize(("B", "P", "N"), [(0, 3, 0), (2, 0, 3), (2, 3, 0)])
def test_empty(kernel_device, B, P, N) -> None:
    """Nothing to match."""
    offsets = torch.linspace(0, N, B + 1).long()
    _check(kernel_device, random_boxes(P, seeded(0)), random_boxes(N, seeded(1)), offsets, 64, 0)
