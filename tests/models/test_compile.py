# SPDX-License-Identifier: BSD-3-Clause
"""A compiled training step meets other numbers of objects without a new graph."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from ssd_fast.models.ssd import SSD, ssd300_vgg16
from ssd_fast.targets import Targets
from ssd_fast.testing import random_objects, seeded

CAPACITY = 32


@pytest.fixture
def model() -> SSD:
    """A slim model, and a compiler that has seen nothing."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    return ssd300_vgg16(4, width=0.03)


def batch(seed: int) -> tuple[Tensor, Targets]:
    """Two images with 0 to 8 objects each, padded to the same capacity."""
    generator = seeded(seed)
    objects = random_objects(2, generator, counts=(0, 8), classes=4)
    missing = CAPACITY - len(objects.labels)
    boxes = torch.cat([objects.boxes, torch.zeros(missing, 4)])
    labels = torch.cat([objects.labels, torch.zeros(missing, dtype=torch.int64)])
    return torch.rand(2, 3, 300, 300, generator=generator), Targets(boxes, labels, objects.offsets)


def test_padded_targets_never_recompile(model):
    """Forward and backward; `fullgraph` raises at a graph break, the config at a recompilation."""

    def losses(images: Tensor, targets: Targets) -> Tensor:
        return sum(model(images, targets).values())

    compiled = torch.compile(losses, fullgraph=True, backend="aot_eager")
    compiled(*batch(0)).backward()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(1, 20):
            model.zero_grad()
            loss = compiled(*batch(seed))
            loss.backward()
            if seed % 9 == 0:
                gradients = [p.grad.clone() for p in model.parameters()]
                model.zero_grad()
                expected = losses(*batch(seed))
                expected.backward()
                torch.testing.assert_close(loss, expected)
                for p, gradient in zip(model.parameters(), gradients, strict=True):
                    torch.testing.assert_close(gradient, p.grad, rtol=1e-4, atol=1e-5)


def test_ragged_targets_recompile_at_most_once(model):
    """Without padding N changes from batch to batch: the second graph takes any N."""
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    lengths = set()
    for seed in range(8):
        images, padded = batch(seed)
        count = int(padded.offsets[-1])
        if count < 2:  # torch specialises on 0 and 1
            continue
        targets = padded._replace(boxes=padded.boxes[:count], labels=padded.labels[:count])
        torch.testing.assert_close(compiled(images, targets), model(images, targets))
        lengths.add(count)
    assert len(lengths) > 3
    assert backend.frame_count <= 2
