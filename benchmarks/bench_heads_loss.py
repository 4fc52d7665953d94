# SPDX-License-Identifier: BSD-3-Clause
"""heads_loss: the backward of SSD300's heads from the touched cells, beside PyTorch's own.

And the loss in front of it, whose gradient then consists of these cells alone, beside losses that
write a gradient of all logits.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.cases import CELLS, Case, make_case
from benchmarks.harness import Contender, SideBySide
from benchmarks.losses import loss_contenders, of_amdegroot, of_torchvision, ssd_fast
from ssd_fast.ops._loss_arguments import BACKWARD_OPTIONS, loss_options
from ssd_fast.ops._touched_cells import cell_gradients
from ssd_fast.ops.heads_loss import _backward_reference
from ssd_fast.testing import as_maps, assert_close

CHANNELS = (512, 1024, 512, 256, 256, 256)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.02}
"""Of the largest element, against float32 sums of the same numbers. Sums of up to nine bfloat16
products are rounded to bfloat16 once a term."""
FORMATS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
OPTIONS = (0, 1.0, (0.1, 0.1, 0.2, 0.2), 0.0, 0, 0)
"""beta, variances, background_index, normalizer"""


@pytest.mark.parametrize(
    ("batch", "objects", "memory_format"),
    [
        (1, (1, 8), "channels_last"),
        (8, (1, 8), "NCHW"),
        (8, (1, 8), "channels_last"),
        (8, (8, 40), "channels_last"),
    ],
)
@pytest.mark.parametrize("classes", [21, 81])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_heads_loss_backward(
    side_by_side: SideBySide,
    objects: tuple[int, int],
    batch: int,
    classes: int,
    dtype: torch.dtype,
    memory_format: str,
) -> None:
    case = make_case(batch, classes, objects=objects)
    thin = 1 if side_by_side.timing else 16
    arguments = backward_arguments(case, dtype, FORMATS[memory_format], thin)
    exact = [as_float32(argument) for argument in arguments]
    expected = _backward_reference(*exact)

    def check(gradients: list[Tensor]) -> None:
        for actual, gradient in zip(gradients, expected, strict=True):
            assert_close(actual, gradient, tolerance=TOLERANCE[dtype], what="gradient")

    sparse = torch.ops.ssd_fast.heads_loss_backward.default
    name = str(dtype).removeprefix("torch.")
    side_by_side(
        f"heads_loss backward, B={batch}, C={classes}, {objects[0]}-{objects[1]} objects, {name},"
        f" {memory_format}",
        [
            Contender("ssd_fast", lambda: sparse(*arguments), check),
            Contender("aten", lambda: _backward_reference(*arguments), check),
        ],
        caches=["cold"],
    )


@pytest.mark.parametrize("classes", [21, 81])
@pytest.mark.parametrize("batch", [8, 32])
def test_loss_to_the_touched_cells(side_by_side: SideBySide, batch: int, classes: int) -> None:
    if batch == 32 and not side_by_side.timing:
        pytest.skip("nothing but larger: its results are checked when it is timed")
    case = make_case(batch, classes)
    maps = [
        [level.contiguous(memory_format=torch.channels_last) for level in as_maps(rows, CELLS)]
        for rows in (case.deltas, case.logits)
    ]
    targets, options, one = (case.priors, *case.objects), loss_options(), torch.ones(())

    def call() -> Any:
        _, _, num_positives, code = torch.ops.ssd_fast.multibox_loss.default(
            *maps, *targets, None, None, *options
        )
        rest = code, num_positives, None, *options[BACKWARD_OPTIONS]
        return cell_gradients(one, one, *maps, *targets, *rest)

    dense, *peers = loss_contenders(case, (ssd_fast, of_amdegroot, of_torchvision), backward=True)

    def check(found: Any) -> None:
        touched, *kinds = found
        dense.check(
            tuple(
                torch.cat(
                    [
                        rows.new_zeros(batch * n * n, rows.size(1))
                        .index_copy_(0, where, rows)
                        .view(batch, a * n * n, -1)
                        for rows, where, (a, n, _) in zip(kind, touched, CELLS, strict=True)
                    ],
                    dim=1,
                )
                for kind in kinds
            )
        )

    side_by_side(
        f"multibox_loss forward + backward to the touched cells, B={batch}, C={classes}, "
        "1-8 objects",
        # Autograd and the gradient of every cell are in all others: ours with both beside them.
        [Contender("ssd_fast", call, check), replace(dense, name="ssd_fast, all cells"), *peers],
    )


def backward_arguments(
    case: Case, dtype: torch.dtype, memory_format: torch.memory_format, thin: int
) -> list[Any]:
    """Arguments of `ssd_fast::heads_loss_backward`: a trained network's maps, random features."""
    generator = torch.Generator().manual_seed(3)
    channels = [count // thin for count in CHANNELS]

    def randn(*shape: int) -> Tensor:
        tensor = torch.randn(*shape, generator=generator)
        return tensor.to(dtype).contiguous(memory_format=memory_format)

    features = [
        randn(case.batch, c, side, side).relu_()
        for c, (_, side, _) in zip(channels, CELLS, strict=True)
    ]
    weights = [
        [
            randn(anchors * columns, c, 3, 3).mul_(0.02)
            for c, (anchors, _, _) in zip(channels, CELLS, strict=True)
        ]
        for columns in (4, case.classes)
    ]
    maps = [
        [level.to(dtype).contiguous(memory_format=memory_format) for level in as_maps(rows, CELLS)]
        for rows in (case.deltas, case.logits)
    ]
    targets = case.priors, *case.objects
    _, _, num_positives, code = torch.ops.ssd_fast.multibox_loss.default(
        *maps, *targets, None, None, 0.5, None, False, 0, 0.5, 3.0, 0, *OPTIONS
    )
    one = torch.ones(())
    wanted = [True] * (5 * len(CELLS))
    saved = *targets, code, num_positives, wanted, None
    return [one, one, features, *weights, *maps, *saved, *OPTIONS]


def as_float32(argument: Any) -> Any:
    """Lists of tensors in float32, all else as it is."""
    if isinstance(argument, Sequence) and isinstance(argument[0], Tensor):
        return [tensor.float() for tensor in argument]
    return argument
