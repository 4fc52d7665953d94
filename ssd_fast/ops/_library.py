# SPDX-License-Identifier: BSD-3-Clause
"""The dispatcher's side of an operator: its schema, its reference and its fake kernel.

The C++ kernels register themselves for the CPU when `ssd_fast._C` loads. The Triton kernels are
imported at the first call on a GPU. The reference serves every device that has no kernel of its
own. `torch.vmap` calls an operator once for each slice.
"""

import functools
import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ssd_fast.ops._vmap import loop_rule

try:
    from ssd_fast import _C
except ImportError as error:
    raise ImportError(
        "ssd_fast._C, the compiled kernels, could not be loaded: install the package with "
        f"`pip install .` in its checkout, beside the torch that imports it ({error})"
    ) from error

__all__ = ["library", "register"]

library = torch.library.Library("ssd_fast", "DEF")

# Names the module, so that nobody removes an import that registers the C++ kernels.
CPU_KERNELS = _C


def register(
    name: str,
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    cuda: str | None = None,
) -> Callable[..., Any]:
    """Defines ``ssd_fast::<name>`` with its reference and fake kernel.

    Args:
        name: the operator's name, as in ``torch.ops.ssd_fast.<name>``.
        schema: arguments and results, ``"(Tensor priors, ...) -> Tensor"``.
        reference: the implementation for every device without a kernel of its own.
        fake: makes results of the right shape, dtype and strides without computing them.
        cuda: ``"module.function"`` in `ssd_fast.kernels` that launches the GPU kernels; it takes
            the operator's arguments.

    Returns:
        The operator, ``torch.ops.ssd_fast.<name>.default``. With cold caches each of the names on
        the way to it is a trip to memory, so whoever calls it keeps it.
    """
    library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ssd_fast::{name}", fake, lib=library)
    torch.library.register_vmap(f"ssd_fast::{name}", loop_rule(name), lib=library)
    if cuda is not None:
        library.impl(name, _gpu_implementation(name, cuda), "CUDA")
    operator: Callable[..., Any] = getattr(torch.ops.ssd_fast, name).default
    return operator


def _gpu_implementation(name: str, cuda: str) -> Callable[..., Any]:
    """What the dispatcher calls on a GPU: loads the launcher once, and runs it on that GPU."""

    def launch(*arguments: Any) -> Any:
        device = next(_tensors(arguments)).device
        _check_gpu(name, device)
        with torch.cuda.device(device):
            return _load_launcher(name, cuda)(*arguments)

    return launch


def _tensors(arguments: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among an operator's arguments."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from _tensors(argument)


@functools.cache
def _check_gpu(name: str, device: torch.device) -> None:
    """Raises RuntimeError for a GPU that the kernels are not compiled for."""
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        raise RuntimeError(
            f"ssd_fast::{name}: expected a GPU of compute capability 8.0 or later (Ampere), got "
            f"{torch.cuda.get_device_name(device)} of {capability[0]}.{capability[1]}; move the "
            f"tensors to the CPU"
        )


@functools.cache
def _load_launcher(name: str, cuda: str) -> Callable[..., Any]:
    """The launcher that ``cuda`` names."""
    module, _, function = cuda.partition(".")
    try:
        launcher: Callable[..., Any] = getattr(
            importlib.import_module(f"ssd_fast.kernels.{module}"), function
        )
    except ImportError as error:
        raise RuntimeError(
            f"ssd_fast::{name}: the GPU kernels need Triton, which could not be imported "
            f"({error}); install it with `pip install triton`, or move the tensors to the CPU"
        ) from error
    return launcher
