# SPDX-License-Identifier: BSD-3-Clause
"""The figures of a report as PNG files, for light and for dark pages, drawn with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ssd_fast.engine.pictures import colour_of
from ssd_fast.engine.plots import plain
from ssd_fast.engine.report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["DARK", "LIGHT", "MATRIX_CLASSES", "Theme", "draw_figures"]

_LEGEND = 8  # most classes that a legend names
_WIDTH, _HEIGHT, _DPI = 4.8, 3.6, 200  # letters stay legible at the width of a telephone
MATRIX_CLASSES = 20  # most classes that a confusion matrix shows
_COUNTED = 8  # most classes whose cells hold numbers


@dataclass(frozen=True)
class Theme:
    """Colours of a figure.

    Attributes:
        paper: ground.
        ink: letters and lines.
        grid: faint lines.
        strong: the one colour of bars and cells.
    """

    paper: str
    ink: str
    grid: str
    strong: str


LIGHT = Theme("#ffffff", "#181c22", "#e6e8eb", "#0072b2")
DARK = Theme("#16191e", "#e8eaed", "#333940", "#56b4e9")


def draw_figures(report: Report, theme: Theme = LIGHT) -> dict[str, bytes]:
    """Draws all figures of a report.

    Args:
        report: what to show.
        theme: in which colours.

    Returns:
        PNG files by name: precision_recall, f1, confusion_matrix and sizes.
    """
    side = min(len(report.evaluation.class_names), MATRIX_CLASSES) + 1
    matrix = (max(_WIDTH, 1.6 + 0.33 * side), max(_HEIGHT, 1.2 + 0.3 * side))
    usual = (_WIDTH, _HEIGHT)
    return {
        "precision_recall": _draw(lambda a: _plot_precision_recall(a, report, theme), theme, usual),
        "f1": _draw(lambda a: _plot_f1(a, report, theme), theme, usual),
        "confusion_matrix": _draw(lambda a: _plot_confusion(a, report, theme), theme, matrix),
        "sizes": _draw(lambda a: _plot_sizes(a, report, theme), theme, usual),
    }


def _draw(plot: Callable[[Axes], None], theme: Theme, size: tuple[float, float]) -> bytes:
    # The figure's own canvas, not pyplot: no global state, no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=_DPI, layout="constrained", facecolor=theme.paper)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_facecolor(theme.paper)
    plot(axes)
    axes.tick_params(colors=theme.ink, labelcolor=theme.ink)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_color(theme.ink)
    legend = axes.get_legend()
    for text in legend.get_texts() if legend is not None else []:
        text.set_color(theme.ink)
    buffer = io.BytesIO()
    # Without the version of matplotlib inside, which would change the bytes.
    canvas.print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def _plot_precision_recall(axes: Axes, report: Report, theme: Theme) -> None:
    averages = report.evaluation.at_50.per_class.tolist()
    curves = report.evaluation.at_50.curves
    for label, name, line in _lines(report, theme):
        curve = curves[label - 1]
        # The envelope that the average is taken of: a line of a million points is no clearer.
        recall, last = curve.recall.unique_consecutive(return_counts=True)
        ends = last.cumsum(0) - 1
        best = curve.precision.flip(0).cummax(0).values.flip(0)[ends - last + 1]
        values = [float(best[0]) if best.numel() else 0.0, *best.tolist()]
        axes.plot(
            [0.0, *recall.tolist()],
            values,
            label=name and f"{name} {averages[label - 1]:.3f}",
            drawstyle="steps-pre",
            **line,
        )
    axes.set_xlim(0.0, 1.01)
    axes.set_ylim(0.0, 1.02)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    _legend(axes, theme)
    _dress(axes, theme)


def _plot_f1(axes: Axes, report: Report, theme: Theme) -> None:
    chosen = report.thresholds
    grid = chosen.grid.tolist()
    for label, name, line in _lines(report, theme):
        axes.plot(grid, chosen.f1[label - 1].tolist(), label=name, **line)
    axes.plot(grid, chosen.mean_f1.tolist(), color=theme.ink, linewidth=2.2, label="mean")
    axes.axvline(report.score_threshold, color=theme.ink, linewidth=1.0, linestyle=":")
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(0.0, 1.02)
    axes.set_xlabel("score threshold")
    axes.set_ylabel("F1")
    _legend(axes, theme)
    _dress(axes, theme)


def _plot_confusion(axes: Axes, report: Report, theme: Theme) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    names = ("background", *report.evaluation.class_names)
    shown = _most_confused(report.confusion.counts)
    counts = report.confusion.counts[shown][:, shown]
    share = counts / report.confusion.counts[shown].sum(1, keepdim=True).clamp(min=1)
    colours = LinearSegmentedColormap.from_list("share", [theme.paper, theme.strong])
    axes.imshow(share.tolist(), cmap=colours, vmin=0.0, vmax=1.0, aspect="auto")
    labels = [_short(names[label]) for label in shown]
    places = range(len(shown))
    axes.set_xticks(places, labels, rotation=90 if len(shown) > 4 else 0)
    axes.set_yticks(places, labels)
    axes.set_xlabel("detected as")
    axes.set_ylabel("truth")
    if len(shown) <= _COUNTED + 1:
        for row in places:
            for column in places:
                value = int(counts[row, column])
                if row or column:
                    # White stands out on the light theme's blue, dark letters on the dark theme's.
                    ink = theme.paper if float(share[row, column]) > 0.55 else theme.ink
                    axes.text(column, row, str(value), ha="center", va="center", color=ink)
    axes.spines[:].set_color(theme.grid)


def _plot_sizes(axes: Axes, report: Report, theme: Theme) -> None:
    sizes = report.sizes
    places = list(range(len(sizes)))
    for shift, key, colour in ((-0.2, "AP@0.5", theme.strong), (0.2, "recall", "#e69f00")):
        values = [size.at_50.mean if key == "AP@0.5" else size.recall for size in sizes]
        heights = [0.0 if value != value else value for value in values]
        bars = axes.bar([p + shift for p in places], heights, 0.36, color=colour, label=key)
        texts = ["-" if value != value else f"{value:.2f}" for value in values]
        axes.bar_label(bars, texts, color=theme.ink, padding=2)
    axes.set_xticks(places, [f"{size.name}\n{size.objects} objects" for size in sizes])
    axes.set_ylim(0.0, 1.12)
    axes.set_yticks([0.0, 0.25, 0.5, 0.75, 1.0])
    axes.legend(frameon=False, ncols=2, loc="upper left")
    _dress(axes, theme)


def _lines(report: Report, theme: Theme) -> list[tuple[int, str, dict[str, Any]]]:
    """Label, name for the legend and style of the line of each class that has objects."""
    curves = report.evaluation.at_50.curves
    labels = [label for label, curve in enumerate(curves, 1) if curve.num_objects]
    few = len(labels) <= _LEGEND
    lines: list[tuple[int, str, dict[str, Any]]] = []
    for label in labels:
        colour = tuple(value / 255 for value in colour_of(label))
        # Colours come round again: the second time dashed, the third dotted.
        dash = ("-", "--", ":")[(label - 1) // 6 % 3]
        style: dict[str, Any] = {"color": colour, "linewidth": 1.8, "linestyle": dash}
        if not few:
            style = {"color": theme.strong, "linewidth": 0.8, "alpha": 0.45}
        lines.append((label, _short(report.evaluation.class_names[label - 1]) * few, style))
    return lines


def _most_confused(counts: Tensor) -> list[int]:
    """Background and the labels with most errors, in order."""
    wrong = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
    wrong[0] = -1
    order = wrong.argsort(descending=True, stable=True)[: min(len(counts) - 1, MATRIX_CLASSES)]
    labels: list[int] = torch.cat([torch.zeros(1).long(), order.sort().values]).tolist()
    return labels


def _short(name: str, most: int = 14) -> str:
    # Names that differ only in a number at their end stay different.
    return plain(name if len(name) <= most else f"{name[: most - 6]}…{name[-5:]}")


def _legend(axes: Axes, theme: Theme) -> None:
    if axes.get_legend_handles_labels()[1]:
        ground = {"facecolor": theme.paper, "edgecolor": "none", "framealpha": 0.85}
        axes.legend(loc="lower left", fontsize="small", **ground)


def _dress(axes: Axes, theme: Theme) -> None:
    """Grid below, no box around."""
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.ink)
