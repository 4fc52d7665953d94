# SPDX-License-Identifier: BSD-3-Clause
"""The log of a run: one JSON object a line, the same as CSV, and TensorBoard if it is wanted."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from ssd_fast.engine.output import write_file

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["RunLog", "open_board", "read_log"]


class RunLog:
    """Appends rows with a "step" to `log.jsonl` and `log.csv` in a folder.

    Args:
        folder: where; None writes nowhere, for all processes of a run but one.
        step: where the run goes on; rows of later steps, which will be done again, are left out.
        columns: of the CSV, beside the step; a row leaves empty what it does not know.
        board: TensorBoard's writer, or None.

    Attributes:
        rows: all of them.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        step: int = 0,
        columns: Sequence[str] = (),
        board: SummaryWriter | None = None,
    ) -> None:
        self.board = board
        self.rows: list[dict[str, Any]] = []
        if folder is not None and step:
            self.rows = [row for row in read_log(folder / "log.jsonl") if row["step"] <= step]
        self._lines = _begin(folder, "log.jsonl", map(_line, self.rows))
        self._cells = _begin(folder, "log.csv", [])
        self._table = csv.DictWriter(
            self._cells, ["step", *columns], extrasaction="ignore", lineterminator="\n"
        )
        self._table.writeheader()
        self._table.writerows(self.rows)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lines.close()
        self._cells.close()
        if self.board is not None:
            self.board.close()

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
        self._lines.write(_line(row))
        self._table.writerow(row)
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Hands all rows to the system, before a checkpoint says that they are there."""
        self._lines.flush()
        self._cells.flush()


def open_board(folder: Path, *, step: int) -> SummaryWriter:
    """TensorBoard's writer.

    Args:
        folder: for its files.
        step: where the run goes on; what it held of later steps is hidden.

    Returns:
        The writer.

    Raises:
        ModuleNotFoundError: the package is missing; names the `pip install`.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ModuleNotFoundError(
            "--tensorboard needs the package of that name: pip install tensorboard"
        ) from error
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"


def _begin(folder: Path | None, name: str, lines: Iterable[str]) -> TextIO:
    """A file that holds these lines, open for more."""
    if folder is None:
        return open(os.devnull, "w", encoding="utf-8")
    write_file(folder / name, "".join(lines).encode())
    return open(folder / name, "a", encoding="utf-8", newline="")


def read_log(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the rows of a log.

    Args:
        path: the file; a missing one has no rows.

    Returns:
        The rows; a last line that a crash left unfinished is left out.

    Raises:
        ValueError: a line is JSON, but no row.
    """
    if not Path(path).exists():
        return []
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise ValueError(f'{path}: expected rows with a "step", got {line[:80]}')
        rows.append(row)
    return rows
