# SPDX-License-Identifier: BSD-3-Clause
"""`ssd-fast eval`: average precision of weights on a dataset."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ssd_fast.cli.console import Console
    from ssd_fast.data import BrokenSample
    from ssd_fast.engine.dataset_items import DetectionDataset
    from ssd_fast.engine.evaluation import Evaluation
    from ssd_fast.engine.precision import Precision
    from ssd_fast.models.ssd import SSD

__all__ = ["Evaluate", "detect_shown", "report_shown"]


@dataclass(frozen=True)
class Evaluate:
    """Prints the average precision of each class, and their mean."""

    weights: Path
    """File that `train` or `demo` wrote."""
    data: str
    """A folder in VOC or COCO layout, VOC2007,VOC2012 for both, or shapes for generated scenes."""
    image_set: str = ""
    """Which set of the folder; by default test, or else val."""
    batch_size: int = 16
    """Images at a time."""
    nms: Literal["hard", "soft-linear", "soft-gaussian", "diou"] | None = None
    """Suppression of detections that overlap; by default what the weights were saved with."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the model; auto is bfloat16 where the hardware multiplies it."""
    metric: Literal["voc", "voc07", "coco"] = "voc"
    """Whose rules: VOC's since 2010 (area under the curve), of 2007 (eleven points), or COCO's."""
    json: Path | None = None
    """Also write the numbers to this file."""
    output: Path | None = None
    """Folder for a report: report.html with curves, confusions and the worst images, all figures as
    PNG, and report.json, whose score threshold predict takes where it lies with the weights."""

    def run(self) -> int:
        """Detects, scores and prints; an image that does not decode is named and left out."""
        from ssd_fast.cli.extras import require

        require("evaluation", "rich", "PIL", "defusedxml", "safetensors")
        import torch

        from ssd_fast.cli.console import Console
        from ssd_fast.cli.datasets import (
            check_class_names,
            open_dataset,
            pick_image_set,
            tell_problems,
        )
        from ssd_fast.engine.evaluation import score_detections
        from ssd_fast.engine.output import output_folder, write_file
        from ssd_fast.engine.precision import choose_precision
        from ssd_fast.engine.weights import load_weights

        if self.batch_size < 1:
            raise ValueError(f"--batch-size: expected 1 or more, got {self.batch_size}")
        console = Console()
        if self.json is not None:
            if self.json.is_dir():
                raise ValueError(f"--json: {self.json} is a folder; name a file in it")
            output_folder(self.json.parent)
        if self.output is not None:
            require("a report", "matplotlib")
            output_folder(self.output)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model, class_names = load_weights(self.weights, device)
        model.nms = self.nms or model.nms
        image_set = pick_image_set(self.data, self.image_set, among=("test", "val"))
        dataset, problems = open_dataset(self.data, image_set)
        check_class_names(class_names, dataset.class_names, str(self.weights))
        if dataset.class_names != class_names:
            # The same names in another order, or some of them: the weights give the labels.
            dataset, problems = open_dataset(self.data, image_set, class_names)
        tell_problems(problems, image_set, console)
        precision = choose_precision(device, self.precision)
        console.say(f"{len(dataset)} images of {image_set}, on {device.type} in {precision}")
        broken: dict[int, BrokenSample] = {}
        found, targets = detect_shown(
            model,
            dataset,
            precision,
            console,
            batch_size=self.batch_size,
            on_broken=broken.__setitem__,
        )
        dataset = _without(dataset, broken, image_set, console)
        evaluation = score_detections(found, targets, class_names, metric=self.metric)
        console.show_average_precision(evaluation)
        if self.json is not None:
            numbers = json.dumps(evaluation.metrics(), indent=2)
            write_file(self.json, (numbers + "\n").encode())
        if self.output is not None:
            source = {"weights": str(self.weights), "data": self.data, "image_set": image_set}
            report_shown(self.output, source, dataset, found, targets, evaluation, console)
        print(f"mAP@0.5 {evaluation.at_50.mean:.3f}", flush=True)
        return 0


def report_shown(
    folder: Path,
    source: dict[str, str],
    dataset: DetectionDataset,
    detections: list[dict[str, Tensor]],
    targets: list[dict[str, Tensor]],
    evaluation: Evaluation,
    console: Console,
) -> None:
    """Writes a report and says where it is.

    Args:
        folder: where; made if it is missing.
        source: what was evaluated: the file `weights`, `data` and `image_set`.
        dataset: the images.
        detections: one dict an image.
        targets: one dict an image.
        evaluation: of them.
        console: where it is said.
    """
    from ssd_fast.engine.output import output_folder
    from ssd_fast.engine.report import make_report, weights_digest
    from ssd_fast.engine.report_files import write_report

    source = {**source, "weights_sha256": weights_digest(source["weights"])}
    report = make_report(detections, targets, evaluation, source)
    page, *_ = write_report(output_folder(folder), report, dataset, detections)
    found = float(report.thresholds.mean_f1[report.thresholds.overall]) > 0
    threshold = f"Score threshold with the best F1: {report.score_threshold:.3f}"
    console.say(f"{threshold if found else 'No score threshold finds an object'}; see {page}")


def _without(
    dataset: DetectionDataset, broken: dict[int, BrokenSample], image_set: str, console: Console
) -> DetectionDataset:
    """The images of which there are detections; says which others there were."""
    from ssd_fast.cli.datasets import tell_problems
    from ssd_fast.data import Problem
    from ssd_fast.engine.subset import leave_out

    kept = leave_out(dataset, broken)
    problems = [Problem(error.path, None, error.reason) for error in broken.values()]
    tell_problems(problems, image_set, console)
    return kept


def detect_shown(
    model: SSD,
    dataset: DetectionDataset,
    precision: Precision,
    console: Console,
    *,
    batch_size: int = 16,
    on_broken: Callable[[int, BrokenSample], object] | None = None,
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Detects objects in a dataset with a progress bar.

    Args:
        model: put in evaluation mode.
        dataset: the images.
        precision: arithmetic of the model.
        console: where the bar goes.
        batch_size: images at a time.
        on_broken: as for `detect_dataset`.

    Returns:
        Detections and targets, one dict an image each.
    """
    from rich.progress import track

    from ssd_fast.engine.evaluation import detect_dataset

    found = track(
        detect_dataset(
            model, dataset, precision=precision, batch_size=batch_size, on_broken=on_broken
        ),
        "evaluating",
        total=-(-len(dataset) // batch_size),
        console=console.rich,
        transient=True,
        disable=not console.rich.is_terminal,
    )
    detections, targets = [], []
    for some_detections, some_targets in found:
        detections += some_detections
        targets += some_targets
    return detections, targets
