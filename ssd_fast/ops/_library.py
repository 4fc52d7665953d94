# SPDX-License-Identifier: BSD-3-Clause
"""The dispatcher's side of an operator: its schema, its reference and its fake kernel.

The C++ kernels register themselves for the CPU when `ssd_fast._C` loads. The reference serves
every device that has no kernel of its own.
"""

from collections.abc import Callable
from typing import Any

import torch

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
    name: str, schema: str, *, reference: Callable[..., Any], fake: Callable[..., Any]
) -> None:
    """Defines ``ssd_fast::<name>`` with its reference and fake kernel.

    Args:
        name: the operator's name, as in ``torch.ops.ssd_fast.<name>``.
        schema: arguments and results, ``"(Tensor priors, ...) -> Tensor"``.
        reference: the implementation for every device without a kernel of its own.
        fake: makes results of the right shape, dtype and strides without computing them.
    """
    library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ssd_fast::{name}", fake, lib=library)
