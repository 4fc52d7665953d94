# SPDX-License-Identifier: BSD-3-Clause
"""The log of a run holds each step once, also after a crash."""

import json
import math
import sys
from pathlib import Path

import pytest

from ssd_fast.engine.log import RunLog, open_board, read_log


def test_rows_are_lines_of_json(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    with RunLog(tmp_path) as log:
        log.write(1, loss=2.5)
        log.write(2, loss=math.nan)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": None}]
    assert lines == log.rows == read_log(path)


def test_a_new_run_starts_a_new_log(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n')
    with RunLog(tmp_path) as log:
        log.write(1, loss=1.0)
    assert read_log(path) == [{"step": 1, "loss": 1.0}]


def test_steps_that_are_done_again_are_left_out(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    with RunLog(tmp_path) as log:
        for step in range(1, 6):
            log.write(step, loss=1.0)
    path.write_text(path.read_text() + '{"step": 6, "lo')  # a crash in the middle of a line
    with RunLog(tmp_path, step=3) as log:
        log.write(4, loss=9.0)
    assert [row["step"] for row in read_log(path)] == [1, 2, 3, 4]
    assert read_log(path)[-1]["loss"] == 9.0


@pytest.mark.parametrize("line", ["null", "[1]", '{"loss": 1.0}', '{"step": "1"}'])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: str):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match=r'log\.jsonl: expected rows with a "step", got '):
        read_log(path)


def test_the_table_is_the_log(tmp_path: Path):
    columns = ("loss", "map_50")
    with RunLog(tmp_path, columns=columns) as log:
        for step in range(1, 4):
            log.write(step, loss=step / 2, other=1.0)
        log.write(3, map_50=math.nan)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines == ["step,loss,map_50", "1,0.5,", "2,1.0,", "3,1.5,", "3,,"]
    with RunLog(tmp_path, step=1, columns=columns) as log:
        log.write(2, map_50=0.5)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines == ["step,loss,map_50", "1,0.5,", "2,,0.5"]


def test_nothing_is_written_for_the_other_processes(tmp_path: Path):
    with RunLog(None, step=3, columns=("loss",)) as log:
        log.write(4, loss=1.0)
    assert log.rows == [{"step": 4, "loss": 1.0}]
    assert not list(tmp_path.iterdir())


class Board:
    """Stands in for TensorBoard's writer."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.closed = False

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def close(self) -> None:
        self.closed = True


def test_the_board_gets_every_number(tmp_path: Path):
    board = Board()
    with RunLog(tmp_path, board=board) as log:
        log.write(1, loss=2.0, rate=0.1)
    assert board.scalars == [("loss", 2.0, 1), ("rate", 0.1, 1)]
    assert board.closed


def test_a_missing_tensorboard_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match="pip install tensorboard"):
        open_board(tmp_path, step=0)
