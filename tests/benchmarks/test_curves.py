# SPDX-License-Identifier: BSD-3-Clause
"""The curves show what was measured, in order."""

from pathlib import Path

import pytest

from benchmarks.curves import curves, draw
from benchmarks.plot import Group, Row


def group(title: str, ours: float, theirs: float) -> Group:
    rows = (Row("ours", ours, ours, ours), Row("theirs", theirs, theirs, theirs))
    return Group(title, "ours", rows)


MEASURED = [
    group("loss: batch=8, cold", 0.002, 0.03),
    group("loss: batch=1, cold", 0.001, 0.004),
    group("nms: N=200, hot", 0.0001, 0.0002),
    group("loss, B=8, cold", 1, 1),  # of another benchmark
]


def test_points_are_gathered_by_quantity_and_sorted() -> None:
    assert curves(MEASURED) == {
        "loss, cold, by batch": {
            "ours": [(1, 0.001), (8, 0.002)],
            "theirs": [(1, 0.004), (8, 0.03)],
        },
        "nms, hot, by N": {"ours": [(200, 0.0001)], "theirs": [(200, 0.0002)]},
    }


def test_the_drawing_names_every_panel_and_contender(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib, of the extra train")
    path = tmp_path / "curves.svg"
    draw(curves(MEASURED), "ours", "a machine", path)
    drawn = path.read_text()
    for text in ("loss, cold, by batch", "nms, hot, by N", "theirs", "a machine"):
        assert text in drawn


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bench_scaling"):
        draw({}, "ours", "", tmp_path / "none.svg")
