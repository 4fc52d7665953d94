# SPDX-License-Identifier: BSD-3-Clause
"""expand_home: `~` at the beginning of a path, which shells leave alone in `--output=~/x`."""

from __future__ import annotations

from pathlib import Path

__all__ = ["expand_home"]


def expand_home(path: str | Path, option: str = "") -> Path:
    """Puts the home folder in the place of `~` or `~user`.

    Args:
        path: as typed.
        option: that it is of, for the message.

    Returns:
        The path.

    Raises:
        ValueError: there is no such user; names the path.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        where = f"{option}: " if option else ""
        raise ValueError(
            f"{where}{path}: there is no home folder of this user; write ./{path} for a name that"
            " begins with ~"
        ) from None
