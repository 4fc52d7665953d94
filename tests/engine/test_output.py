# SPDX-License-Identifier: BSD-3-Clause
"""Files appear whole or not at all, and folders are proven writable before work starts."""

import errno
import os
from pathlib import Path

import pytest

from ssd_fast.engine.output import output_folder, write_file


def test_a_file_is_written_with_usual_permissions(tmp_path: Path):
    path = tmp_path / "weights"
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    assert list(tmp_path.iterdir()) == [path]


def test_an_empty_file_is_written(tmp_path: Path):
    write_file(tmp_path / "log", b"")
    assert (tmp_path / "log").read_bytes() == b""


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "checkpoint"
    write_file(path, b"old")
    written = 0

    def write_some(number: int, data: memoryview) -> int:
        nonlocal written
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(number, data[:100])
        return written

    real = os.write
    monkeypatch.setattr(os, "write", write_some)
    with pytest.raises(OSError, match=r"cannot write .*checkpoint: No space.*unchanged"):
        write_file(path, b"x" * 1000)
    assert written == 100
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_short_write_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda number, data: real(number, data[:7]))
    write_file(tmp_path / "file", bytes(range(100)))
    assert (tmp_path / "file").read_bytes() == bytes(range(100))


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    for old in ("checkpoint", "missing"):
        (tmp_path / old).symlink_to(disk / old)
    (disk / "checkpoint").write_bytes(b"old")
    for name in ("checkpoint", "missing"):
        write_file(tmp_path / name, b"new")
        assert (tmp_path / name).is_symlink()
        assert (disk / name).read_bytes() == b"new"


def test_a_pipe_is_written_to_and_stays(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_file(pipe, b"new")
        assert pipe.is_fifo()
        assert os.read(reader, 10) == b"new"
    finally:
        os.close(reader)


def test_a_folder_is_made_with_its_parents_and_left_empty(tmp_path: Path):
    folder = output_folder(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert not list(folder.iterdir())


def test_the_home_folder_of_nobody_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert output_folder("~/runs") == tmp_path / "runs"
    with pytest.raises(RuntimeError, match="home"):
        output_folder("~nosuch/runs")


@pytest.mark.parametrize("below", ["", "runs"])
def test_a_folder_that_is_a_file_is_refused(tmp_path: Path, below: str):
    # A file in the way stops the superuser too, unlike permission bits.
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"folder .*: (it is a file|Not a directory); .*--output"):
        output_folder(tmp_path / "file" / below)


def test_a_folder_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ssd_fast.engine.output.tempfile.TemporaryFile", full)
    with pytest.raises(OSError, match="No space left on device"):
        output_folder(tmp_path)


def test_a_folder_in_the_way_is_no_file_that_was_there(tmp_path: Path):
    with pytest.raises(OSError, match=r"cannot write .*: Is a directory$"):
        write_file(tmp_path, b"new")
