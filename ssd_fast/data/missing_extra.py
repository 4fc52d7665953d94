# SPDX-License-Identifier: BSD-3-Clause
"""missing_extra: the one error for a package that one of the extras would have installed."""

from __future__ import annotations

__all__ = ["missing_extra"]


def missing_extra(
    purpose: str, error: ModuleNotFoundError, *, extra: str = "train"
) -> ModuleNotFoundError:
    """Makes the error that names what is missing and the command that adds it.

    Args:
        purpose: what needs the package, such as "reading images".
        error: the failed import.
        extra: the extra of this package that has it.

    Returns:
        The error to raise.
    """
    return ModuleNotFoundError(
        f"{purpose} needs {error.name}: pip install 'ssd_fast[{extra}]'", name=error.name
    )
