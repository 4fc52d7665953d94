# SPDX-License-Identifier: BSD-3-Clause
"""The picture of a run: its losses and its precision-recall curves, drawn with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ssd_fast.engine.evaluation import Evaluation
from ssd_fast.engine.pictures import colour_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plain", "plot_training"]

_INK = "#181c22"
_GRID = "#e6e8eb"
_BOX, _CLASS, _AP = "#0072b2", "#d55e00", "#007a5e"


def plot_training(rows: Sequence[dict[str, Any]], evaluation: Evaluation) -> bytes:
    """Draws the losses of a run on the left and precision over recall on the right.

    Args:
        rows: of the run's log, with "step" and "box_loss" and "class_loss", None where not finite,
            or "map_50" where the run was validated on the way: drawn over the losses, from two of
            them on.
        evaluation: of the finished model.

    Returns:
        A PNG file.
    """
    # The figure's own canvas, not pyplot: no global state, no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 4.2), dpi=150, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _plot_losses(left, rows)
    _plot_validations(left, [row for row in rows if row.get("map_50") is not None])
    _plot_curves(right, evaluation)
    buffer = io.BytesIO()
    canvas.print_png(buffer)  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def plain(text: str) -> str:
    """The text such that matplotlib draws it as it is: a dollar sign begins no formula.

    Args:
        text: from outside, such as the name of a class.

    Returns:
        What to give matplotlib.
    """
    return text.replace("$", r"\$")


def _plot_losses(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    """Both losses, each step faint and the mean of its neighbours strong."""
    tops = []
    for key, name, colour in (
        ("class_loss", "classification", _CLASS),
        ("box_loss", "box regression", _BOX),
    ):
        # Of a step that was skipped one loss may be finite, and the other is none.
        known = [row for row in rows if row.get(key) is not None]
        steps, values = [row["step"] for row in known], [float(row[key]) for row in known]
        axes.plot(steps, values, color=colour, alpha=0.22, linewidth=0.8)
        axes.plot(steps, _smooth(values), color=colour, linewidth=2.0, label=name)
        tops.append(sorted(values)[int(0.995 * len(values))] if values else 0.0)
    # A few steps that leap out would press all others flat.
    axes.set_ylim(0.0, 1.1 * max(tops) or 1.0)
    axes.set_title("Training loss", loc="left", fontweight="bold")
    axes.set_xlabel("step")
    axes.legend(frameon=False, loc="center right")
    _dress(axes)


def _plot_validations(axes: Axes, rows: list[dict[str, Any]]) -> None:
    """The average precision of the validations on the way, on an axis of its own at the right."""
    if len(rows) < 2:
        return
    right = axes.twinx()
    steps, values = [row["step"] for row in rows], [float(row["map_50"]) for row in rows]
    right.plot(steps, values, color=_AP, linewidth=2.0, marker="o", markersize=4)
    right.set_ylim(0.0, 1.02)
    right.set_ylabel("validation mAP@0.5", color=_AP)
    right.tick_params(axis="y", colors=_AP)
    right.spines[["top", "left", "right"]].set_visible(False)
    axes.set_title("Training loss and validation", loc="left", fontweight="bold")


def _plot_curves(axes: Axes, evaluation: Evaluation) -> None:
    """Precision over recall of each class, with its average precision in the legend."""
    averages = evaluation.at_50.per_class.tolist()
    for label, (name, curve) in enumerate(
        zip(evaluation.class_names, evaluation.at_50.curves, strict=True), 1
    ):
        if curve.num_objects == 0:
            continue
        recall = [0.0, *curve.recall.tolist()]
        precision = [1.0, *curve.precision.tolist()]
        colour = tuple(value / 255 for value in colour_of(label))
        axes.plot(
            recall,
            precision,
            color=colour,
            linewidth=2.0,
            label=f"{plain(name)}  {averages[label - 1]:.3f}",
        )
    axes.set_xlim(0.0, 1.01)
    axes.set_ylim(0.0, 1.02)
    title = f"Precision and recall on {evaluation.images} held-out images"
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    if axes.lines:
        title = f"AP@0.5, mean {evaluation.at_50.mean:.3f}"
        axes.legend(frameon=False, title=title, loc="lower left", alignment="left", ncols=2)
    _dress(axes)


def _smooth(values: Sequence[float], share: float = 0.05) -> list[float]:
    """Each value as the mean of those around it, within `share` of the run."""
    radius = round(len(values) * share / 2)
    windows = (values[max(i - radius, 0) : i + radius + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _dress(axes: Axes) -> None:
    """Grid below, no box around."""
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
