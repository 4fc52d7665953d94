# SPDX-License-Identifier: BSD-3-Clause
"""`ssd-fast train`: a detector for a folder of photographs, saved as it learns."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ssd_fast.engine.batches import DetectionDataset
    from ssd_fast.engine.evaluation import Evaluation
    from ssd_fast.engine.log import RunLog
    from ssd_fast.engine.trainer import Trainer

__all__ = ["Train"]

_CHECKPOINT = "checkpoint.pt"
# These may change when a run goes on: where it reads and writes, and when it saves and looks.
_FREE = ("data", "output", "resume", "workers", "save_every", "validate_every")


@dataclass(frozen=True)
class Train:
    """Trains an SSD300 on a folder of images and boxes; Ctrl-C saves, --resume goes on."""

    data: str = ""
    """A folder in VOC or COCO layout, VOC2007,VOC2012 for both, or shapes for generated scenes."""
    output: Path = Path("ssd-fast-train")
    """Folder for weights.safetensors, checkpoint.pt, log.jsonl, metrics.json and training.png."""
    resume: bool = False
    """Go on with the run in the output folder, with its options."""
    epochs: float = 100.0
    """How often every image is seen."""
    steps: int | None = None
    """Training steps, in place of epochs."""
    batch_size: int = 8
    """Images a step."""
    width: float = 0.25
    """Channels, as a share of the paper's SSD300."""
    norm: bool = True
    """Batch norm after each convolution, which training from scratch needs."""
    priors: str = "voc"
    """Prior boxes: voc, coco, torchvision, nvidia, sgrvinod or caffe-voc."""
    learning_rate: float = 3e-3
    """Peak of the schedule, reached after the warm-up and left by a cosine."""
    warmup: int = 100
    """Steps of warm-up."""
    weight_decay: float = 5e-4
    """Of convolution weights."""
    augment: Literal["ssd", "flip", "none"] = "ssd"
    """ssd is the paper's: zoom-out, crop, mirror and colour."""
    seed: int = 0
    """Of the weights, the order and the augmentation."""
    workers: int = 0
    """Processes that read images; 0 reads in this one. Small sets stay in memory."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the model; auto is bfloat16 where the hardware multiplies it."""
    train_set: str = "train"
    """Set of the folder to train on."""
    validation_set: str = ""
    """Set of the folder to validate on; by default val, or else test."""
    validate_every: float = 0.0
    """Epochs between validations; 0 validates at the end."""
    save_every: float = 60.0
    """Seconds between checkpoints."""

    def run(self) -> int:
        """Trains to the end, or to the first Ctrl-C or SIGTERM."""
        from ssd_fast.cli.extras import require

        require("training", "rich", "PIL", "defusedxml", "matplotlib", "safetensors")
        from ssd_fast.engine.checkpoint import load_checkpoint
        from ssd_fast.engine.output import output_folder

        path = self.output / _CHECKPOINT
        if self.resume:
            saved = load_checkpoint(path)
            self._check_unchanged(saved["options"])
            return _Run(self, saved).run()
        if path.exists():
            raise ValueError(
                f"{self.output} holds a run already: add --resume to go on with it, or name another"
                " folder with --output"
            )
        output_folder(self.output)
        return _Run(self, None).run()

    def resumed(self) -> Train:
        """The options of the run in the output folder, on which those of the command line go.

        Raises:
            FileNotFoundError: there is no run in the folder.
            ValueError: its checkpoint is damaged, or not of `ssd-fast train`.
        """
        from ssd_fast.cli.extras import require

        require("training", "rich", "PIL", "defusedxml", "matplotlib", "safetensors")
        from ssd_fast.engine.checkpoint import load_checkpoint

        path = self.output / _CHECKPOINT
        saved = load_checkpoint(path)
        missing = {"options", "trainer", "class_names", "images", "seconds"} - saved.keys()
        if missing:
            raise ValueError(
                f"{path} is no checkpoint of `ssd-fast train`: {', '.join(sorted(missing))} missing"
            )
        unknown = saved["options"].keys() - {field.name for field in dataclasses.fields(self)}
        if unknown:
            raise ValueError(
                f"{path} is of another version of ssd_fast, with options that this one lacks:"
                f" {', '.join(sorted(unknown))}"
            )
        return Train(**saved["options"], output=self.output, resume=True)

    def _check_unchanged(self, saved: dict[str, Any]) -> None:
        """Raises ValueError for an option that a run cannot change on its way."""
        for name, own in self.saved().items():
            if name not in _FREE and own != saved.get(name, own):
                option = "--" + name.replace("_", "-")
                raise ValueError(
                    f"{option}: the run in {self.output} was started with {saved[name]}, not"
                    f" {own}; leave the option out, or start a new run in another --output"
                )

    def saved(self) -> dict[str, Any]:
        """The options that a checkpoint keeps."""
        options = dataclasses.asdict(self)
        del options["output"], options["resume"]
        return options


