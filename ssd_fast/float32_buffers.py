# SPDX-License-Identifier: BSD-3-Clause
"""Modules whose buffers keep their values when the model changes its dtype or loses its own."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["Float32Buffers"]

_Module = TypeVar("_Module", bound="Float32Buffers")


class Float32Buffers(nn.Module):
    """A module whose own buffers follow `.to(device)`, but no change of dtype and no `to_empty`.

    Corners in [0, 1] have no room in 8 or 11 bits: a bfloat16 prior is off by more than a pixel.
    Nor would a model that was built on the meta device, or moved there, get back what no state dict
    holds. A buffer whose values are lost all the same, for it was made on the meta device, is NaN
    where `to_empty` gives it memory, and `check_values` says so until somebody has filled it.
    """

    _unfilled: frozenset[str] = frozenset()

    def check_values(self) -> None:
        """Raises ValueError for a buffer that was made on the meta device and never filled."""
        if not self._unfilled:
            return
        for name in sorted(self._unfilled):
            if getattr(self, name).isnan().any():
                raise self._without_values(name)
        self._unfilled = frozenset()

    def values_of(self, name: str) -> Tensor:
        """A buffer with its values, also while it is on the meta device.

        Args:
            name: of a buffer of the module's own.

        Raises:
            ValueError: it was made on the meta device and never filled.
        """
        buffer: Tensor = getattr(self, name)
        kept: dict[str, Tensor] = self.__dict__.get("_kept", {})
        value = kept.get(name, buffer) if buffer.is_meta else buffer
        if value.is_meta or (name in self._unfilled and bool(value.isnan().any())):
            raise self._without_values(name)
        return value

    def _without_values(self, name: str) -> ValueError:
        return ValueError(
            f"{name}: made on the meta device, which keeps no values; make them under"
            f" torch.device('cpu'), or set {type(self).__name__}.{name} after to_empty()"
        )

    def move_buffers(self, device: torch.device) -> None:
        """Moves the module's own buffers, those on the meta device too.

        Args:
            device: where to.
        """
        for name, buffer in list(self.named_buffers(recurse=False)):
            self._move(name, buffer, device)

    def _apply(self: _Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Module:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            self._move(name, old, getattr(self, name).device)
        return self

    def _move(self, name: str, old: Tensor, device: torch.device) -> None:
        # Values of buffers that are on the meta device, where these have none.
        kept: dict[str, Tensor] = self.__dict__.setdefault("_kept", {})
        value = kept.pop(name, None) if old.is_meta else old
        if value is None or value.shape != old.shape:  # it never had one, or is another by now
            if device.type == "meta":
                return
            value = torch.full_like(old, torch.nan, device=device)
            self._unfilled |= {name}
        if device.type == "meta":
            kept[name] = value
        setattr(self, name, value.to(device))
