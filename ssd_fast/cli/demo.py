# SPDX-License-Identifier: BSD-3-Clause
"""`ssd-fast demo`: an SSD300 learns to find shapes, from nothing, while one watches."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from ssd_fast.cli.console import Console
    from ssd_fast.data import ShapesDataset
    from ssd_fast.engine.evaluation import Evaluation
    from ssd_fast.engine.precision import Precision
    from ssd_fast.engine.trainer import Trainer
    from ssd_fast.models.ssd import SSD

__all__ = ["Demo"]

_PICTURES, _COLUMNS = 8, 4
_SHOWN_SCORE = 0.5
_CROWD = 3  # least objects of a scene that is drawn; which ones are is not a matter of success


@dataclass(frozen=True)
class Demo:
    """Trains a slim SSD300 on generated scenes in about two minutes, and draws what it finds."""

    output: Path = Path("ssd-fast-demo")
    """Folder for detections.png, training.png, metrics.json and weights.safetensors."""
    steps: int = 400
    """Training steps of 8 scenes."""
    scenes: int = 200
    """Held-out scenes to evaluate on."""
    width: float = 0.125
    """Channels, as a share of the paper's SSD300. The 8732 boxes stay."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the model; auto is bfloat16 where the hardware multiplies it."""
    seed: int = 0
    """Of the scenes, the weights and the order."""

    def run(self) -> int:
        """Trains, evaluates, draws; the last line printed is `mAP@0.5` and its value."""
        from ssd_fast.cli.extras import require

        require("the demo", "rich", "PIL", "matplotlib", "safetensors")
        from ssd_fast.cli.console import Console
        from ssd_fast.data import ShapesDataset
        from ssd_fast.engine.output import output_folder

        begun = time.monotonic()
        console = Console()
        folder = output_folder(self.output)
        held_out = ShapesDataset(self.scenes, seed=self.seed + 1)
        trainer = self._make_trainer(console)
        rows = _train(trainer, console)
        training_seconds = time.monotonic() - begun
        detections, evaluation = _evaluate(trainer.averaged_model, held_out, trainer.precision)
        console.show_average_precision(evaluation)
        metrics = {
            **evaluation.metrics(),
            "steps": self.steps,
            "seed": self.seed,
            "precision": str(trainer.precision),
            "training_seconds": round(training_seconds, 1),
        }
        _write(folder, trainer.averaged_model, held_out.class_names, metrics)
        _draw(folder, rows, held_out, detections, evaluation)
        console.say(f"{time.monotonic() - begun:.0f} s in all. Look at")
        for name in ("detections.png", "training.png", "metrics.json", "weights.safetensors"):
            console.say(f"  {folder / name}")
        print(f"mAP@0.5 {evaluation.at_50.mean:.3f}", flush=True)
        return 0

    def _make_trainer(self, console: Console) -> Trainer:
        """A new model and what trains it."""
        import torch

        from ssd_fast.data import ShapesDataset
        from ssd_fast.engine.allocator import keep_freed_memory
        from ssd_fast.engine.initialisation import quiet_heads
        from ssd_fast.engine.precision import choose_precision
        from ssd_fast.engine.trainer import Trainer, TrainingOptions
        from ssd_fast.models import ssd300_vgg16

        torch.manual_seed(self.seed)
        options = TrainingOptions(steps=self.steps, seed=self.seed, augment="flip")
        scenes = ShapesDataset(options.steps * options.batch_size, seed=self.seed)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cpu":
            keep_freed_memory()
        model = ssd300_vgg16(len(scenes.class_names) + 1, width=self.width, norm=True).to(device)
        quiet_heads(model)
        precision = choose_precision(device, self.precision)
        count = sum(p.numel() for p in model.parameters())
        console.say(
            f"SSD300, width {self.width}: {count / 1e6:.2f} million parameters, 8732 boxes, on"
            f" {device.type} in {precision}"
        )
        console.say(f"Training on {len(scenes)} generated scenes, each seen once")
        return Trainer(model, scenes, options, precision=precision)


def _train(trainer: Trainer, console: Console) -> list[dict[str, float]]:
    """All steps, shown; returns the losses."""
    from ssd_fast.cli.console import TrainingProgress

    options = trainer.options
    rows = []
    with TrainingProgress(
        console, start=0, steps=options.steps, batch_size=options.batch_size
    ) as progress:
        for report in trainer.run():
            progress.update(report)
            if not report.skipped:
                rows.append(
                    {
                        "step": report.step,
                        "box_loss": report.box_loss,
                        "class_loss": report.class_loss,
                    }
                )
    return rows


def _evaluate(
    model: SSD, held_out: ShapesDataset, precision: Precision
) -> tuple[list[dict[str, Tensor]], Evaluation]:
    """Detections of the held-out scenes, and how good they are."""
    from ssd_fast.engine.evaluation import detect_dataset, score_detections

    detections, targets = [], []
    for found, there in detect_dataset(model, held_out, precision=precision):
        detections += found
        targets += there
    return detections, score_detections(detections, targets, held_out.class_names)


def _write(
    folder: Path, model: SSD, class_names: tuple[str, ...], metrics: dict[str, object]
) -> None:
    """The weights and the numbers."""
    from ssd_fast.engine.output import write_file
    from ssd_fast.engine.weights import save_weights

    save_weights(folder / "weights.safetensors", model, class_names)
    write_file(folder / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())


def _draw(
    folder: Path,
    rows: list[dict[str, float]],
    held_out: ShapesDataset,
    detections: list[dict[str, Tensor]],
    evaluation: Evaluation,
) -> None:
    """The first crowded held-out scenes with their detections, and the curves of the run."""
    from ssd_fast.engine.output import write_file
    from ssd_fast.engine.pictures import draw_grid, draw_image, png_bytes
    from ssd_fast.engine.plots import plot_training
    from ssd_fast.engine.prediction import above

    crowded = [i for i in range(len(held_out)) if len(held_out[i][1]["labels"]) >= _CROWD]
    pictures = []
    for i in (crowded or range(len(held_out)))[:_PICTURES]:
        image, target = held_out[i]
        found = above(detections[i], _SHOWN_SCORE)
        pictures.append(draw_image(image, found, held_out.class_names, truth=target["boxes"]))
    sheet = draw_grid(
        pictures,
        held_out.class_names,
        columns=_COLUMNS,
        caption=f"scenes not trained on, scores of {_SHOWN_SCORE} and more",
    )
    write_file(folder / "detections.png", png_bytes(sheet))
    write_file(folder / "training.png", plot_training(rows, evaluation))
