# SPDX-License-Identifier: BSD-3-Clause
"""The Triton launchers, run with their launches recorded in the place of made; for tests.

They run on CPU tensors: signatures, options and counts are those of the real code. Needs Triton.
"""

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

import ssd_fast.kernels
from ssd_fast.kernels.detect import launch_detect
from ssd_fast.kernels.focal_loss import launch_focal_loss
from ssd_fast.kernels.focal_loss_backward import launch_focal_loss_backward
from ssd_fast.kernels.multibox_loss import launch_multibox_loss
from ssd_fast.kernels.multibox_loss_backward import launch_multibox_loss_backward
from ssd_fast.ops import _library
from ssd_fast.ops.detect import SCORES
from ssd_fast.suppression import NMS

__all__ = [
    "SSD300_LEVELS",
    "Launch",
    "detect",
    "focal_step",
    "heads_and_targets",
    "kernel_names",
    "launchers",
    "recorded_launches",
    "training_step",
]

SSD300_LEVELS = [(4, 38, 38), (6, 19, 19), (6, 10, 10), (6, 5, 5), (4, 3, 3), (4, 1, 1)]
P = sum(anchors * height * width for anchors, height, width in SSD300_LEVELS)


class Launch(NamedTuple):
    """One launch as recorded.

    Args:
        kernel: the `triton.JITFunction`.
        arguments: its arguments by name.
        options: the compiler's, such as `num_warps`.
        programs: how many run.
    """

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]
    programs: int


@contextlib.contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """What is launched while the context lasts, instead of running it."""
    launches: list[Launch] = []

    def run(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        named = dict(zip(kernel.arg_names, arguments, strict=False))
        named |= {name: options.pop(name) for name in kernel.arg_names if name in options}
        launches.append(Launch(kernel, named, options, math.prod(grid)))

    unchanged = triton.runtime.JITFunction.run
    triton.runtime.JITFunction.run = run
    try:
        yield launches
    finally:
        triton.runtime.JITFunction.run = unchanged


@functools.cache
def launchers() -> dict[str, Callable[..., Any]]:
    """What a GPU runs for each operator that has a Triton kernel; it takes the same arguments."""
    text = "".join(path.read_text() for path in Path(_library.__file__).parent.glob("*.py"))
    return {
        name.partition(".launch_")[2]: _library._load_launcher("any", name)
        for name in re.findall(r'cuda="(\w+\.\w+)"', text)
    }


def kernel_names() -> set[str]:
    """All kernels of the package, by the name that kernels have."""
    folder = Path(next(iter(ssd_fast.kernels.__path__)))
    text = "".join(path.read_text() for path in folder.glob("*.py"))
    return set(re.findall(r"^@triton\.jit.*\ndef (_\w+_kernel)\(", text, re.MULTILINE))


def heads_and_targets(
    dtype: torch.dtype = torch.float32,
    C: int = 21,
    B: int = 2,
    N: int = 8,
    layout: torch.memory_format = torch.channels_last,
) -> tuple[Any, ...]:
    """Deltas, logits, priors, boxes, labels, offsets of SSD300's six levels: zeros."""
    maps = [
        [torch.zeros(B, a * k, h, w, dtype=dtype).contiguous(memory_format=layout)
         for a, h, w in SSD300_LEVELS]
        for k in (4, C)
    ]  # fmt: skip
    labels, offsets = torch.zeros(N, dtype=torch.int64), torch.zeros(B + 1, dtype=torch.int64)
    return *maps, torch.zeros(P, 4), torch.zeros(N, 4), labels, offsets


def training_step(
    inputs: tuple[Any, ...], assign: int = 0, options: bool = False, given: Tensor | None = None
) -> None:
    """A training step: match, loss, gradients; with the options that ask most of the kernels."""
    weights = torch.zeros(21) if options else None
    box_loss, smoothing = (3, 0.1) if options else (0, 0.0)
    matching = [0.5, None, False, assign, 0.5, 3.0, 0]
    rest = [box_loss, 1.0, (0.1, 0.1, 0.2, 0.2), smoothing, 0, 0]
    arguments: list[Any] = [*inputs, given, weights, *matching, *rest]
    *losses, positives, code = launch_multibox_loss(*arguments)
    arguments = [*losses, *inputs, code, positives, weights, *rest]
    launch_multibox_loss_backward(*arguments)


def focal_step(
    inputs: tuple[Any, ...], assign: int = 0, box_loss: int = 0, gamma: float = 2.0
) -> None:
    """A training step of the focal loss: match, loss, gradients."""
    matching = [0.5, None, False, assign, 0.5]
    rest = [box_loss, 1.0, (0.1, 0.1, 0.2, 0.2), 0.25, gamma, 0, 0]
    arguments: list[Any] = [*inputs, None, *matching, *rest]
    *losses, positives, code = launch_focal_loss(*arguments)
    arguments = [*losses, *inputs, code, positives, *rest]
    launch_focal_loss_backward(*arguments)


def detect(
    inputs: tuple[Any, ...], clip: Tensor | None = None, nms: str = "hard", scores: str = "softmax"
) -> tuple[Tensor, ...]:
    """Detections with torchvision's defaults."""
    background = -1 if scores == "sigmoid" else 0
    options = [0.01, 400, 0.45, 200, (0.1, 0.2), background, None, clip, 4.0, NMS[nms], 0.5]
    arguments: list[Any] = [*inputs[:3], *options, SCORES[scores]]
    return launch_detect(*arguments)
