# SPDX-License-Identifier: BSD-3-Clause
"""held_out: sets for a folder that has none, every fifth image held out."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["SETS", "held_out"]

SETS = ("train", "val", "test", "trainval", "all")
_EVERY_FIFTH = 5


def held_out(names: Sequence[str], image_set: str) -> list[str]:
    """The names of a set.

    Args:
        names: of all images, sorted.
        image_set: one of `SETS`.

    Returns:
        Every fifth name for "val" and "test", starting with the fifth, the rest for "train", and
        all for "trainval" and "all". Of two to four names the last is held out, and a single one is
        in every set.

    Raises:
        ValueError: there is no such set.
    """
    if image_set not in SETS:
        raise ValueError(f"image_set: expected one of {', '.join(SETS)}, got {image_set!r}")
    # Neither part may be empty: who tries this on four images of one's own is measured, too.
    fifth = set(names[_EVERY_FIFTH - 1 :: _EVERY_FIFTH] or names[-1:])
    if image_set in ("val", "test"):
        return sorted(fifth)
    if image_set == "train" and fifth < set(names):
        return [name for name in names if name not in fifth]
    return list(names)
