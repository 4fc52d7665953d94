# SPDX-License-Identifier: BSD-3-Clause
"""What a command needs beyond torch, asked for before it starts and not after minutes of work."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["require"]


def require(purpose: str, *modules: str) -> None:
    """Stops if a module is not installed.

    Args:
        purpose: what needs them.
        modules: names as imported.

    Raises:
        ModuleNotFoundError: the first one missing, with the `pip install` that adds it.
    """
    for name in modules:
        if find_spec(name) is None:
            # Here, because it brings the datasets with it, which `--help` has no use for.
            from ssd_fast.data.missing_extra import missing_extra

            raise missing_extra(purpose, ModuleNotFoundError(name=name))
