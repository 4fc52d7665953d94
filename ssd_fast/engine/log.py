# SPDX-License-Identifier: BSD-3-Clause
"""The log of a run: one JSON object a line, for plots and for other tools."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from ssd_fast.engine.output import write_file

__all__ = ["RunLog", "read_log"]


class RunLog:
    """Appends rows with a "step" to a file.

    Args:
        path: the file; None writes nowhere, for all processes of a run but one.
        step: where the run goes on; rows of later steps, which will be done again, are left out.
    """

    def __init__(self, path: str | os.PathLike[str] | None, *, step: int = 0) -> None:
        self.rows: list[dict[str, Any]] = []
        if path is None:
            path = os.devnull
        else:
            if step:
                self.rows = [row for row in read_log(path) if row["step"] <= step]
            write_file(path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  closed by __exit__

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, step: int, **values: float) -> None:
        """Adds a row.

        Args:
            step: steps done.
            values: numbers; one that is not finite becomes null, for JSON has none.

        Raises:
            OSError: the disk is full.
        """
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        row: dict[str, Any] = {"step": step, **finite}
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")

    def flush(self) -> None:
        """Hands all rows to the system, before a checkpoint says that they are there."""
        self._file.flush()


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the rows of a log.

    Args:
        path: the file; a missing one has no rows.

    Returns:
        The rows; a last line that a crash left unfinished is left out.
    """
    if not Path(path).exists():
        return []
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        rows.append(row)
    return rows
