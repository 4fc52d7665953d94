# SPDX-License-Identifier: BSD-3-Clause
"""Seeded batches for SSD300, each in the form that every system takes."""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks.peers import amdegroot, nvidia
from ssd_fast import priors as prior_presets
from ssd_fast.testing import Objects, decided_objects, flat_outputs, seeded, trained_outputs

IMAGE_SIZE = 300
SMALL_CLASSES = 5  # of `small_problem`, background included

_GRID = prior_presets.SSD300["voc"]
CELLS = [(a, n, n) for a, n in zip(_GRID.boxes_per_cell, _GRID.feature_maps, strict=True)]
"""Boxes of a cell, height and width of the heads' map of each level."""


@dataclass(frozen=True)
class Case:
    """A batch: what the network said and what is in the images.

    Args:
        objects: the ground truth, boxes in [0, 1].
        priors: (P, 4) corners in [0, 1].
        deltas: (B, P, 4) float32 or bfloat16.
        logits: (B, P, C) of the same type.
    """

    objects: Objects
    priors: Tensor
    deltas: Tensor
    logits: Tensor

    def of(self, dtype: torch.dtype) -> "Case":
        """The same batch from a network of another precision."""
        return replace(self, deltas=self.deltas.to(dtype), logits=self.logits.to(dtype))

    @property
    def batch(self) -> int:
        """B."""
        return self.deltas.size(0)

    @property
    def classes(self) -> int:
        """C, with the background."""
        return self.logits.size(2)

    @cached_property
    def priors_xywh(self) -> Tensor:
        """(P, 4) centre-size priors (amdegroot, lufficc, qfgaohao, sgrvinod)."""
        left_top, right_bottom = self.priors[:, :2], self.priors[:, 2:]
        return torch.cat([(left_top + right_bottom) / 2, right_bottom - left_top], 1)

    @cached_property
    def priors_pixels(self) -> Tensor:
        """(P, 4) corners in pixels (torchvision)."""
        return self.priors * IMAGE_SIZE

    @cached_property
    def default_boxes(self) -> nvidia.DefaultBoxes:
        """The priors as NVIDIA's default boxes."""
        return nvidia.DefaultBoxes(self.priors_xywh)

    @cached_property
    def boxes(self) -> list[Tensor]:
        """Boxes (n, 4) of each image, corners in [0, 1]."""
        return self._by_image(self.objects.boxes)

    @cached_property
    def labels(self) -> list[Tensor]:
        """Labels (n,) of each image, from 1."""
        return self._by_image(self.objects.labels)

    @cached_property
    def amdegroot_targets(self) -> list[Tensor]:
        """One (n, 5) tensor an image: corners and the label, from 0."""
        return [
            torch.cat([boxes, (labels - 1)[:, None].float()], 1)
            for boxes, labels in zip(self.boxes, self.labels, strict=True)
        ]

    @cached_property
    def torchvision_targets(self) -> list[dict[str, Tensor]]:
        """One dictionary an image, boxes in pixels."""
        return [
            {"boxes": boxes * IMAGE_SIZE, "labels": labels}
            for boxes, labels in zip(self.boxes, self.labels, strict=True)
        ]

    @cached_property
    def padded_targets(self) -> tuple[Tensor, Tensor]:
        """Boxes (B, G, 4) and labels (B, G), zeros behind the objects of each image."""
        pad = torch.nn.utils.rnn.pad_sequence
        return pad(self.boxes, batch_first=True), pad(self.labels, batch_first=True)

    def _by_image(self, rows: Tensor) -> list[Tensor]:
        return list(rows.split(self.objects.offsets.diff().tolist()))


@lru_cache(maxsize=4)
def make_case(
    batch: int, classes: int, *, objects: tuple[int, int] = (1, 8), flat: bool = False
) -> Case:
    """The batch of that size, the same at every call and on every machine.

    Args:
        batch: B.
        classes: C, with the background.
        objects: least and greatest number of objects an image.
        flat: outputs of the first epoch instead of a trained network's.
    """
    priors = prior_presets.ssd300("voc")
    truth = decided_objects(batch, priors, seeded(1), counts=objects, classes=classes)
    if flat:
        deltas, logits = flat_outputs(batch, priors, seeded(2), classes=classes)
    else:
        deltas, logits = trained_outputs(truth, priors, seeded(2), classes=classes)
    return Case(truth, priors, deltas, logits)


def without_background(case: Case) -> Case:
    """The same with logits (B, P, C - 1) whose sigmoids are each class against the background."""
    return replace(case, logits=case.logits[..., 1:] - case.logits[..., :1])


def small_problem(seed: int, images: int = 3) -> SimpleNamespace:
    """500 random priors, a few objects an image near some of them, random predictions.

    Has `priors` (500, 4) by centre and size, the same as `corners`, `boxes` and `labels` of each
    image, `deltas` (B, 500, 4) and `logits` (B, 500, SMALL_CLASSES).
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    priors = torch.cat([uniform(500, 2), 0.05 + 0.4 * uniform(500, 2)], 1)
    boxes, labels = [], []
    for _ in range(images):
        near = priors[torch.randperm(500, generator=generator)[:4]]
        boxes.append(amdegroot.point_form(near * (1 + 0.1 * uniform(4, 4))))
        labels.append(torch.randint(1, SMALL_CLASSES, (4,), generator=generator))
    return SimpleNamespace(
        priors=priors,
        corners=amdegroot.point_form(priors),
        boxes=boxes,
        labels=labels,
        deltas=torch.randn(images, 500, 4, generator=generator),
        logits=2 * torch.randn(images, 500, SMALL_CLASSES, generator=generator),
    )
