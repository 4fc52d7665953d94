# SPDX-License-Identifier: BSD-3-Clause
"""Seeded inputs, tolerances and comparisons, for tests and benchmarks.

Inputs are made by a `torch.Generator` on the CPU, so they are the same on every machine.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ssd_fast.boxes import box_iou, encode_boxes

__all__ = [
    "CROWDS",
    "DECISION_BAND",
    "RELATIVE_TOLERANCE",
    "SCENES",
    "Objects",
    "adversarial_objects",
    "as_maps",
    "assert_close",
    "assert_same_rows",
    "crowded_boxes",
    "decided_objects",
    "flat_outputs",
    "random_boxes",
    "random_objects",
    "seeded",
    "trained_outputs",
]

RELATIVE_TOLERANCE = 1e-5
"""How far losses and gradients may be from float64, relative to the largest element: some dozens
of float32 roundings (6e-8 each) in sums over some hundred rows."""

DECISION_BAND = 1e-5
"""Keys that went through an exponential may be ordered differently within this relative distance:
exponentials of different libraries differ by 1e-7, their sums over 1204 classes by 1e-6."""


def seeded(seed: int) -> torch.Generator:
    """A generator of its own for one test or benchmark."""
    return torch.Generator().manual_seed(seed)


class Objects(NamedTuple):
    """The objects of a batch: boxes (N, 4) float32, labels (N,) int64, offsets (B + 1,) int64."""

    boxes: Tensor
    labels: Tensor
    offsets: Tensor


def random_boxes(
    count: int, generator: torch.Generator, *, smallest: float = 0.04, largest: float = 0.85
) -> Tensor:
    """Boxes inside [0, 1] with log-uniform sides.

    Args:
        count: n.
        generator: where the numbers come from.
        smallest: the least side.
        largest: the greatest side.

    Returns:
        (n, 4) float32 corners.
    """
    span = torch.tensor(largest / smallest).log()
    sides = smallest * (torch.rand(count, 2, generator=generator) * span).exp()
    corner = torch.rand(count, 2, generator=generator) * (1 - sides)
    return torch.cat((corner, corner + sides), dim=1)


def random_objects(
    batch: int,
    generator: torch.Generator,
    *,
    counts: tuple[int, int] = (1, 8),
    classes: int = 21,
    smallest: float = 0.04,
    largest: float = 0.85,
) -> Objects:
    """Objects for a batch, between ``counts[0]`` and ``counts[1]`` an image, labels from 1.

    Args:
        batch: B.
        generator: where the numbers come from.
        counts: least and greatest number of objects of an image.
        classes: C, with the background.
        smallest: the least side.
        largest: the greatest side.
    """
    per_image = torch.randint(counts[0], counts[1] + 1, (batch,), generator=generator)
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), per_image.cumsum(0)))
    total = int(offsets[-1])
    boxes = random_boxes(total, generator, smallest=smallest, largest=largest)
    return Objects(boxes, torch.randint(1, classes, (total,), generator=generator), offsets)


def _on_grid(count: int, generator: torch.Generator) -> Tensor:
    """Boxes with corners on multiples of 1/8: most overlaps are exact and many are equal."""
    corner = torch.randint(0, 7, (count, 2), generator=generator)
    side = torch.randint(1, 5, (count, 2), generator=generator)
    return torch.cat((corner, corner + side), dim=1) / 8


def _touching(count: int, generator: torch.Generator) -> Tensor:
    """Boxes side by side that share edges and nothing else."""
    x = torch.arange(count) % 8
    y = torch.arange(count) // 8 % 8
    corner = torch.stack((x, y), dim=1) / 8
    return torch.cat((corner, corner + 1 / 8), dim=1)


def _nested(count: int, generator: torch.Generator) -> Tensor:
    """Boxes inside each other around one center."""
    half = torch.linspace(0.02, 0.5, max(count, 1))[:count].unsqueeze(1)
    return torch.cat((0.5 - half, 0.5 - half, 0.5 + half, 0.5 + half), dim=1)


def _duplicates(count: int, generator: torch.Generator) -> Tensor:
    """A few boxes over and over."""
    few = random_boxes(2, generator)
    return few[torch.randint(0, 2, (count,), generator=generator)]


def _broken(count: int, generator: torch.Generator) -> Tensor:
    """Healthy boxes among inverted, empty, infinite, NaN and huge ones."""
    boxes = random_boxes(count, generator)
    inf, nan = float("inf"), float("nan")
    broken = torch.tensor(
        [
            [0.6, 0.2, 0.4, 0.8],
            [0.6, 0.8, 0.4, 0.2],
            [0.5, 0.5, 0.5, 0.9],
            [-inf, 0, inf, 1],
            [0, 0, nan, 1],
            [-3e38, -3e38, 3e38, 3e38],
            [0.5, 0.5, 0.5 + 1e-30, 0.5 + 1e-30],
        ]
    )
    which = torch.randint(0, 2 * len(broken), (count,), generator=generator)
    return torch.where((which < len(broken)).unsqueeze(1), broken[which % len(broken)], boxes)


SCENES: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "random": random_boxes,
    "ties": _on_grid,
    "touching": _touching,
    "nested": _nested,
    "duplicates": _duplicates,
    "broken": _broken,
}
"""Families of boxes that are hard to match, suppress or count: ``SCENES[name](n, generator)``."""


def adversarial_objects(
    scene: str, per_image: Sequence[int], generator: torch.Generator, *, classes: int = 21
) -> Objects:
    """Objects of one family of `SCENES`, ``per_image[i]`` in image i."""
    offsets = torch.tensor([0, *per_image]).cumsum(0)
    total = int(offsets[-1])
    boxes = SCENES[scene](total, generator).float()
    return Objects(boxes, torch.randint(1, classes, (total,), generator=generator), offsets)


def as_maps(rows: Tensor, cells: Sequence[tuple[int, int, int]]) -> list[Tensor]:
    """Takes (B, P, K) rows apart into the raw maps of the heads.

    Args:
        rows: (B, P, K), rows in (level, y, x, anchor) order.
        cells: (A, H, W) of each level.

    Returns:
        One (B, A * K, H, W) tensor a level, contiguous.
    """
    maps = []
    begin = 0
    for anchors, height, width in cells:
        count = anchors * height * width
        level = rows[:, begin : begin + count].reshape(rows.size(0), height, width, -1)
        maps.append(level.permute(0, 3, 1, 2).contiguous())
        begin += count
    return maps


def assert_close(
    actual: Tensor, expected: Tensor, *, tolerance: float = RELATIVE_TOLERANCE, what: str = "result"
) -> None:
    """Fails unless every element is within ``tolerance`` of the largest expected magnitude.

    Infinite and NaN elements must stand at the same places.
    """
    expected = expected.to(torch.float64)
    actual = actual.detach().to(torch.float64)
    assert actual.shape == expected.shape, f"{what}: {actual.shape} is not {expected.shape}"
    finite = expected.isfinite()
    torch.testing.assert_close(actual[~finite], expected[~finite], equal_nan=True)
    if bool(finite.any()):
        error = (actual[finite] - expected[finite]).abs().max()
        scale = expected[finite].abs().max()
        assert error <= tolerance * scale, (
            f"{what}: off by {error:.3e} where the largest element is {scale:.3e}, "
            f"allowed is {tolerance:.0e} of it"
        )


def assert_same_rows(
    actual: Tensor, expected: Tensor, key: Tensor, *, band: float = DECISION_BAND
) -> None:
    """Fails unless two selections are equal but for rows whose keys lie within ``band``.

    Args:
        actual: (B, P) bool, a selection of the largest keys of each image.
        expected: (B, P) bool, the other selection.
        key: (B, P) what was compared.
        band: relative distance within which keys may be ordered either way.
    """
    assert torch.equal(actual.sum(1), expected.sum(1)), "another number of rows is selected"
    for image in (actual != expected).any(1).nonzero().flatten().tolist():
        differing = key[image][actual[image] != expected[image]].double()
        low, high = float(differing.min()), float(differing.max())
        assert high - low <= band * abs(high), (
            f"image {image}: rows with keys from {low} to {high} are selected differently, "
            f"further apart than {band} of them"
        )


def decided_objects(
    batch: int,
    priors: Tensor,
    generator: torch.Generator,
    *,
    counts: tuple[int, int] = (1, 8),
    classes: int = 21,
    threshold: float = 0.5,
    margin: float = 0.007,
) -> Objects:
    """Objects as `random_objects` makes them, of which no matching decision is close.

    The best prior of an object beats the second, an overlap misses the threshold and the better
    of two objects that a prior could go to beats the other, each by ``margin`` of the IoU. So
    matchers agree that round differently, or break ties otherwise, or add 1e-5 to unions (lufficc,
    qfgaohao: 0.6 % of the IoU for a box with sides of 0.04).

    Args:
        batch: B.
        priors: (P, 4) corners in [0, 1].
        generator: where the numbers come from.
        counts: least and greatest number of objects of an image.
        classes: C, with the background.
        threshold: the IoU from which a prior is positive.
        margin: relative distance of every decision.
    """
    images = []
    for count in torch.randint(counts[0], counts[1] + 1, (batch,), generator=generator).tolist():
        boxes = random_boxes(0, generator)
        while boxes.size(0) < count:
            boxes = torch.cat((boxes, random_boxes(3 * count, generator)))
            boxes = boxes[_clear_cut(boxes, priors, threshold, margin)]
        images.append(boxes[:count])
    offsets = torch.tensor([0, *map(len, images)]).cumsum(0)
    labels = torch.randint(1, classes, (int(offsets[-1]),), generator=generator)
    return Objects(torch.cat(images), labels, offsets)


def _clear_cut(boxes: Tensor, priors: Tensor, threshold: float, margin: float) -> Tensor:
    """Which objects (n,) can stay so that no decision of `decided_objects` is close."""
    iou = box_iou(boxes, priors)  # (n, P)
    best, second = iou.topk(2, dim=1).values.unbind(1)
    clear = (second < best * (1 - margin)) & ((iou - threshold).abs() > margin * threshold).all(1)
    iou = iou.masked_fill((iou < threshold) | ~clear.unsqueeze(1), 0).t().contiguous()
    while boxes.size(0) > 1:
        overlap, owner = iou.topk(2, dim=1)
        contested = (overlap[:, 1] > 0) & (overlap[:, 1] >= overlap[:, 0] * (1 - margin))
        if not bool(contested.any()):
            break
        leaving = owner[contested].amax(dim=1)
        clear[leaving] = False
        iou[:, leaving] = 0
    return clear


def trained_outputs(
    objects: Objects, priors: Tensor, generator: torch.Generator, *, classes: int = 21
) -> tuple[Tensor, Tensor]:
    """Head outputs as a trained network makes them: sure of the background, boxes on the objects.

    Priors that overlap an object by 0.4 predict it, the better the surer; one in 200 of the others
    believes in some class. The rest gives the background more than 0.99.

    Args:
        objects: what the network sees.
        priors: (P, 4) corners.
        generator: where the numbers come from.
        classes: C, with the background.

    Returns:
        deltas (B, P, 4), logits (B, P, C).
    """
    batch, rows = objects.offsets.numel() - 1, priors.size(0)
    deltas = 0.3 * torch.randn(batch, rows, 4, generator=generator)
    logits = torch.randn(batch, rows, classes, generator=generator)
    logits[..., 0] += 10.5 + torch.log(torch.tensor(classes / 21))
    for i in range(batch):
        mistaken = (torch.rand(rows, generator=generator) < 0.005).nonzero()[:, 0]
        wrong = torch.randint(1, classes, (len(mistaken),), generator=generator)
        logits[i, mistaken, wrong] += 4 + 4 * torch.rand(len(mistaken), generator=generator)
        own = slice(int(objects.offsets[i]), int(objects.offsets[i + 1]))
        boxes, labels = objects.boxes[own], objects.labels[own]
        if len(boxes) == 0:
            continue
        overlap, owner = box_iou(priors, boxes).max(dim=1)
        near = (overlap > 0.4).nonzero()[:, 0]
        owner = owner[near]
        deltas[i, near] += encode_boxes(boxes[owner], priors[near], (0.1, 0.2))
        logits[i, near, labels[owner]] += 12 * overlap[near] + 2
    return deltas, logits


def flat_outputs(
    batch: int, priors: Tensor, generator: torch.Generator, *, classes: int = 21
) -> tuple[Tensor, Tensor]:
    """Head outputs of the first epoch: noise, so that nearly every score exceeds 0.01.

    Args:
        batch: B.
        priors: (P, 4).
        generator: where the numbers come from.
        classes: C, with the background.

    Returns:
        deltas (B, P, 4), logits (B, P, C).
    """
    deltas = 0.15 * torch.randn(batch, priors.size(0), 4, generator=generator)
    return deltas, 0.15 * torch.randn(batch, priors.size(0), classes, generator=generator)


CROWDS = {"random": (2.6, 1), "clustered": (0.9, 20), "sparse": (0.25, 1)}
"""Mean side of a box relative to the mean distance of centers, and boxes a center: NMS at 0.45
keeps about 60, 7 and 99 % of them, whatever their number."""


def crowded_boxes(crowd: str, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Boxes for NMS whose density, and so the fraction that survives, does not depend on count.

    Args:
        crowd: a name in `CROWDS`.
        count: n.
        generator: where the numbers come from.

    Returns:
        boxes (n, 4) float32 corners around [0, 1], scores (n,) without ties.
    """
    side, group = CROWDS[crowd]
    groups = (count + group - 1) // group
    spacing = groups**-0.5
    member = torch.arange(count) % groups
    shape = torch.randn(groups, 2, generator=generator).mul(0.3).exp()[member]
    half = 0.5 * side * spacing * shape
    jitter = torch.randn(count, 4, generator=generator) * (0.15 if group > 1 else 0.0)
    center = torch.rand(groups, 2, generator=generator)[member] + jitter[:, :2] * half
    half = half * jitter[:, 2:].exp()
    scores = (torch.randperm(count, generator=generator) + 0.5) / count
    return torch.cat((center - half, center + half), dim=1), scores