class _Run:
    """One start of a training run: everything between the options and the exit status."""

    def __init__(self, options: Train, saved: dict[str, Any] | None) -> None:
        from ssd_fast.cli.console import Console
        from ssd_fast.cli.datasets import open_dataset, pick_image_set, tell_problems

        self.options = options
        self.folder = options.output
        self.console = Console()
        self.dataset, problems = open_dataset(options.data, options.train_set)
        tell_problems(problems, options.train_set, self.console)
        among = ("val", "test", options.train_set)
        self.validation_set = pick_image_set(options.data, options.validation_set, among=among)
        self.validation, problems = open_dataset(
            options.data, self.validation_set, self.dataset.class_names
        )
        tell_problems(problems, self.validation_set, self.console)
        self.trainer = _make_trainer(options, self.dataset)
        self.seconds = 0.0
        if saved is not None:
            self._restore(saved)

    def run(self) -> int:
        """Trains what is left, evaluates, and writes the results."""
        from ssd_fast.engine.log import RunLog

        self._introduce()
        with RunLog(self.folder / "log.jsonl", step=self.trainer.step) as log:
            signal = self._train(log)
            rows = log.rows
        if signal is not None:
            return self._stopped(signal)
        if self.trainer.skipped:
            self.console.say(f"{self.trainer.skipped} steps were skipped: no finite loss")
        if self.trainer.dropped_boxes:
            self.console.say(f"{self.trainer.dropped_boxes} broken boxes were left out of batches")
        self._finish(self._evaluate(), rows)
        return 0

    def _introduce(self) -> None:
        model, trainer = self.trainer.model, self.trainer
        count = sum(p.numel() for p in model.parameters()) / 1e6
        self.console.say(
            f"{model.config['architecture']}, width {self.options.width}: {count:.2f} million"
            f" parameters, {len(model.priors)} boxes, on {trainer.device.type} in"
            f" {trainer.precision}"
        )
        names = ", ".join(self.dataset.class_names)
        self.console.say(
            f"{len(self.dataset)} images to train on, {len(self.validation)} to validate on;"
            f" {len(self.dataset.class_names)} classes: {names}"
        )
        if trainer.step:
            self.console.say(f"Going on after step {trainer.step} of {trainer.options.steps}")

    def _train(self, log: RunLog) -> int | None:
        """Takes the steps; returns the signal that stopped them, if one did."""
        from ssd_fast.cli.console import TrainingProgress
        from ssd_fast.engine.interruption import Interruption

        trainer, options = self.trainer, self.trainer.options
        look = self._steps_between_validations()
        saved_at = begun = time.monotonic()
        before = self.seconds
        with (
            Interruption() as interruption,
            TrainingProgress(
                self.console,
                start=trainer.step,
                steps=options.steps,
                batch_size=options.batch_size,
            ) as progress,
        ):
            for report in trainer.run():
                progress.update(report)
                log.write(
                    report.step,
                    box_loss=report.box_loss,
                    class_loss=report.class_loss,
                    learning_rate=report.learning_rate,
                )
                if report.step % look == 0 and report.step < options.steps:
                    self._save(log)  # an evaluation takes a while, and a second Ctrl-C cuts it
                    score = self._evaluate().at_50.mean
                    log.write(report.step, map_50=score)
                    self.console.say(f"step {report.step}: mAP@0.5 {score:.3f}")
                now = time.monotonic()
                self.seconds = before + now - begun
                if now - saved_at > self.options.save_every:
                    saved_at = now
                    self._save(log)
                if interruption.signal is not None:
                    break
            self._save(log)
        return interruption.signal if trainer.step < options.steps else None

    def _steps_between_validations(self) -> int:
        """How many steps `validate_every` epochs are; more than the run has for none."""
        epochs = self.options.validate_every
        if epochs <= 0:
            return self.trainer.options.steps
        return max(1, round(epochs * len(self.dataset) / self.options.batch_size))

    def _save(self, log: RunLog) -> None:
        """Writes the checkpoint, after the log that belongs to it."""
        from ssd_fast.engine.checkpoint import save_checkpoint

        log.flush()
        state = {
            "options": self.options.saved(),
            "class_names": list(self.dataset.class_names),
            "images": len(self.dataset),
            "seconds": self.seconds,
            "trainer": self.trainer.state_dict(),
        }
        save_checkpoint(self.folder / _CHECKPOINT, state)

    def _restore(self, saved: dict[str, Any]) -> None:
        """Takes over a checkpoint, if it was made with this dataset."""
        names, images = tuple(saved["class_names"]), saved["images"]
        if names != self.dataset.class_names or images != len(self.dataset):
            raise ValueError(
                f"--data: the run in {self.folder} was started on {images} images of"
                f" {', '.join(names)}; these are {len(self.dataset)} images of"
                f" {', '.join(self.dataset.class_names)}"
            )
        self.trainer.load_state_dict(saved["trainer"])
        self.seconds = saved["seconds"]

    def _stopped(self, signal: int) -> int:
        """Says how to go on; the status is what shells give for the signal."""
        self.console.say(
            f"Stopped and saved after step {self.trainer.step} of {self.trainer.options.steps}."
            f" Go on with: ssd-fast train --resume --output {self.folder}"
        )
        return 128 + signal

    def _evaluate(self) -> Evaluation:
        from ssd_fast.cli.evaluate import evaluate_shown

        model = self.trainer.averaged_model
        return evaluate_shown(model, self.validation, self.trainer.precision, self.console)

    def _finish(self, evaluation: Evaluation, rows: list[dict[str, Any]]) -> None:
        """Writes weights, numbers and curves, and prints them."""
        from ssd_fast.engine.output import write_file
        from ssd_fast.engine.plots import plot_training
        from ssd_fast.engine.weights import save_weights

        metrics = {
            **evaluation.metrics(),
            "image_set": self.validation_set,
            "steps": self.trainer.step,
            "skipped_steps": self.trainer.skipped,
            "training_seconds": round(self.seconds, 1),
            "precision": str(self.trainer.precision),
            "options": self.options.saved(),
        }
        weights = self.folder / "weights.safetensors"
        save_weights(weights, self.trainer.averaged_model, self.dataset.class_names)
        write_file(self.folder / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())
        write_file(self.folder / "training.png", plot_training(rows, evaluation))
        self.console.show_average_precision(evaluation)
        self.console.say(f"Trained in {self.seconds:.0f} s. Wrote {weights}; now look:")
        self.console.say(f"  ssd-fast predict --weights {weights} IMAGE...")
        print(f"mAP@0.5 {evaluation.at_50.mean:.3f}", flush=True)


def _make_trainer(options: Train, dataset: DetectionDataset) -> Trainer:
    """A new model for the classes of the dataset, and what trains it."""
    import torch

    from ssd_fast.engine.initialisation import quiet_heads
    from ssd_fast.engine.precision import choose_precision
    from ssd_fast.engine.trainer import Trainer, TrainingOptions
    from ssd_fast.models.ssd import ssd300_vgg16

    if not 0.0 < options.epochs < math.inf:
        raise ValueError(f"--epochs: expected more than 0, got {options.epochs}")
    if options.batch_size < 1:
        raise ValueError(f"--batch-size: expected 1 or more, got {options.batch_size}")
    steps = math.ceil(options.epochs * len(dataset) / options.batch_size)
    training = TrainingOptions(
        steps=steps if options.steps is None else options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        warmup=options.warmup,
        weight_decay=options.weight_decay,
        augment=options.augment,
        seed=options.seed,
        workers=options.workers,
    )
    torch.manual_seed(options.seed)
    model = ssd300_vgg16(
        len(dataset.class_names) + 1,
        width=options.width,
        norm=options.norm,
        priors=options.priors,
    )
    quiet_heads(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = choose_precision(device, options.precision)
    return Trainer(model.to(device), dataset, training, precision=precision)
