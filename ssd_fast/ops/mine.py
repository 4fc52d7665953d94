# SPDX-License-Identifier: BSD-3-Clause
"""mine: the hardest negatives of each image.

CPU csrc/cpu/mine.cpp   GPU kernels/mine.py
test tests/ops/test_mine.py   benchmark benchmarks/bench_mine.py
"""

import torch
from torch import Tensor

from ssd_fast.assignment import mine_batch
from ssd_fast.ops._arguments import check_count, check_device, check_number, describe
from ssd_fast.ops._library import register

__all__ = ["mine", "mine_reference"]


def mine(loss: Tensor, match: Tensor, *, ratio: float = 3.0, min_negatives: int = 0) -> Tensor:
    """Selects the hardest negatives of each image (SSD paper, section 2.2, hard negative mining).

    Of the background priors of an image, those with the largest loss are selected: ``ratio`` for
    each positive, at least ``min_negatives``, at most all. It is a selection, not a sort.

    Args:
        loss: (B, P) float32, how hard a prior is. NaN counts as the largest, -0.0 equals 0.0.
        match: (B, P) int32 as `match` returns it: >= 0 positive, -1 background, -2 ignored.
        ratio: negatives for each positive; ``ceil(float32(ratio) * float32(positives))``.
        min_negatives: least number for an image, so that images without objects can train
            (TensorFlow Object Detection's ``min_negatives_per_image``).

    Returns:
        (B, P) bool. Of equal losses the lowest prior index is selected first.

    Raises:
        ValueError: for arguments of a wrong shape, dtype, device or range.

    Example:
        >>> loss = torch.tensor([[0.1, 2.0, 0.3, 1.0, 5.0]])
        >>> mine(loss, torch.tensor([[-1, -1, -1, -1, 0]], dtype=torch.int32), ratio=2)
        tensor([[False,  True, False,  True, False]])
    """
    if not isinstance(loss, Tensor) or loss.dim() != 2 or loss.dtype != torch.float32:
        raise ValueError(f"loss: expected (B, P) float32, got {describe(loss)}")
    if not isinstance(match, Tensor) or match.shape != loss.shape or match.dtype != torch.int32:
        raise ValueError(f"match: expected {tuple(loss.shape)} int32, got {describe(match)}")
    check_device(loss=loss, match=match)
    check_number("ratio", ratio, low=0, high=torch.finfo(torch.float32).max)
    check_count("min_negatives", min_negatives)
    selected: Tensor = _operator(loss, match, ratio, min_negatives)
    return selected


def mine_reference(
    loss: Tensor, match: Tensor, *, ratio: float = 3.0, min_negatives: int = 0
) -> Tensor:
    """The definition of `mine`, in plain PyTorch; takes float64 too."""
    return mine_batch(loss, match, ratio=ratio, min_negatives=min_negatives)


def _reference(loss: Tensor, match: Tensor, ratio: float, min_negatives: int) -> Tensor:
    return mine_batch(loss, match, ratio=ratio, min_negatives=min_negatives)


def _fake(loss: Tensor, match: Tensor, ratio: float, min_negatives: int) -> Tensor:
    return loss.new_empty(loss.shape, dtype=torch.bool)


_operator = register(
    "mine",
    "(Tensor loss, Tensor match, float ratio, int min_negatives) -> Tensor",
    reference=_reference,
    fake=_fake,
    cuda="mine.launch_mine",
)
