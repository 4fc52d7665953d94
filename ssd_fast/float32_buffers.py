# SPDX-License-Identifier: BSD-3-Clause
"""Modules whose buffers keep their values when the model changes its dtype or loses its own."""

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

__all__ = ["Float32Buffers"]

_Module = TypeVar("_Module", bound="Float32Buffers")


class Float32Buffers(nn.Module):
    """A module whose own buffers follow `.to(device)`, but no change of dtype and no `to_empty`.

    Corners in [0, 1] have no room in 8 or 11 bits: a bfloat16 prior is off by more than a pixel.
    Nor would a model built on the meta device get back what no state dict holds.
    """

    def _apply(self: _Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Module:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            if not old.is_meta:
                setattr(self, name, old.to(getattr(self, name).device))
        return self
