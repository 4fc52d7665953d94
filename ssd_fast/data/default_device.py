# SPDX-License-Identifier: BSD-3-Clause
"""cpu_by_default: images, boxes and counts lie on the CPU, whatever the caller's default device."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["cpu_by_default"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def cpu_by_default(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The same function, in which tensors made without a device are made on the CPU.

    Under `torch.set_default_device("cuda")` a CPU generator's draws, and tensors that meet those of
    an image, would be on the wrong device.

    Args:
        function: no generator function: between two of its values the caller would run so, too.

    Returns:
        A function of the same arguments.
    """

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        # Inside the context every call into torch takes longer: entered only where it is needed.
        if torch.get_default_device().type == "cpu":
            return function(*args, **kwargs)
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return call
