# SPDX-License-Identifier: BSD-3-Clause
"""torch.vmap over an operator: one call of it for each slice, as PyTorch does where no rule is.

Its own fallback warns at every call and knows no lists of tensors, which the maps of the heads are.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["loop_rule"]


def loop_rule(name: str) -> Callable[..., tuple[Any, Any]]:
    """The rule of ``ssd_fast::<name>`` for `torch.library.register_vmap`.

    Args:
        name: the operator's name.
    """

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        if info.batch_size == 0:
            raise ValueError(
                f"ssd_fast::{name}: torch.vmap needs at least one slice, got a dimension of size 0"
            )
        operator = getattr(torch.ops.ssd_fast, name).default
        results = [
            operator(*(_slice(x, dim, i) for x, dim in zip(arguments, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        return _stack(results, name)

    return rule


def _slice(argument: Any, dim: Any, i: int) -> Any:
    """The argument of call i: a list keeps its unbatched tensors as they are."""
    if isinstance(argument, list | tuple) and isinstance(dim, list | tuple):
        return [_slice(x, d, i) for x, d in zip(argument, dim, strict=True)]
    return argument if dim is None else argument.select(dim, i).contiguous()


def _stack(results: list[Any], name: str) -> tuple[Any, Any]:
    """Results of all calls along a new first dimension, and where that is."""
    first = results[0]
    if isinstance(first, Tensor):
        if any(result.shape != first.shape for result in results):
            lengths = ", ".join(str(result.shape[0]) for result in results)
            raise ValueError(
                f"ssd_fast::{name}: under torch.vmap all results need one length, got {lengths}; "
                "ssd_fast.ops.nms_padded gives results of a fixed length"
            )
        return torch.stack(results), 0
    parts = [_stack(list(part), name) for part in zip(*results, strict=True)]
    kind = type(first) if type(first) in (list, tuple) else tuple
    return kind(part for part, _ in parts), kind(dim for _, dim in parts)
