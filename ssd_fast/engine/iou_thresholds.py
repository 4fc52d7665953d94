# SPDX-License-Identifier: BSD-3-Clause
"""The least IoUs at which a detection answers for an object, as users give them."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

from torch import Tensor

from ssd_fast.ops._arguments import describe

__all__ = ["read_iou_threshold", "read_iou_thresholds"]


def read_iou_threshold(name: str, value: Any) -> float:
    """One threshold, checked.

    Args:
        name: of the argument.
        value: a number, or a tensor of one.

    Returns:
        The number.

    Raises:
        ValueError: it is not above 0 and at most 1.
    """
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not isinstance(number, Real) or not 0 < float(number) <= 1:
        raise ValueError(
            f"{name}: expected a number above 0 and at most 1, such as 0.5, got {describe(number)}"
        )
    return float(number)


def read_iou_thresholds(values: Sequence[float] | Tensor) -> list[float]:
    """The thresholds of the argument `iou_thresholds`, checked.

    Args:
        values: one or more numbers; a vector of torch or numpy, too.

    Returns:
        The numbers.

    Raises:
        ValueError: no sequence, an empty one, or a number that is not above 0 and at most 1.
    """
    numbers = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(numbers, Sequence) or isinstance(numbers, str) or not numbers:
        raise ValueError(
            "iou_thresholds: expected one or more numbers above 0 and at most 1, such as (0.5,),"
            f" got {describe(values)}"
        )
    return [read_iou_threshold(f"iou_thresholds[{i}]", value) for i, value in enumerate(numbers)]
