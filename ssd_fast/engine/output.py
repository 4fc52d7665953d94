# SPDX-License-Identifier: BSD-3-Clause
"""Where results go: folders known to be writable, files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["output_folder", "write_file"]


def output_folder(path: str | os.PathLike[str]) -> Path:
    """Makes a folder for results and proves that files can be written there.

    A run that would fail at its last step fails here at its first: the permission bits say too
    little about that (read-only mounts, quotas, the superuser), so a file is written and removed.

    Args:
        path: the folder; it and its parents are made if they are missing.

    Returns:
        The folder.

    Raises:
        OSError: it cannot be made, or nothing can be written in it.
    """
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write in the output folder {folder}: {_reason(error)};"
            " name another with --output",
        ) from error
    return folder


@contextmanager
def _new_file(path: Path) -> Iterator[int]:
    """A new file beside `path` that takes its place when the block ends without an error."""
    # In the same folder, so that the replacement is one rename inside one file system.
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        try:
            yield number
            os.fsync(number)
        finally:
            os.close(number)
        os.chmod(name, 0o666 & ~_umask())  # mkstemp gives 0600
        os.replace(name, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)
        raise
    _sync_folder(path.parent)


def write_file(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Writes a file so that a reader, or a crash at any moment, finds the old one or the new one.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and the file is
    renamed over `path`.

    Args:
        path: the file to write or replace.
        data: all of its bytes.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is as it was.
    """
    path = Path(path)
    try:
        with _new_file(path) as number:
            rest = memoryview(data).cast("B")
            while rest:
                rest = rest[os.write(number, rest) :]
    except OSError as error:
        kept = "; the file that was there is unchanged" if path.exists() else ""
        raise OSError(error.errno, f"cannot write {path}: {_reason(error)}{kept}") from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _umask() -> int:
    """The process's file mode mask; the system has no call that only reads it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Flushes the rename itself, where the system lets a folder be opened."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
