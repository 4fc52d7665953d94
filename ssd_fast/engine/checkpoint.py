# SPDX-License-Identifier: BSD-3-Clause
"""The state of a training run on disk: written whole, read without running any code in it."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from ssd_fast.engine.output import write_file

__all__ = ["load_checkpoint", "save_checkpoint"]

_FORMAT = 2


def save_checkpoint(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Writes a checkpoint in place of the one at `path`.

    Args:
        path: the file.
        state: tensors, numbers, strings, and lists and dicts of them.

    Raises:
        OSError: the file cannot be written; the checkpoint that was there is unchanged.
    """
    # To memory first: an error of the disk then comes from a plain write, not from the middle of
    # torch's archive writer.
    buffer = io.BytesIO()
    torch.save({"format": _FORMAT, **state}, buffer)
    write_file(path, buffer.getbuffer())


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU, with `weights_only=True`.

    Args:
        path: the file.

    Returns:
        What `save_checkpoint` was given.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint of this package, or damaged.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; start a run without --resume")
    with open(path, "rb") as file:
        try:
            # torch writes the checksums of its archive and does not look at them.
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # each reader on the way has errors of its own for bad bytes
            raise ValueError(f"{path} is damaged or no checkpoint of ssd_fast: {error}") from error
    if not isinstance(state, dict) or "format" not in state:
        raise ValueError(f"{path} is no checkpoint of ssd_fast")
    if state["format"] != _FORMAT:
        raise ValueError(
            f"{path} has checkpoint format {state['format']}, this version of ssd_fast reads"
            f" format {_FORMAT}"
        )
    return state
