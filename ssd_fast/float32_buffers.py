# SPDX-License-Identifier: BSD-3-Clause
"""Modules whose buffers stay float32 when the model becomes float16 or bfloat16."""

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

__all__ = ["Float32Buffers"]

_Module = TypeVar("_Module", bound="Float32Buffers")


class Float32Buffers(nn.Module):
    """A module whose own floating-point buffers follow `.to(device)` but no change of dtype.

    Corners in [0, 1] have no room in 8 or 11 bits: a bfloat16 prior is off by more than a pixel.
    """

    def _apply(self: _Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Module:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = getattr(self, name)
            if new.dtype != old.dtype:
                setattr(self, name, old.to(new.device))
        return self
