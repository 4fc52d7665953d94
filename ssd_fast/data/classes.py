# SPDX-License-Identifier: BSD-3-Clause
"""check_class_names: the names of classes that a user gives."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["check_class_names"]


def check_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """Checks names of classes; they may hold spaces.

    Args:
        class_names: one or more different names, background not among them.

    Returns:
        The names.

    Raises:
        TypeError: a single string.
        ValueError: no name, or one twice.
    """
    if isinstance(class_names, str):
        raise TypeError(f"class_names: expected a list of names, got the string {class_names!r}")
    names = tuple(class_names)
    if not names or len(set(names)) != len(names):
        raise ValueError(f"class_names: expected one or more different names, got {names}")
    return names
