# SPDX-License-Identifier: BSD-3-Clause
"""Compiled training and inference: one graph, also for other numbers of objects."""

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from ssd_fast.models import SSD, ssd300_vgg16
from ssd_fast.targets import Targets
from ssd_fast.testing import random_objects, seeded

CAPACITY = 32


@pytest.fixture
def model() -> SSD:
    """A slim model, and a compiler that has seen nothing."""
    torch._dynamo.reset()
    counters.clear()
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
    lengths = []
    for seed in range(24):
        images, padded = batch(seed)
        count = int(padded.offsets[-1])
        if count < 2:  # torch specialises on 0 and 1
            continue
        targets = padded._replace(boxes=padded.boxes[:count], labels=padded.labels[:count])
        losses = compiled(images, targets)
        if seed % 6 == 0:
            torch.testing.assert_close(losses, model(images, targets))
        lengths.append(count)
    assert len(lengths) >= 20
    assert len(set(lengths)) > 8
    assert backend.frame_count <= 2
    assert not counters["graph_break"]


def test_a_training_step_is_one_graph(model):
    """As Dynamo itself explains it, with nothing that forbids a break."""
    explained = torch._dynamo.explain(model)(*batch(0))
    assert (explained.graph_break_count, explained.graph_count) == (0, 1)


def test_inference_is_one_graph(model):
    """Padded and as dictionaries, of a batch and of images of several sizes."""
    model.eval()
    generator = seeded(0)
    images = torch.rand(2, 3, 300, 300, generator=generator)
    several = [torch.rand(3, 300, 200, generator=generator), images[0]]
    with torch.no_grad():
        for call, inputs in ((model.detect_padded, images), (model, images), (model, several)):
            torch._dynamo.reset()
            compiled = torch.compile(call, fullgraph=True, backend="eager")
            torch.testing.assert_close(compiled(inputs), call(inputs), rtol=0, atol=0)
            assert counters["stats"]["unique_graphs"] == 1
            assert not counters["graph_break"]
            counters.clear()
