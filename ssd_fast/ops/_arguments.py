# SPDX-License-Identifier: BSD-3-Clause
"""Checks of what users pass to operators: one clear error that names the argument and the remedy.

They look at shapes, dtypes and devices only, never at values, so they never synchronise.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "LOGIT_DTYPES",
    "are_plain",
    "as_levels",
    "check_boxes",
    "check_choice",
    "check_count",
    "check_device",
    "check_flag",
    "check_levels",
    "check_max_log_scale",
    "check_number",
    "check_positive",
    "check_targets",
    "check_threshold",
    "describe",
    "resolve_background",
]

LOGIT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def describe(tensor: object) -> str:
    """What a wrong argument is, for an error message: ``(3, 5) torch.float64 on cpu``."""
    if isinstance(tensor, Tensor):
        return f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"
    return f"{type(tensor).__name__} {tensor!r:.80}"


def check_boxes(name: str, boxes: Tensor) -> None:
    """Raises ValueError unless ``boxes`` is (n, 4) float32."""
    if not isinstance(boxes, Tensor) or boxes.dim() != 2 or boxes.size(1) != 4:
        raise ValueError(
            f"{name}: expected (n, 4) corners x1, y1, x2, y2 as float32, got {describe(boxes)}"
        )
    if boxes.dtype != torch.float32:
        raise ValueError(
            f"{name}: expected float32, got {describe(boxes)}; convert with {name}.float()"
        )


def check_vector(name: str, vector: Tensor, dtype: torch.dtype) -> None:
    """Raises ValueError unless ``vector`` is one-dimensional and of ``dtype``."""
    if not isinstance(vector, Tensor) or vector.dim() != 1 or vector.dtype != dtype:
        raise ValueError(f"{name}: expected a vector of {dtype}, got {describe(vector)}")


def check_targets(
    boxes: Tensor, offsets: Tensor, labels: Tensor | None = None, batch: int | None = None
) -> None:
    """Raises ValueError unless the ragged targets of a batch fit together.

    Args:
        boxes: (N, 4) float32.
        offsets: (B + 1,) int64.
        labels: (N,) int64.
        batch: B, where it is known from elsewhere.
    """
    check_boxes("boxes", boxes)
    check_vector("offsets", offsets, torch.int64)
    if offsets.size(0) < 1:
        raise ValueError("offsets: expected (B + 1,) int64, got an empty tensor; B = 0 is [0]")
    if labels is not None:
        check_vector("labels", labels, torch.int64)
        if labels.size(0) != boxes.size(0):
            raise ValueError(
                f"labels: expected one for each of the {boxes.size(0)} boxes, got {labels.size(0)}"
            )
    if batch is not None and offsets.size(0) != batch + 1:
        raise ValueError(
            f"offsets: expected {batch + 1} numbers for a batch of {batch} images, "
            f"got {offsets.size(0)}, which are targets of {offsets.size(0) - 1}; Targets.pack "
            "makes them"
        )


def check_device(**tensors: Tensor | None) -> None:
    """Raises ValueError unless all tensors live on the device of the first."""
    device = None
    first = ""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if device is None:
            device, first = tensor.device, name
        elif tensor.device != device:
            raise ValueError(
                f"{name}: expected on {device} like {first}, got {tensor.device}; "
                f"move it with {name}.to({str(device)!r})"
            )


def check_number(name: str, value: float, *, low: float, high: float = math.inf) -> None:
    """Raises ValueError unless ``low <= value <= high`` and the value is finite."""
    if not _is_between(low, value, high) or value == math.inf:
        bounds = f">= {low}" if high == math.inf else f"from {low} to {high}"
        raise ValueError(f"{name}: expected a finite number {bounds}, got {_shown(value)}")


def check_positive(name: str, value: float) -> None:
    """Raises ValueError unless the value, as float32, is finite and above 0."""
    if not _is_between(2.0**-149, value, (2 - 2**-23) * 2.0**127):
        raise ValueError(f"{name}: expected a finite number above 0, got {_shown(value)}")


def check_count(name: str, value: int) -> None:
    """Raises ValueError unless the value is a whole number from 0 to 2**31 - 1."""
    if not isinstance(value, int | torch.SymInt) or not 0 <= value < 2**31:
        raise ValueError(
            f"{name}: expected a whole number from 0 to {2**31 - 1}, got {_shown(value)}"
        )


def check_flag(name: str, value: bool) -> None:
    """Raises ValueError unless the value is True or False."""
    if not isinstance(value, bool | torch.SymBool):
        raise ValueError(f"{name}: expected True or False, got {_shown(value)}")


def check_threshold(name: str, value: float) -> None:
    """Raises ValueError unless the value is a number other than NaN."""
    if not _is_between(-math.inf, value, math.inf):
        raise ValueError(f"{name}: expected a number, usually from 0 to 1, got {_shown(value)}")


def check_max_log_scale(value: float | None) -> None:
    """Raises ValueError unless the value is None or a number other than NaN."""
    if value is not None and not _is_between(-math.inf, value, math.inf):
        raise ValueError(
            f"max_log_scale: expected a number, or None for no clamp, got {_shown(value)}"
        )


def _is_between(low: float, value: Any, high: float) -> bool:
    if isinstance(value, Tensor) and value.numel() != 1:  # a threshold for each class, say
        return False
    # Comparisons alone: torch.compile traces them where the number is symbolic, and no math.isinf.
    try:
        return bool(low <= value <= high)
    except (TypeError, ValueError):  # a string, None, a list; an array of many
        return False


def _shown(value: object) -> str:
    return str(value) if isinstance(value, int | float) else describe(value)


def check_choice(name: str, value: str, choices: dict[str, int]) -> int:
    """The number that stands for a word in a schema; ValueError names the words."""
    if not isinstance(value, str) or value not in choices:
        words = ", ".join(repr(word) for word in choices)
        raise ValueError(f"{name}: expected one of {words}, got {value!r}")
    return choices[value]


def as_levels(maps: Any) -> list[Tensor]:
    """Wraps a single tensor, or what `check_levels` will refuse, as a list of one level."""
    if type(maps) is list:  # to ask an abstract class takes as long as ten other questions
        return list(maps)
    if isinstance(maps, Tensor) or hasattr(maps, "shape") or not isinstance(maps, Iterable):
        return [maps]  # an array of numpy is one wrong tensor, not many
    return list(maps)


def are_plain(tensors: Sequence[Any]) -> bool:
    """Whether all are tensors in the memory of the CPU, none of a class of its own, or None."""
    # A loop, for it runs at every call, and a generator takes twice as long.
    for x in tensors:  # noqa: SIM110
        if x is not None and (type(x) is not Tensor or not x.is_cpu):
            return False
    return True


def level_rows(level: Tensor, anchors: int) -> int:
    """Number of priors of a level: P of (B, P, K), A * H * W of (B, A * K, H, W)."""
    return level.size(1) if level.dim() == 3 else anchors * level.size(2) * level.size(3)


def check_levels(
    deltas: list[Tensor], logits: list[Tensor], priors: Tensor, background_index: int
) -> tuple[int, int]:
    """Checks the heads' outputs against each other and the priors.

    Args:
        deltas: one a level, (B, P, 4) or (B, A * 4, H, W).
        logits: one a level, (B, P, C) or (B, A * C, H, W).
        priors: (P, 4) float32, P the sum over the levels.
        background_index: class index of the background.

    Returns:
        B and C.

    Raises:
        ValueError: names the argument, the level and what would fit.
    """
    sizes = _sizes_of_rows(deltas, logits, priors)
    if sizes is not None and 0 <= background_index < sizes[1]:
        return sizes
    check_boxes("priors", priors)
    if not deltas or len(deltas) != len(logits):
        raise ValueError(
            f"logits: expected as many levels as deltas and at least one, "
            f"got {len(logits)} levels of logits and {len(deltas)} of deltas"
        )
    first = deltas[0]
    batch = first.size(0) if isinstance(first, Tensor) and first.dim() else 0
    classes = -1
    rows = 0
    for i, (delta, logit) in enumerate(zip(deltas, logits, strict=True)):
        anchors, level_classes = _check_level(i, delta, logit, batch)
        if classes not in (-1, level_classes):
            raise ValueError(
                f"logits[{i}]: expected {classes} classes as in the levels before, "
                f"got {level_classes} ({describe(logit)})"
            )
        classes = level_classes
        rows += level_rows(delta, anchors)
        check_device(priors=priors, deltas=delta, logits=logit)
        if delta.dtype != deltas[0].dtype or logit.dtype != logits[0].dtype:
            raise ValueError(
                f"deltas[{i}], logits[{i}]: expected one dtype over all levels, "
                f"{deltas[0].dtype} and {logits[0].dtype}, got {delta.dtype} and {logit.dtype}"
            )
    if rows != priors.size(0):
        raise ValueError(
            f"priors: expected one for each of the {rows} rows of deltas, got {priors.size(0)}; "
            f"the priors must be built for the same feature maps and boxes per cell"
        )
    if classes == 0:
        raise ValueError(f"logits: expected at least one class, got {describe(logits[0])}")
    if not 0 <= background_index < classes:
        raise ValueError(
            f"background_index: expected from 0 to {classes - 1} for {classes} classes, "
            f"got {background_index}"
        )
    return batch, classes


def resolve_background(
    background_index: int, deltas: list[Tensor], logits: list[Tensor], priors: Tensor
) -> int:
    """Counts a negative index from the last class on: -1 is C - 1.

    Args:
        background_index: whatever the user gave.
        deltas: one a level, see `check_levels`.
        logits: one a level.
        priors: (P, 4).

    Returns:
        The index, as it is where it is not a negative whole number.

    Raises:
        ValueError: an index below -C, or levels that do not fit and so have no C.
    """
    if not isinstance(background_index, int) or background_index >= 0:
        return background_index
    _, classes = check_levels(deltas, logits, priors, 0)
    if background_index < -classes:
        raise ValueError(
            f"background_index: expected from {-classes} to {classes - 1} for {classes} classes, "
            f"got {background_index}"
        )
    return background_index + classes


def _sizes_of_rows(deltas: list[Any], logits: list[Any], priors: Any) -> tuple[int, int] | None:
    """B and C of one level of rows that fit the priors, the common case; None for all others.

    A tenth of the time that looking for what may be wrong takes.
    """
    if len(deltas) != 1 or len(logits) != 1:
        return None
    delta, logit = deltas[0], logits[0]
    if not (isinstance(delta, Tensor) and isinstance(logit, Tensor) and isinstance(priors, Tensor)):
        return None
    if not (delta.dim() == 3 and logit.dim() == 3 and priors.dim() == 2):
        return None
    batch, rows, sides = delta.shape
    logit_batch, logit_rows, classes = logit.shape
    prior_rows, prior_sides = priors.shape
    fits = (
        batch == logit_batch
        and rows == logit_rows == prior_rows
        and sides == prior_sides == 4
        and priors.dtype == torch.float32
        and delta.dtype in LOGIT_DTYPES
        and logit.dtype in LOGIT_DTYPES
        and delta.device == logit.device == priors.device
    )
    return (batch, classes) if fits else None


def _check_level(i: int, delta: Tensor, logit: Tensor, batch: int) -> tuple[int, int]:
    """Anchors and classes of level ``i``; ValueError where the two maps do not fit."""
    for name, level in (("deltas", delta), ("logits", logit)):
        if not isinstance(level, Tensor) or level.dim() not in (3, 4) or level.size(0) != batch:
            known = "" if i == 0 and name == "deltas" else f" with B = {batch}"
            raise ValueError(
                f"{name}[{i}]: expected (B, P, K) or (B, A * K, H, W){known}, got {describe(level)}"
            )
        if level.dtype not in LOGIT_DTYPES:
            raise ValueError(
                f"{name}[{i}]: expected float32, float16 or bfloat16, got {describe(level)}; "
                f"convert with {name}.float()"
            )
    if (
        delta.dim() != logit.dim()
        or delta.shape[2 if delta.dim() == 4 else 3 :]
        != (logit.shape[2 if logit.dim() == 4 else 3 :])
    ):
        raise ValueError(
            f"logits[{i}]: expected the layout and map size of deltas[{i}], {describe(delta)}, "
            f"got {describe(logit)}"
        )
    if delta.dim() == 3:
        if delta.size(2) != 4:
            raise ValueError(f"deltas[{i}]: expected (B, P, 4), got {describe(delta)}")
        if logit.size(1) != delta.size(1):
            raise ValueError(
                f"logits[{i}]: expected {delta.size(1)} rows as in deltas[{i}], "
                f"got {describe(logit)}"
            )
        return 1, logit.size(2)
    anchors = delta.size(1) // 4
    if delta.size(1) % 4 or anchors == 0:
        raise ValueError(
            f"deltas[{i}]: expected 4 channels for each box of a cell, got {describe(delta)}"
        )
    if logit.size(1) % anchors or logit.size(1) == 0:
        raise ValueError(
            f"logits[{i}]: expected a multiple of {anchors} channels, "
            f"one group of classes for each box of a cell, got {describe(logit)}"
        )
    return anchors, logit.size(1) // anchors
