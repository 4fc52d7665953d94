# SPDX-License-Identifier: BSD-3-Clause
"""The log of a run holds each step once, also after a crash."""

import json
import math
from pathlib import Path

from ssd_fast.engine.log import RunLog, read_log


def test_rows_are_lines_of_json(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    with RunLog(path) as log:
        log.write(1, loss=2.5)
        log.write(2, loss=math.nan)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": None}]
    assert lines == log.rows == read_log(path)


def test_a_new_run_starts_a_new_log(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n')
    with RunLog(path) as log:
        log.write(1, loss=1.0)
    assert read_log(path) == [{"step": 1, "loss": 1.0}]


def test_steps_that_are_done_again_are_left_out(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    with RunLog(path) as log:
        for step in range(1, 6):
            log.write(step, loss=1.0)
    path.write_text(path.read_text() + '{"step": 6, "lo')  # a crash in the middle of a line
    with RunLog(path, step=3) as log:
        log.write(4, loss=9.0)
    assert [row["step"] for row in read_log(path)] == [1, 2, 3, 4]
    assert read_log(path)[-1]["loss"] == 9.0
