# SPDX-License-Identifier: BSD-3-Clause
"""Features, heads and targets for tests of `heads_loss`, and the dense path to compare with."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from ssd_fast.ops import heads_loss, multibox_loss
from ssd_fast.testing import assert_close, random_boxes, random_objects, seeded

CELLS = [(4, 9, 7), (6, 4, 5), (4, 1, 1)]  # anchors, height, width of each level
CHANNELS = 5
CLASSES = 6
LAST, PLAIN = torch.channels_last, torch.contiguous_format


class Heads(NamedTuple):
    """What `heads_loss` takes first."""

    features: list[Tensor]
    delta_weights: list[Tensor]
    delta_biases: list[Tensor | None]
    logit_weights: list[Tensor]
    logit_biases: list[Tensor | None]

    def map(self, change) -> "Heads":
        """The same with every tensor changed."""
        return Heads(*([None if x is None else change(x) for x in kind] for kind in self))

    def tensors(self) -> list[Tensor]:
        """All of them that a gradient may go to."""
        return [x for kind in self for x in kind if x is not None and x.requires_grad]


def make_heads(batch=2, cells=CELLS, formats=(PLAIN, PLAIN), seed=0) -> Heads:
    """Random features and heads; `formats` of the features and of the weights."""
    generator = seeded(seed)

    def randn(*shape, scale=1.0):
        return torch.randn(*shape, generator=generator) * scale

    features = [randn(batch, CHANNELS, h, w).to(memory_format=formats[0]) for _, h, w in cells]
    parts = []
    for columns in (4, CLASSES):
        weights = [randn(a * columns, CHANNELS, 3, 3, scale=0.3) for a, _, _ in cells]
        parts.append([weight.to(memory_format=formats[1]) for weight in weights])
        parts.append([randn(a * columns) for a, _, _ in cells])
    return Heads(features, *parts).map(lambda x: x.requires_grad_())


def make_targets(batch=2, cells=CELLS, counts=(1, 2), seed=1) -> tuple[Tensor, ...]:
    """Priors, boxes, labels and offsets."""
    priors = random_boxes(sum(a * h * w for a, h, w in cells), seeded(seed))
    return priors, *random_objects(batch, seeded(seed + 1), counts=counts, classes=CLASSES)


def through_maps(heads: Heads, *targets, **options) -> tuple[Tensor, ...]:
    """The dense path: PyTorch's convolutions, then the other operator."""
    x = heads.features
    deltas = [conv2d(*level, padding=1) for level in zip(x, heads[1], heads[2], strict=True)]
    logits = [conv2d(*level, padding=1) for level in zip(x, heads[3], heads[4], strict=True)]
    return multibox_loss(deltas, logits, *targets, **options)


def losses_and_gradients(function, heads: Heads, *targets, **options):
    """What `function` gives, and the gradients of ``2 box_loss + 3 class_loss``."""
    *losses, num_positives = function(*heads, *targets, **options)
    gradients = torch.autograd.grad(2 * losses[0] + 3 * losses[1], heads.tensors())
    return [x.detach() for x in losses], num_positives, gradients


def assert_equal_to_maps(heads: Heads, *targets, tolerance=2e-6, **options) -> None:
    """Losses bit for bit, gradients but for the order of sums, in the same memory layout."""
    losses, positives, gradients = losses_and_gradients(heads_loss, heads, *targets, **options)
    dense = losses_and_gradients(lambda *a, **o: through_maps(Heads(*a[:5]), *a[5:], **o), heads,
                                 *targets, **options)  # fmt: skip
    assert all(a.equal(b) for a, b in zip(losses, dense[0], strict=True))
    assert positives.equal(dense[1])
    for a, b, x in zip(gradients, dense[2], heads.tensors(), strict=True):
        assert_close(a, b, tolerance=tolerance)
        assert a.dtype == x.dtype
        assert a.stride() == x.stride() or not x.is_contiguous()
