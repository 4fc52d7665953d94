# SPDX-License-Identifier: BSD-3-Clause
"""The gradient of the MultiBox loss where it is not zero: cells of the heads' maps, compact.

CPU csrc/cpu/multibox_loss.cpp, csrc/touched_cells.h
test tests/ops/test_touched_cells.py   benchmark benchmarks/bench_heads_loss.py
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssd_fast.assignment import HARD_NEGATIVE
from ssd_fast.ops._library import register

__all__ = ["cell_gradients"]

CellGradients = tuple[list[Tensor], list[Tensor], list[Tensor]]


def cell_gradients(
    grad_box_loss: Tensor,
    grad_class_loss: Tensor,
    deltas: Sequence[Tensor],
    logits: Sequence[Tensor],
    *rest: Any,
) -> CellGradients:
    """What `multibox_loss_backward` would write into the touched cells, and nothing else.

    Args:
        grad_box_loss: () float32, as all that follow but the maps for `multibox_loss_backward`.
        grad_class_loss: () float32.
        deltas: one map a level, (B, A * 4, H, W).
        logits: one map a level, (B, A * C, H, W).
        rest: priors (P, 4), boxes (N, 4), labels (N,), offsets (B + 1,), code (B, P),
            num_positives (B,), class weights (C,) or None, and the options.

    Returns:
        Of each level the cells in which a prior was selected, (n,) int64, rising, as image * H * W
        + y * W + x; and there the gradients of the deltas (n, A * 4) and of the logits (n, A * C),
        float32.
    """
    result: CellGradients = _operator(grad_box_loss, grad_class_loss, deltas, logits, *rest)
    return result


def _reference(
    grad_box_loss: Tensor,
    grad_class_loss: Tensor,
    deltas: list[Tensor],
    logits: list[Tensor],
    *rest: Any,
) -> CellGradients:
    code = rest[4]
    selected = (code >= 0) | (code == HARD_NEGATIVE)
    cells = []
    sizes = [x.size(1) // 4 * x.size(2) * x.size(3) for x in deltas]
    for part, x in zip(selected.split(sizes, dim=1), deltas, strict=True):
        cells.append(part.reshape(-1, x.size(1) // 4).any(1).nonzero()[:, 0])
    maps = ([x.float() for x in kind] for kind in (deltas, logits))
    gradients = torch.ops.ssd_fast.multibox_loss_backward.default(
        grad_box_loss, grad_class_loss, *maps, *rest
    )
    grad_deltas, grad_logits = (
        [x.permute(0, 2, 3, 1).flatten(0, 2)[c] for x, c in zip(kind, cells, strict=True)]
        for kind in gradients
    )
    return cells, grad_deltas, grad_logits


def _fake(
    grad_box_loss: Tensor,
    grad_class_loss: Tensor,
    deltas: list[Tensor],
    logits: list[Tensor],
    *_: Any,
) -> CellGradients:
    counts = [torch.library.get_ctx().new_dynamic_size() for _ in deltas]
    return (
        [x.new_empty(n, dtype=torch.int64) for n, x in zip(counts, deltas, strict=True)],
        [
            x.new_empty(n, x.size(1), dtype=torch.float32)
            for n, x in zip(counts, deltas, strict=True)
        ],
        [
            x.new_empty(n, x.size(1), dtype=torch.float32)
            for n, x in zip(counts, logits, strict=True)
        ],
    )


_operator = register(
    "cell_gradients",
    "(Tensor grad_box_loss, Tensor grad_class_loss, Tensor[] deltas, Tensor[] logits, "
    "Tensor priors, Tensor boxes, Tensor labels, Tensor offsets, Tensor code, "
    "Tensor num_positives, Tensor? class_weights, int box_loss, float beta, float[] variances, "
    "float label_smoothing, int background_index, int normalizer) "
    "-> (Tensor[] cells, Tensor[] grad_deltas, Tensor[] grad_logits)",
    reference=_reference,
    fake=_fake,
)
