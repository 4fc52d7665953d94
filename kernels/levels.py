# SPDX-License-Identifier: BSD-3-Clause
"""The heads' outputs where they lie: (B, P, K) rows or raw (B, A * K, H, W) maps, read in place.

Rows are in (level, y, x, anchor) order, channel ``anchor * K + k``. A program works on a block of
rows that are evenly spaced in memory: rows of the same anchor, or of all anchors of a
channels_last map.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = [
    "CHANNELS",
    "NEITHER",
    "ROWS",
    "Level",
    "count_blocks",
    "fill_gradients",
    "level_views",
    "writable_gradients",
]

# Which of channels and rows are neighbours in memory, so that loads are coalesced along them.
CHANNELS, ROWS, NEITHER = 0, 1, 2
CONTIGUOUS = torch.contiguous_format


class Level(NamedTuple):
    """One level. Strides count elements; its gradients have those of the inputs."""

    logits: Tensor
    deltas: Tensor
    groups: int  # row r of group g is prior r * groups + g of the level
    rows: int
    logit_image: int
    logit_group: int
    logit_row: int
    logit_channel: int
    anchors: int  # cell i, anchor a is prior i * anchors + a of the level
    delta_image: int
    delta_anchor: int
    delta_cell: int
    delta_channel: int


def level_views(
    deltas: list[Tensor],
    logits: list[Tensor],
    grad_deltas: list[Tensor] | None = None,
    grad_logits: list[Tensor] | None = None,
) -> tuple[tuple[Level, ...], int]:
    """Describes the levels, and which dimension is dense in memory in all of them.

    Maps whose cells are not evenly spaced are copied; contiguous and channels_last ones never are.
    With gradients given, of `writable_gradients`, inputs that are not laid out like them are copied
    too.
    """
    if grad_deltas is not None and grad_logits is not None:
        deltas = [_like(x, gradient) for x, gradient in zip(deltas, grad_deltas, strict=True)]
        logits = [_like(x, gradient) for x, gradient in zip(logits, grad_logits, strict=True)]
    layouts, inner = _layouts(_shapes(deltas), _shapes(logits))
    if layouts is None:
        deltas, logits = ([_evenly_spaced(x) for x in heads] for heads in (deltas, logits))
        layouts, inner = _layouts(_shapes(deltas), _shapes(logits))
    if layouts is None:
        raise ValueError(
            "logits: expected fewer than 2**31 numbers an image in a level, got "
            f"{', '.join(map(str, (tuple(x.shape) for x in logits)))}; give fewer at a time"
        )
    return tuple(map(Level, logits, deltas, *zip(*layouts, strict=True))), inner


def writable_gradients(gradients: list[Tensor]) -> list[Tensor]:
    """The gradients themselves; contiguous memory for those whose cells are not evenly spaced."""
    return [
        x if _addressable(x.shape, x.stride()) else torch.empty_like(x, memory_format=CONTIGUOUS)
        for x in gradients
    ]


def fill_gradients(gradients: list[Tensor], written: list[Tensor]) -> None:
    """Copies what was written in the place of gradients to where it belongs."""
    for gradient, x in zip(gradients, written, strict=True):
        if x is not gradient:
            gradient.copy_(x)


def count_blocks(levels: tuple[Level, ...], block: int) -> int:
    """Programs an image needs when each takes ``block`` rows of one group of one level."""
    return sum(level.groups * triton.cdiv(level.rows, block) for level in levels)


Shapes = tuple[tuple[torch.Size, tuple[int, ...]], ...]  # and strides, of each level


class _Strides(NamedTuple):
    """Strides of a map or rows."""

    image: int
    anchor: int
    cell: int
    channel: int


def _like(x: Tensor, gradient: Tensor) -> Tensor:
    """The tensor itself, or a copy that is laid out like its gradient."""
    return x if x.stride() == gradient.stride() else torch.empty_like(gradient).copy_(x)


def _shapes(heads: list[Tensor]) -> Shapes:
    return tuple([(x.shape, x.stride()) for x in heads])


def _evenly_spaced(x: Tensor) -> Tensor:
    """The tensor itself, or a contiguous copy where the kernels could not address its cells."""
    return x if _addressable(x.shape, x.stride()) else x.contiguous()


def _addressable(shape: torch.Size, stride: tuple[int, ...]) -> bool:
    """Whether cells are evenly spaced, and the elements within an image counted in 32 bits."""
    if sum((n - 1) * step for n, step in zip(shape[1:], stride[1:], strict=True)) >= 1 << 31:
        return False
    return len(shape) == 3 or min(shape[2:]) <= 1 or stride[2] == shape[3] * stride[3]


# What the host does for a launch takes longer than the launch: a model's layouts are kept.
@functools.lru_cache(maxsize=256)
def _layouts(deltas: Shapes, logits: Shapes) -> tuple[tuple[tuple[int, ...], ...] | None, int]:
    """The numbers of each `Level`, and the dense dimension; None where levels must be copied."""
    if not all(_addressable(*x) for x in (*deltas, *logits)):
        return None, NEITHER
    views = []
    for (shape, stride), logit in zip(deltas, logits, strict=True):
        anchors = shape[1] // 4 if len(shape) == 4 else 1
        cells = shape[1] if len(shape) == 3 else shape[2] * shape[3]
        views.append((anchors, cells, _strides(*logit, anchors), _strides(shape, stride, anchors)))
    inner = NEITHER
    if all(x.channel == 1 for _, _, x, _ in views):
        inner = CHANNELS
    elif all(cells == 1 or x.cell == 1 for _, cells, x, _ in views):
        inner = ROWS
    layouts = []
    for anchors, cells, x, d in views:
        groups, rows, row = anchors, cells, x.cell
        # All rows are evenly spaced; but where they lie side by side, those of two anchors do not.
        if inner != ROWS and (x.cell == anchors * x.anchor or cells == 1):
            groups, rows, row = 1, cells * anchors, x.anchor
        place = (groups, rows, x.image, x.anchor, row, x.channel)
        layouts.append((*place, anchors, d.image, d.anchor, d.cell, d.channel))
    return tuple(layouts), inner


def _strides(shape: torch.Size, stride: tuple[int, ...], anchors: int) -> _Strides:
    """Strides of a map or rows."""
    if len(shape) == 3:
        return _Strides(stride[0], shape[2] * stride[2], stride[1], stride[2])
    cell = stride[3] if shape[3] > 1 else stride[2]
    return _Strides(stride[0], shape[1] // anchors * stride[1], cell, stride[1])


@triton.jit
def pick(
    levels,  # or their gradients
    level,
    FIELD: tl.constexpr,
):
    """The pointer of one level."""
    pointer = levels[0][FIELD]
    for i in tl.static_range(1, len(levels)):
        if level == i:
            pointer = levels[i][FIELD]
    return pointer


@triton.jit
def locate(
    image,
    block,  # of the image, over all levels
    levels,
    BLOCK_R: tl.constexpr,
    INNER: tl.constexpr,
):
    """Where the rows of one block lie.

    Returns:
        The level; each row's prior and whether the row exists; for logits and deltas the elements
        from the level's pointer to the block (int64), from there to each row, and the stride over
        the channels.
    """
    zero = block * 0
    wide = image * 0
    level = zero
    first = zero
    start = zero
    end = zero
    groups = zero + 1
    rows = zero
    logit_image, logit_group, logit_row, logit_channel = wide, zero, zero, zero
    anchors = zero + 1
    delta_image, delta_anchor, delta_cell, delta_channel = wide, zero, zero, zero
    skipped = zero
    for i in tl.static_range(len(levels)):
        if block >= end:
            level = zero + i
            first = zero + skipped
            start = zero + end
            groups = zero + levels[i].groups
            rows = zero + levels[i].rows
            logit_image = wide + levels[i].logit_image
            logit_group = zero + levels[i].logit_group
            logit_row = zero + levels[i].logit_row
            logit_channel = zero + levels[i].logit_channel
            anchors = zero + levels[i].anchors
            delta_image = wide + levels[i].delta_image
            delta_anchor = zero + levels[i].delta_anchor
            delta_cell = zero + levels[i].delta_cell
            delta_channel = zero + levels[i].delta_channel
        end += levels[i].groups * tl.cdiv(levels[i].rows, BLOCK_R)
        skipped += levels[i].groups * levels[i].rows
    blocks = tl.cdiv(rows, BLOCK_R)
    group = (block - start) // blocks
    begin = (block - start) % blocks * BLOCK_R
    r = tl.arange(0, BLOCK_R)
    logit_base = image * logit_image + (wide + group) * logit_group + (wide + begin) * logit_row
    logit_offset = r
    if INNER != 1:
        logit_offset = r * logit_row
    index = (begin + r) * groups + group
    delta_offset = index // anchors * delta_cell + index % anchors * delta_anchor
    return (
        level,
        first + index,
        begin + r < rows,
        logit_base,
        logit_offset,
        logit_channel,
        image * delta_image,
        delta_offset,
        delta_channel,
    )


@triton.jit
def locate_logits(
    image,  # int64
    p,  # (BLOCK,) priors of the image, in any order
    levels,
):
    """Pointers to the first logits of rows, and the strides over their channels."""
    first = image.to(tl.int32) * 0
    pointers = levels[0].logits + p.to(tl.int64) * 0
    channels = p * 0
    for i in tl.static_range(len(levels)):
        row = p - first
        offset = row % levels[i].groups * levels[i].logit_group
        offset += row // levels[i].groups * levels[i].logit_row
        here = row >= 0
        pointers = tl.where(
            here, levels[i].logits + (image * levels[i].logit_image + offset), pointers
        )
        channels = tl.where(here, levels[i].logit_channel, channels)
        first += levels[i].groups * levels[i].rows
    return pointers, channels


@triton.jit
def load_deltas(
    image,  # int64
    p,  # (BLOCK,) priors of the image, in any order
    ok,
    levels,
):
    """The four deltas of rows, as float32."""
    first = image.to(tl.int32) * 0
    pointers = levels[0].deltas + p.to(tl.int64) * 0
    channels = p * 0
    for i in tl.static_range(len(levels)):
        row = p - first
        offset = row % levels[i].anchors * levels[i].delta_anchor
        offset += row // levels[i].anchors * levels[i].delta_cell
        here = row >= 0
        pointers = tl.where(
            here, levels[i].deltas + (image * levels[i].delta_image + offset), pointers
        )
        channels = tl.where(here, levels[i].delta_channel, channels)
        first += levels[i].groups * levels[i].rows
    dx = tl.load(pointers, ok, other=0.0).to(tl.float32)
    dy = tl.load(pointers + channels, ok, other=0.0).to(tl.float32)
    dw = tl.load(pointers + 2 * channels, ok, other=0.0).to(tl.float32)
    dh = tl.load(pointers + 3 * channels, ok, other=0.0).to(tl.float32)
    return dx, dy, dw, dh
