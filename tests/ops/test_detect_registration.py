# SPDX-License-Identifier: BSD-3-Clause
"""detect as the dispatcher, the compiler and any number of threads see it."""

import pytest
import torch

from ssd_fast.detections import Detections
from ssd_fast.ops.detect import detect
from ssd_fast.testing import as_maps, seeded

from .detect_cases import CELLS, heads


def test_repeatable_with_any_number_of_threads():
    inputs = heads(seeded(0), batch=5, kind="untrained")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = detect(*inputs)
        for count in (2, 3, 8):
            torch.set_num_threads(count)
            for _ in range(3):
                for found, wanted in zip(detect(*inputs), expected, strict=True):
                    assert torch.equal(found, wanted)
    finally:
        torch.set_num_threads(threads)


def test_arguments_are_left_alone_and_no_graph_is_kept(device):
    inputs = [t.to(device) for t in heads(seeded(0))]
    before = [t.clone() for t in inputs]
    found = detect(inputs[0].requires_grad_(), inputs[1].requires_grad_(), inputs[2])
    assert not found.boxes.requires_grad
    assert not found.scores.requires_grad
    for one, other in zip(inputs, before, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("clip", ["none", "numbers", "tensor"])
def test_registration(device, maps, clip):
    deltas, logits, priors = (t.to(device) for t in heads(seeded(0)))
    one, other = (as_maps(deltas, CELLS), as_maps(logits, CELLS)) if maps else ([deltas], [logits])
    numbers = [0.0, 0.0, 1.0, 1.0] if clip == "numbers" else None
    each = torch.tensor([[0.0, 0, 1, 1]] * 2, device=device) if clip == "tensor" else None
    torch.library.opcheck(
        torch.ops.ssd_fast.detect.default,
        (one, other, priors, 0.01, 40, 0.45, 20, [0.1, 0.2], 0, numbers, each, 4.0, 0, 0.5),
    )


def test_compiles_without_a_graph_break(device):
    deltas, logits, priors = (t.to(device) for t in heads(seeded(0)))
    compiled = torch.compile(
        lambda d, x, p: detect([d], [x * 2], p, clip=(0, 0, 1, 1)),
        fullgraph=True,
        backend="aot_eager",
    )
    found = compiled(deltas, logits, priors)
    assert isinstance(found, Detections)
    expected = detect(deltas, logits * 2, priors, clip=(0, 0, 1, 1))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_exports(device):
    class Head(torch.nn.Module):
        def forward(self, deltas, logits, priors):
            return detect(deltas, logits, priors)

    inputs = tuple(t.to(device) for t in heads(seeded(0)))
    program = torch.export.export(Head(), inputs)
    for one, other in zip(program.module()(*inputs), detect(*inputs), strict=True):
        assert torch.equal(one, other)
