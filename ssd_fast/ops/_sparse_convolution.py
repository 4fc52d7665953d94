# SPDX-License-Identifier: BSD-3-Clause
"""Gradients of 3x3 convolutions whose output gradient is zero in most cells of the map.

A dense backward multiplies every cell. Here the 3x3 patches of the touched cells are gathered, one
matrix product gives the gradient of the weight and one that of the patches, which are added back
to the map: the same sums in another order. For stride 1, padding 1, dilation 1 and one group.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Level",
    "are_small",
    "cell_rows",
    "dense_backward",
    "is_sparse",
    "laid_out_like",
    "sparse_backward",
]

PATCH_BYTES = 16 * 2**20
"""The patches of a chunk of cells: they stay in the cache from one product to the next."""

SMALL = 2**27
"""Multiplications of a forward pass: a ninth of SSD300's heads with 21 classes on one image."""


class Level(NamedTuple):
    """The convolutions of one feature map, and which gradients are wanted.

    Attributes:
        features: (B, C, H, W), what is convolved.
        weights: of each convolution, (K, C, 3, 3).
        wanted: of the features, then of each convolution's weight and bias.
    """

    features: Tensor
    weights: Sequence[Tensor]
    wanted: Sequence[bool]


def cell_rows(maps: Tensor) -> Tensor:
    """(B, C, H, W) as (B * H * W, C), a row for each cell; a copy unless it is channels_last."""
    # Asked for in this way, PyTorch copies a large map ten times faster than by `reshape`.
    ordered = maps.contiguous(memory_format=torch.channels_last)
    return ordered.permute(0, 2, 3, 1).reshape(-1, maps.size(1))


def are_small(levels: Sequence[Level]) -> bool:
    """Whether the convolutions cost so little that finding cells and gathering does not pay.

    Six levels take some milliseconds of that, measured on slim SSD300 at batches of 2 and 8.
    """
    outputs = (sum(weight.size(0) for weight in level.weights) for level in levels)
    work = (9 * level.features.numel() * k for level, k in zip(levels, outputs, strict=True))
    return sum(work) < SMALL


def is_sparse(cells: int, features: Tensor) -> bool:
    """Whether gathering `cells` of a level beats the dense backward of its convolutions.

    Measured with the channels of SSD300, 21 classes, one thread, float32 and bfloat16, the two are
    equal at a third of the cells of a 38 x 38 map, half of 19 x 19 and three quarters of 10 x 10,
    and gathering wins always at 5 x 5 and below, where a dense backward is all edges. This is a
    safe quarter that widens likewise.
    """
    batch, _, height, width = features.shape
    return 4 * cells <= batch * (height + 5) * (width + 5)


def dense_backward(level: Level, gradients: Sequence[Tensor]) -> list[Tensor | None]:
    """PyTorch's backward of the convolutions.

    Args:
        level: what was convolved.
        gradients: of each convolution's output, (B, K, H, W).

    Returns:
        The gradients that `level.wanted` lists, None where not wanted.
    """
    of_features: Tensor | None = None
    of_parameters: list[Tensor | None] = []
    wanted = level.wanted
    for i, (gradient, weight) in enumerate(zip(gradients, level.weights, strict=True)):
        part, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient,
            level.features,
            weight,
            [weight.size(0)],
            *([1, 1], [1, 1], [1, 1], False, [0, 0], 1),
            [wanted[0], *wanted[1 + 2 * i : 3 + 2 * i]],
        )
        if part is not None:
            of_features = part if of_features is None else of_features.add_(part)
        of_parameters += [of_weight, of_bias]
    return [of_features, *of_parameters]


def sparse_backward(
    level: Level, cells: Tensor, gradients: Sequence[Tensor]
) -> list[Tensor | None]:
    """The same from the rows of the touched cells alone.

    Args:
        level: what was convolved.
        cells: (n,) int64, rising: which of `cell_rows` of an output are not zero.
        gradients: of each convolution's output, these rows, (n, K) float32.

    Returns:
        As `dense_backward`.
    """
    features, _, wanted = level
    if not is_sparse(cells.numel(), features):
        return dense_backward(level, [_scattered(g, cells, features) for g in gradients])
    rounded = [gradient.to(features.dtype) for gradient in gradients]
    of_features, of_weights = _through_patches(level, cells, rounded)
    results = [of_features]
    for i, (gradient, of_weight) in enumerate(zip(gradients, of_weights, strict=True)):
        of_bias = gradient.sum(0).to(features.dtype) if wanted[2 + 2 * i] else None
        results += [of_weight, of_bias]
    return results


