# SPDX-License-Identifier: BSD-3-Clause
"""What a command shows: lines, and progress: a live bar on a terminal, more lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text

    from ssd_fast.engine.evaluation import Evaluation
    from ssd_fast.engine.trainer import StepReport

__all__ = ["Console", "TrainingProgress"]

_PLAIN_SECONDS = 15.0  # between two lines where there is no terminal


class Console:
    """Standard output through rich.

    Args:
        quiet: say nothing: another process speaks for this one.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console as RichConsole

        class Output(RichConsole):
            def on_broken_pipe(self) -> None:
                raise  # for `main`, which knows the status: rich would end the process with 1

        self.rich = Output(highlight=False, soft_wrap=True, quiet=quiet)

    def say(self, text: str) -> None:
        """Prints a line as it is: brackets in file names are no markup, `:cat:` is no picture."""
        self.rich.print(self.cell(text))

    def cell(self, text: str) -> Text:
        """The text of a table's cell as it is, with what the output cannot encode escaped."""
        from rich.text import Text

        encoding = self.rich.encoding
        return Text(text.encode(encoding, "backslashreplace").decode(encoding))

    def show_average_precision(self, evaluation: Evaluation) -> None:
        """Prints a table of average precision per class."""
        from rich.table import Table

        table = Table(title=f"{evaluation.images} images", title_justify="left")
        for name in ("class", "objects", "AP@0.5", "AP@0.75"):
            table.add_column(name, justify="left" if name == "class" else "right")
        at_50, at_75 = evaluation.at_50.per_class.tolist(), evaluation.at_75.per_class.tolist()
        for name, curve, fifty, seventy_five in zip(
            evaluation.class_names, evaluation.at_50.curves, at_50, at_75, strict=True
        ):
            averages = (_fraction(fifty), _fraction(seventy_five))
            table.add_row(self.cell(name), str(curve.num_objects), *averages)
        table.add_section()
        objects = sum(curve.num_objects for curve in evaluation.at_50.curves)
        means = (_fraction(evaluation.at_50.mean), _fraction(evaluation.at_75.mean))
        table.add_row("mean", str(objects), *means)
        self.rich.print(table)
        self.say(f"mAP@0.5:0.95 {_fraction(evaluation.mean)}")
        coco = evaluation.coco
        if coco is not None:
            for name, values in (
                ("AP small, medium, large", (coco.ap_small, coco.ap_medium, coco.ap_large)),
                ("AR of 1, 10, 100 detections", (coco.ar_1, coco.ar_10, coco.ar_100)),
                ("AR small, medium, large", (coco.ar_small, coco.ar_medium, coco.ar_large)),
            ):
                self.say(f"{name}: {'  '.join(map(_fraction, values))}")


class TrainingProgress:
    """The progress of a run: step, loss, images a second, time left.

    Args:
        console: where.
        start: steps done before.
        steps: of the whole run.
        batch_size: images a step.
    """

    def __init__(self, console: Console, *, start: int, steps: int, batch_size: int) -> None:
        self._console = console
        self._start, self._steps, self._batch_size = start, steps, batch_size
        self._begun = self._told = time.monotonic()
        self._loss = 0.0
        self._weight = 0.0
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> TrainingProgress:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        if self._console.rich.is_terminal:
            self._bar = Progress(
                TextColumn("step {task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("loss {task.fields[loss]}"),
                TextColumn("{task.fields[rate]} images/s"),
                TimeRemainingColumn(),
                console=self._console.rich,
            )
            fields = {"loss": "-", "rate": "-"}
            self._task = self._bar.add_task("", total=self._steps, completed=self._start, **fields)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, report: StepReport) -> None:
        """Shows a step."""
        now = time.monotonic()
        if not report.skipped:
            self._loss = 0.95 * self._loss + 0.05 * (report.box_loss + report.class_loss)
            self._weight = 0.95 * self._weight + 0.05
        loss = f"{self._loss / self._weight:.3f}" if self._weight else "-"
        done = report.step - self._start
        rate = done / max(now - self._begun, 1e-9)
        images = f"{rate * self._batch_size:.1f}"
        if self._bar is not None:
            self._bar.update(self._task, completed=report.step, loss=loss, rate=images)
        elif now - self._told > _PLAIN_SECONDS or report.step == self._steps:
            self._told = now
            left = (self._steps - report.step) / rate
            self._console.say(
                f"step {report.step}/{self._steps}  loss {loss}  {images} images/s  "
                f"{left:.0f} s left"
            )


def _fraction(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"
