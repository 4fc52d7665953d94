# SPDX-License-Identifier: BSD-3-Clause
"""What is wrong with data: `Problem` names what was left out, `BrokenSample` what does not open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BrokenSample", "EmptyDatasetError", "Problem", "summary"]


@dataclass(frozen=True)
class Problem:
    """Something in the folder that was left out.

    Attributes:
        file: the file that is broken, or that is missing.
        object: the object in its annotation: in VOC its number from 1, in COCO its id; None if a
            whole image is out.
        message: what is wrong, with the values.
    """

    file: Path
    object: int | str | None
    message: str

    def __str__(self) -> str:
        """One line that names the file, the object and the fault."""
        where = "" if self.object is None else f", object {self.object}"
        return _printable(f"{self.file}{where}: {self.message}")


class BrokenSample(ValueError):
    """An image file that does not decode; `dataset[i]` raises it, and a loader may go on without.

    Args:
        path: the file.
        reason: what is wrong with it.

    Attributes:
        path: the file.
        reason: what is wrong with it, without the file's name.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(_printable(f"{path}: {reason}"))
        self.path = Path(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[BrokenSample], tuple[Path, str]]:
        """How it comes back whole from another process: pickle would call it with one argument."""
        return type(self), (self.path, self.reason)


class EmptyDatasetError(ValueError):
    """No image of a dataset can be used.

    Args:
        where: the folder or file, and what was looked for.
        problems: why.

    Attributes:
        problems: tuple of `Problem`, each image that was left out.
    """

    def __init__(self, where: str, problems: Sequence[Problem]) -> None:
        super().__init__(
            f"{_printable(where)}{summary(problems) if problems else 'None is listed.'}"
        )
        self.problems = tuple(problems)


def summary(problems: Sequence[Problem], limit: int = 5) -> str:
    """The first problems, and how many more there are.

    Args:
        problems: any number.
        limit: how many are spelled out.

    Returns:
        One line.
    """
    more = f"; and {len(problems) - limit} more" if len(problems) > limit else ""
    return "; ".join(str(problem) for problem in problems[:limit]) + more


def _printable(text: str) -> str:
    """The text with names of files escaped that are no UTF-8, which no terminal takes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