def _scattered(rows: Tensor, cells: Tensor, features: Tensor) -> Tensor:
    """Rows (n, K) as the map (B, K, H, W) whose other cells are zero."""
    batch, _, height, width = features.shape
    dense = features.new_zeros(batch * height * width, rows.size(1))
    dense[cells] = rows.to(features.dtype)
    return dense.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _through_patches(
    level: Level, cells: Tensor, gradients: Sequence[Tensor]
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of the features and of each weight, in chunks of cells.

    The convolutions share their patches, so these go through one product as for one convolution:
    by itself the few outputs of a regression head leave a processor half idle. Joining the weights
    as well would copy more than it saves where cells are few.
    """
    features, weights, wanted = level
    batch, channels, height, width = features.shape
    rows = cell_rows(features)
    of_rows = torch.zeros_like(rows) if wanted[0] else None
    matrices = [w.permute(0, 2, 3, 1).reshape(-1, 9 * channels) for w in weights]
    learning = [g for g, want in zip(gradients, wanted[1::2], strict=True) if want][::-1]
    of_outputs = torch.cat(learning, dim=1) if learning else gradients[0]
    of_matrix: Tensor | None = None
    step = max(1, PATCH_BYTES // (9 * channels * features.element_size()))
    for begin in range(0, max(cells.numel(), 1), step):
        part = slice(begin, begin + step)
        index, outside = _patches(cells[part], height, width)
        if learning:
            patches = rows.index_select(0, index).index_fill_(0, outside, 0)
            of_chunk = of_outputs[part].t() @ patches.view(-1, 9 * channels)
            of_matrix = _accumulate(of_matrix, of_chunk)
        if of_rows is not None:
            of_patches = gradients[0][part] @ matrices[0]
            for gradient, matrix in zip(gradients[1:], matrices[1:], strict=True):
                of_patches.addmm_(gradient[part], matrix)
            of_patches = of_patches.view(-1, channels).index_fill_(0, outside, 0)
            of_rows.index_add_(0, index, of_patches)
    of_features = None
    if of_rows is not None:
        of_features = of_rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
    if of_matrix is not None:
        of_matrix = of_matrix.to(features.dtype)
    return of_features, _split(of_matrix, level)


def _split(matrix: Tensor | None, level: Level) -> list[Tensor | None]:
    """The gradient of each weight that is wanted; those of the last weight stand first."""
    channels = level.features.size(1)
    of_weights: list[Tensor | None] = [None] * len(level.weights)
    begin = 0
    for i, weight in reversed(list(enumerate(level.weights))):
        if matrix is None or not level.wanted[1 + 2 * i]:
            continue
        part = matrix[begin : begin + weight.size(0)]
        # Results of an operator share no memory: the first, the large one, keeps it.
        part = part.clone() if begin else part
        of_weights[i] = part.view(-1, 3, 3, channels).permute(0, 3, 1, 2)
        begin += weight.size(0)
    return of_weights


def _patches(cells: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Rows of `cell_rows` that 3x3 patches consist of.

    Returns:
        (n * 9,) the rows, and which of these lie outside of the map; they stand as row 0.
    """
    shift = torch.arange(-1, 2, device=cells.device)
    y = (cells // width % height).unsqueeze(1) + shift
    x = (cells % width).unsqueeze(1) + shift
    inside = ((y >= 0) & (y < height)).unsqueeze(2) & ((x >= 0) & (x < width)).unsqueeze(1)
    neighbour = (shift.unsqueeze(1) * width + shift).flatten()
    index = (cells.unsqueeze(1) + neighbour).flatten()
    inside = inside.flatten()
    return index.where(inside, 0), (~inside).nonzero()[:, 0]


def _accumulate(total: Tensor | None, part: Tensor) -> Tensor:
    """Sums chunks in float32: a bfloat16 sum would lose digits with every chunk."""
    return part if total is None else total.float().add_(part)


def laid_out_like(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient of `like` in the memory layout of `like`, a copy if it has another one."""
    if gradient.dim() == 1 or gradient.stride() == like.stride():
        return gradient
    ordered = torch.empty_like(like)
    formats = torch.contiguous_format, torch.channels_last
    is_plain = any(ordered.is_contiguous(memory_format=f) for f in formats)
    if like.size(2) * like.size(3) < 64 or not is_plain:
        return ordered.copy_(gradient)
    # One matrix at a time, PyTorch transposes large ones by tiles and in half the time.
    for target, image in zip(ordered.flatten(2), gradient.flatten(2), strict=True):
        target.copy_(image)
    return ordered
