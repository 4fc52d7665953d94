# SPDX-License-Identifier: BSD-3-Clause
"""The classes that `accelerate` gives to modules: subclasses of the modules' own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

__all__ = ["CACHE", "check_not_overridden", "check_not_set", "make_subclass"]

CACHE = "_ssd_fast_anchors"
"""Name under which an accelerated module keeps what it computed; never copied or saved."""

_Factory = Callable[[type[nn.Module]], type[nn.Module]]


def check_not_overridden(
    original: type[nn.Module], base: type[nn.Module], methods: Sequence[str]
) -> None:
    """Refuses a class whose own methods would be passed by.

    Args:
        original: class of the module to accelerate.
        base: the class of torchvision that it is or derives from.
        methods: names of what is replaced, or no longer called.

    Raises:
        TypeError: `original` overrides one of them.
    """
    for name in methods:
        if getattr(original, name) is not getattr(base, name):
            raise TypeError(
                f"model: {original.__name__} overrides {name}(), which would no longer be called; "
                f"accelerate a plain {base.__name__}, or call ssd_fast.MultiBoxLoss and "
                "ssd_fast.ops yourself"
            )


def check_not_set(module: nn.Module, methods: Sequence[str]) -> None:
    """Refuses a module with methods of its own, set on the object, that would be passed by.

    Args:
        module: what is to be accelerated, or is.
        methods: names of what is replaced, or no longer called.

    Raises:
        TypeError: one of them is set on `module`.
    """
    for name in methods:
        if name in module.__dict__:
            raise TypeError(
                f"model: {name} is set on this {type(module).__name__} object, so that our kernels "
                f"or it would not be called; remove it (`del {name}` of the object), keep the "
                "original model (ssd_fast.restore), or call ssd_fast.MultiBoxLoss and ssd_fast.ops "
                "yourself"
            )


def make_subclass(
    original: type[nn.Module],
    members: Mapping[str, Any],
    replaced: Mapping[str, str],
    factory: _Factory,
) -> type[nn.Module]:
    """A subclass of `original` that copies and pickles: it exists only in this process.

    Args:
        original: class of the module to accelerate.
        members: methods over those of `original`.
        replaced: what `ssd_fast.accelerated` lists.
        factory: the function, importable by name, that makes this subclass of `original`.

    Returns:
        The class.
    """
    return type(
        f"Accelerated{original.__name__}",
        (original,),
        {
            "__doc__": f"{original.__name__} of torchvision on the kernels of ssd_fast.",
            "__reduce_ex__": _reduce,
            "_ssd_fast_factory": staticmethod(factory),
            "_ssd_fast_original": original,
            "_ssd_fast_replaced": dict(replaced),
            **members,
        },
    )


def _reduce(module: Any, protocol: int) -> tuple[Any, ...]:
    state = {name: value for name, value in module.__dict__.items() if name != CACHE}
    kind = type(module)
    return _rebuild, (kind._ssd_fast_factory, kind._ssd_fast_original), state


def _rebuild(factory: _Factory, original: type[nn.Module]) -> nn.Module:
    module: nn.Module = object.__new__(factory(original))
    return module
