# SPDX-License-Identifier: BSD-3-Clause
"""Where results go: folders known to be writable, files that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["locked_folder", "output_folder", "write_file"]

_LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


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
        RuntimeError: it is in the home folder of a user who has none.
    """
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 4096)
    except OSError as error:
        reason = "it is a file" if folder.is_file() else _reason(error)
        raise OSError(
            error.errno,
            f"cannot write in the output folder {folder}: {reason}; name another with --output",
        ) from error
    return folder


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Keeps a second run out of a folder while the block runs, and tidies up after a killed one.

    The lock dies with its process, so a run that was killed leaves none behind.

    Args:
        folder: of this run alone.

    Raises:
        ValueError: another run is writing there.
    """
    number = _lock(folder)
    try:
        for unfinished in folder.glob(".*.????????.part"):  # as mkstemp names them
            unfinished.unlink(missing_ok=True)
        yield
    finally:
        # While it is still held, so that nobody else's is removed.
        (folder / _LOCK).unlink(missing_ok=True)
        os.close(number)


def _lock(folder: Path) -> int:
    """Makes and locks the folder's lock file; returns its descriptor."""
    path = folder / _LOCK
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # Of the process, where flock's would live on in the workers that read its images.
            fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(number, 200).decode(errors="replace")
            if error.errno not in _NO_LOCKS:
                os.close(number)
                raise ValueError(
                    f"{folder} is in use by another run ({owner or 'just starting'}); wait for it,"
                    " or name another folder with --output"
                ) from None
        with suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(number).st_ino:
                break
        os.close(number)  # its owner removed it between the two calls
    os.truncate(number, 0)
    os.write(number, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return number


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


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A pipe or a device."""
    number = os.open(path, os.O_WRONLY)
    try:
        yield number
    finally:
        os.close(number)


def write_file(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Writes a file so that a reader, or a crash at any moment, finds the old one or the new one.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and the file is
    renamed over `path`; of a symbolic link, over the file that it leads to. What is no file, as
    /dev/stdout, is written to and stays.

    Args:
        path: the file to write or replace.
        data: all of its bytes.

    Raises:
        OSError: the disk is full or the folder cannot be written; `path` is as it was.
    """
    path = Path(path)
    try:
        special = path.exists() and not path.is_file()
        with _opened(path) if special else _new_file(Path(os.path.realpath(path))) as number:
            rest = memoryview(data).cast("B")
            while rest:
                rest = rest[os.write(number, rest) :]
    except OSError as error:
        kept = "; the file that was there is unchanged" if path.is_file() else ""
        room = "; make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        reason = f"cannot write {path}: {_reason(error)}{room}{kept}"
        raise OSError(error.errno, reason) from error


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
