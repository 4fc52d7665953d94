# SPDX-License-Identifier: BSD-3-Clause
"""The gradient of the touched cells is the dense gradient's, bit for bit, and the rest is zero."""

import pytest
import torch

from ssd_fast import _C
from ssd_fast.ops import multibox_loss  # noqa: F401  # registers the operators
from ssd_fast.ops._loss_arguments import BACKWARD_OPTIONS, loss_options
from ssd_fast.ops._touched_cells import _reference, cell_gradients
from ssd_fast.testing import seeded

from .heads_cases import CELLS, CLASSES, LAST, PLAIN, make_targets

OPTIONS = {
    "defaults": {},
    "image, smoothed": {"normalizer": "image", "label_smoothing": 0.1},
    "giou": {"box_loss": "giou", "background_index": 3},
}


def arguments_of(batch=2, counts=(1, 2), dtype=torch.float32, memory_format=PLAIN, options=()):
    """Arguments of the operator: random maps and what the loss made of their rows."""
    generator = seeded(5)
    deltas, logits = (
        [
            torch.randn(batch, a * columns, h, w, generator=generator)
            .to(dtype)
            .contiguous(memory_format=memory_format)
            for a, h, w in CELLS
        ]
        for columns in (4, CLASSES)
    )
    targets = make_targets(batch, counts=counts)
    chosen = loss_options(**dict(options))
    _, _, num_positives, code = torch.ops.ssd_fast.multibox_loss.default(
        deltas, logits, *targets, None, None, *chosen
    )
    scales = torch.tensor(2.0), torch.tensor(3.0)
    shared = chosen[BACKWARD_OPTIONS]
    return (*scales, deltas, logits, *targets, code, num_positives, None, *shared)


def assert_same(actual, expected) -> None:
    for kind, other in zip(actual, expected, strict=True):
        for x, y in zip(kind, other, strict=True):
            assert x.dtype == y.dtype
            assert x.equal(y)


@pytest.mark.parametrize("memory_format", [PLAIN, LAST], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS)
def test_rows_are_those_of_the_dense_gradient(options, dtype, memory_format) -> None:
    arguments = arguments_of(
        dtype=dtype, memory_format=memory_format, options=tuple(OPTIONS[options].items())
    )
    cells, grad_deltas, grad_logits = cell_gradients(*arguments)
    assert_same((cells, grad_deltas, grad_logits), _reference(*arguments))
    assert sum(len(x) for x in cells) > 10
    # Nothing of the dense gradient is left out.
    maps = [[x.float() for x in kind] for kind in arguments[2:4]]
    dense = torch.ops.ssd_fast.multibox_loss_backward.default(*arguments[:2], *maps, *arguments[4:])
    for rows, whole in zip((grad_deltas, grad_logits), dense, strict=True):
        for part, level in zip(rows, whole, strict=True):
            assert part.abs().sum().item() == pytest.approx(level.abs().sum().item(), rel=1e-5)


@pytest.mark.parametrize("name", ["portable", "avx2", "avx512"])
def test_every_instruction_set_lists_the_same_cells(name: str) -> None:
    if name not in _C.instruction_sets():
        pytest.skip(f"this processor has no {name}")
    arguments = arguments_of(batch=3, counts=(0, 3))
    before = _C.instruction_set()
    _C.set_instruction_set(name)
    try:
        assert_same(cell_gradients(*arguments), _reference(*arguments))
    finally:
        _C.set_instruction_set(before)


@pytest.mark.parametrize(("batch", "counts"), [(0, (0, 0)), (1, (0, 0)), (5, (0, 4))])
def test_few_and_no_images_and_objects(batch: int, counts: tuple[int, int]) -> None:
    arguments = arguments_of(batch, counts)
    assert_same(cell_gradients(*arguments), _reference(*arguments))


@pytest.mark.parametrize("change", ["codes", "offsets", "labels"])
def test_rows_of_no_object_are_zero(change: str) -> None:
    """Of targets that were changed after the forward; the cells are those of the codes."""
    arguments = list(arguments_of(batch=3, counts=(1, 3)))
    before, *_ = cell_gradients(*arguments)
    if change == "codes":
        code = arguments[8]
        arguments[8] = torch.where(code >= 0, 2**31 - 1, code)
    elif change == "offsets":
        arguments[7] = torch.tensor([0, -5, 1000, 3])
    else:
        arguments[6] = torch.full_like(arguments[6], -1)
    found = cell_gradients(*arguments)
    assert_same(found, _reference(*arguments))
    assert_same([found[0]], [before])
    if change != "offsets":
        assert not any(rows.any() for rows in found[1])


def test_registration() -> None:
    torch.library.opcheck(torch.ops.ssd_fast.cell_gradients.default, arguments_of())
