# SPDX-License-Identifier: BSD-3-Clause
"""The CPU kernels read nothing behind or before a tensor: there, memory is nobody's.

Kernels read whole vectors, and a value that was read too much changes hardly any result. A failure
here is no assertion: it ends the process.
"""

import ctypes
import mmap
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ssd_fast import _C, ops
from ssd_fast.testing import as_maps, random_boxes, random_objects, seeded

SETS = _C.instruction_sets()
PROT_NONE = 0
LAYOUTS = ["rows", "planes", "channels_last"]


@pytest.fixture(params=SETS, autouse=True)
def _instruction_set(request: pytest.FixtureRequest) -> Iterator[None]:
    _C.set_instruction_set(request.param)
    yield
    _C.set_instruction_set(SETS[-1])


@pytest.fixture(params=["behind", "before"])
def alone(request: pytest.FixtureRequest):
    """Copies a contiguous tensor to where the page behind it, or before it, cannot be read."""
    page = mmap.PAGESIZE

    def copied(tensor: Tensor) -> Tensor:
        size = tensor.numel() * tensor.element_size()
        if size == 0:
            return tensor
        pages = -(-size // page) * page
        memory = mmap.mmap(-1, pages + page)
        behind = request.param == "behind"
        begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        closed = begin + (pages if behind else 0)
        arguments = ctypes.c_void_p(closed), ctypes.c_size_t(page), PROT_NONE
        assert ctypes.CDLL(None).mprotect(*arguments) == 0
        offset = pages - size if behind else page
        flat = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
        return flat.copy_(tensor.flatten()).view(tensor.shape)

    return copied


def _levels(rows: Tensor, layout: str, alone) -> list[Tensor]:
    """(B, P, K) rows of 4 boxes a cell as they are, or as a map in another memory format."""
    cells = rows.size(1) // 4
    if layout == "rows" or cells == 0:
        return [alone(rows)]
    level = as_maps(rows[:, : 4 * cells], [(4, 1, cells)])[0]
    if layout == "planes":
        return [alone(level)]
    return [alone(level.permute(0, 2, 3, 1).contiguous()).permute(0, 3, 1, 2)]


@pytest.mark.parametrize("P", [1, 7, 16, 17, 255, 257, 300])
def test_priors_and_boxes(P: int, alone) -> None:
    priors, boxes = alone(random_boxes(P, seeded(0))), alone(random_boxes(P, seeded(1)))
    scores = alone(torch.rand(2, P, generator=seeded(2)))
    matched = ops.match(priors, boxes[-5:], alone(torch.tensor([0, min(P, 5)])))
    ops.mine(scores, alone(matched.repeat(2, 1)), min_negatives=P // 2)
    for dtype in (torch.float32, torch.bfloat16):
        ops.decode(alone(torch.zeros(2, P, 4, dtype=dtype)), priors)
    ops.encode(alone(boxes.repeat(2, 1, 1)), priors)
    ops.batched_nms(boxes, scores[0], alone(torch.arange(P) % 3), 0.45)
    ops.nms(boxes, scores[1], 0.45)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("P", "C"), [(4, 2), (20, 21), (68, 16), (36, 15), (36, 17), (36, 24), (36, 25), (36, 81)]
)
def test_heads(P: int, C: int, dtype: torch.dtype, layout: str, alone) -> None:
    deltas, logits = (torch.randn(2, P, K, generator=seeded(K)).to(dtype) for K in (4, C))
    deltas, logits = (_levels(rows, layout, alone) for rows in (deltas, logits))
    priors, objects = alone(random_boxes(P, seeded(1))), random_objects(2, seeded(2), classes=C)
    ops.detect(deltas, logits, priors)
    ops.detect(deltas, logits, priors, scores="sigmoid", background_index=None)
    for loss in (ops.multibox_loss, ops.focal_loss):
        for level in (*deltas, *logits):
            level.requires_grad_()
        box_loss, class_loss, _ = loss(deltas, logits, priors, *map(alone, objects))
        torch.autograd.grad(box_loss + class_loss, (*deltas, *logits))
