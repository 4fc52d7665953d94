# SPDX-License-Identifier: BSD-3-Clause
"""Which image files a command line means: files, folders, patterns, and a list on stdin."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ssd_fast.cli.home import expand_home

__all__ = ["PICTURE_SUFFIX", "find_images"]

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# What predict adds to an image's name for its picture. A folder's pictures are not its images.
PICTURE_SUFFIX = ".detections.png"


def find_images(
    arguments: Sequence[str], stdin: Iterable[str] = ()
) -> tuple[list[Path], list[str]]:
    """Finds the image files that some arguments stand for.

    A file stands for itself, a folder for the images in it, a pattern with `*`, `?`, `[...]` or
    `**` for the images that match, and "-" for such arguments on standard input, one a line.
    Images of a folder or pattern come in natural order: frame 2 before frame 10.

    Args:
        arguments: as typed.
        stdin: lines, read if "-" is among the arguments.

    Returns:
        The files, each once, in order; and what is wrong with arguments that stand for none. A file
        that does not exist is among the files, for reading it says so.
    """
    found: dict[Path, None] = {}
    problems: list[str] = []
    for argument in _with_lines(arguments, stdin):
        try:
            images, problem = _find(argument)
        except OSError as error:  # such as a name that is too long, or a folder that is closed
            images, problem = [], f"{argument}: {error.strerror}"
        except ValueError as error:
            images, problem = [], str(error)
        found |= dict.fromkeys(sorted(images, key=_natural))
        if not images:
            problems.append(problem)
    return list(found), problems


def _find(argument: str) -> tuple[list[Path], str]:
    """The images that an argument stands for, and what is wrong if there is none."""
    path = expand_home(argument)
    if path.is_dir():
        images = [p for p in path.iterdir() if _is_image(p)]
        problem = f"{argument}: no image in this folder (of {', '.join(_SUFFIXES)})"
        if not images and any(p.is_dir() for p in path.iterdir()):
            problem += f"; '{Path(argument) / '**/*'}' stands for those in its folders"
        return images, problem
    if path.is_file() or not glob.has_magic(argument):
        return [path], ""
    matches = map(Path, glob.glob(str(path), recursive=True))
    return [p for p in matches if _is_image(p)], f"{argument}: no image matches"


def _with_lines(arguments: Sequence[str], stdin: Iterable[str]) -> Iterator[str]:
    """The arguments, with the lines of standard input in the place of "-"."""
    for argument in arguments:
        if argument != "-":
            yield argument
            continue
        for line in stdin:
            name = line.rstrip("\r\n")
            if name and name != "-":
                yield name


def _is_image(path: Path) -> bool:
    name = path.name.lower()
    return name.endswith(_SUFFIXES) and not name.endswith(PICTURE_SUFFIX) and path.is_file()


def _natural(path: Path) -> tuple[list[tuple[str, int]], str]:
    """A key by which numbers inside names count as numbers."""
    parts = re.findall(r"(\D*)(\d*)", str(path))
    return [(text, int(digits or -1)) for text, digits in parts], str(path)
