# SPDX-License-Identifier: BSD-3-Clause
"""What `ssd-fast train` does: steps, checkpoints, validations and results."""

from __future__ import annotations

import json
import math
import signal
import time
from typing import TYPE_CHECKING, Any

from ssd_fast.cli.train import CHECKPOINT, Train

if TYPE_CHECKING:
    from torch import Tensor

    from ssd_fast.engine.dataset_items import DetectionDataset
    from ssd_fast.engine.distributed import World
    from ssd_fast.engine.log import RunLog
    from ssd_fast.engine.trainer import StepReport

__all__ = ["TrainingRun"]

_COLUMNS = ("box_loss", "class_loss", "learning_rate", "map_50")


class TrainingRun:
    """One start of a training run: everything between the options and the exit status.

    Args:
        options: of the command.
        saved: the checkpoint to go on from, or None.
        world: the processes that train together; the first one speaks and writes.
    """

    def __init__(self, options: Train, saved: dict[str, Any] | None, world: World) -> None:
        from ssd_fast.cli.console import Console
        from ssd_fast.cli.datasets import describe, open_dataset, open_validation, tell_problems
        from ssd_fast.cli.new_trainer import make_trainer

        self.options = options
        self.folder = options.output
        self.world = world
        self.console = Console(quiet=not world.is_main)
        self.console.say(f"Data: {describe(options.data)}")
        self.dataset, problems = open_dataset(
            options.data, options.train_set, difficult=options.difficult
        )
        tell_problems(problems, options.train_set, self.console)
        self.empty = _count_empty(self.dataset, options.train_set)
        self.validation_set, self.validation, problems, self.shared = open_validation(
            options.data, options.validation_set, self.dataset, options.train_set
        )
        tell_problems(problems, self.validation_set, self.console)
        if saved is not None:
            self._check_data(saved)
        config = saved["model"] if saved is not None else None
        self.trainer = make_trainer(options, self.dataset, world, config)
        self.seconds = 0.0
        self.broken: set[str] = set()
        self.decoded = False  # whether the validation images that do not decode were left out
        if saved is not None:
            self.trainer.load_state_dict(saved["trainer"])
            self.seconds = saved["seconds"]

    def run(self) -> int:
        """Trains what is left, evaluates, and writes the results."""
        from ssd_fast.engine.log import RunLog, open_board

        self._introduce()
        step = self.trainer.step
        folder = self.folder if self.world.is_main else None
        wanted = folder is not None and self.options.tensorboard
        board = open_board(self.folder / "tensorboard", step=step) if wanted else None
        with RunLog(folder, step=step, columns=_COLUMNS, board=board) as log:
            stopped_by = self._train(log)
            self._tell_losses()
            if stopped_by is not None:
                return self._stopped(stopped_by)
            found = self._detect()
            if found is not None:
                self._draw_examples()
                self._finish(*found, log)
        return 0

    def _introduce(self) -> None:
        model, trainer = self.trainer.model, self.trainer
        count = sum(p.numel() for p in model.parameters()) / 1e6
        self.console.say(
            f"{model.config['architecture']}, width {self.options.width}: {count:.2f} million"
            f" parameters, {len(model.priors)} boxes, on {trainer.device.type} in"
            f" {trainer.precision}"
        )
        if self.world.size > 1:
            self.console.say(
                f"{self.world.size} processes share the {trainer.options.batch_size} images of a"
                " step"
            )
        names = ", ".join(self.dataset.class_names)
        self.console.say(
            f"{len(self.dataset)} images to train on, {len(self.validation)} to validate on;"
            f" {len(self.dataset.class_names)} classes: {names}"
        )
        if self.empty:
            use = _use_of_empty(self.options)
            self.console.say(f"{self.empty} of the images to train on hold no object: {use}")
        if self.shared:
            self.console.say(
                f"{self.shared} of {len(self.validation)} validation images are training images:"
                " the mAP is no measure of new images"
            )
        if trainer.step:
            self.console.say(f"Going on after step {trainer.step} of {trainer.options.steps}")

    def _train(self, log: RunLog) -> int | None:
        """Takes the steps; returns the signal that stopped them, if one did."""
        from ssd_fast.cli.console import TrainingProgress
        from ssd_fast.engine.interruption import Interruption

        trainer, options = self.trainer, self.trainer.options
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
            if self.world.any(self.world.is_main and self._misses_validation(log)):
                self._validate(log)
            for report in trainer.run():
                progress.update(report)
                self._note(report, log)
                if self._validates_after(report.step):
                    self._save(log)  # an evaluation takes a while, and a second Ctrl-C cuts it
                    self._validate(log)
                now = time.monotonic()
                self.seconds = before + now - begun
                if now - saved_at > self.options.save_every:
                    saved_at = now
                    self._save(log)
                # The signal reaches one process, or each at another step: they stop together.
                if self.world.any(interruption.signal is not None):
                    break
            self._save(log)
            stops = self.world.any(interruption.signal is not None)
        return (interruption.signal or signal.SIGTERM) if stops else None

    def _note(self, report: StepReport, log: RunLog) -> None:
        """Logs a step, and says what was wrong in it."""
        log.write(
            report.step,
            box_loss=report.box_loss,
            class_loss=report.class_loss,
            learning_rate=report.learning_rate,
        )
        if report.skipped and report.offender:
            self.console.say(
                f"step {report.step}: no finite loss, nothing learned; first because of"
                f" {report.offender}"
            )
        for line in sorted(set(report.broken) - self.broken):
            self.console.say(f"Left out, because it does not decode: {line}")
        self.broken.update(report.broken)

    def _tell_losses(self) -> None:
        """Says what all processes left out."""
        if self.trainer.skipped:
            self.console.say(f"{self.trainer.skipped} steps were skipped: no finite loss")
        if self.trainer.dropped_boxes:
            self.console.say(f"{self.trainer.dropped_boxes} broken boxes were left out of batches")
        files = {line for part in self.world.gather(sorted(self.broken)) for line in part}
        if files:
            others = sorted(files - self.broken)
            self.console.say(f"Broken images, whose places others took: {len(files)}")
            for line in others:
                self.console.say(f"  {line}")

    def _draw_examples(self) -> None:
        """Pictures of the first validation images with what the model finds now."""
        from ssd_fast.engine.example_sheet import draw_examples
        from ssd_fast.engine.output import write_file

        step, precision = self.trainer.step, self.trainer.precision
        sheet = draw_examples(
            self.trainer.averaged_model,
            self.validation,
            precision=precision,
            caption=f"step {step}",
        )
        if sheet is not None:
            folder = self.folder / "examples"
            folder.mkdir(exist_ok=True)
            write_file(folder / f"step-{step:06d}.png", sheet)

    def _validates_after(self, step: int) -> bool:
        """Whether `validate_every` epochs end with this step, and more steps follow."""
        epochs = self.options.validate_every
        if epochs <= 0:
            return False
        every = max(1, round(epochs * len(self.dataset) / self.options.batch_size))
        return step % every == 0 and step < self.trainer.options.steps

    def _misses_validation(self, log: RunLog) -> bool:
        """Whether the last step done is to be followed by a validation that the log lacks.

        The run was killed in it, or did not validate so often.
        """
        step = self.trainer.step
        return step > 0 and self._validates_after(step) and not _has_score(log, step)

    def _validate(self, log: RunLog) -> None:
        """Logs and says how good the averaged model is now."""
        from ssd_fast.engine.evaluation import score_detections

        found = self._detect()
        if found is None:
            return
        step = self.trainer.step
        score = score_detections(*found, self.dataset.class_names).at_50.mean
        log.write(step, map_50=score)
        self.console.say(f"step {step}: mAP@0.5 {score:.3f}")
        self._draw_examples()

    def _save(self, log: RunLog) -> None:
        """Writes the checkpoint, after the log that belongs to it."""
        if not self.world.is_main:
            return
        from ssd_fast.engine.checkpoint import save_checkpoint

        log.flush()
        state = {
            "options": self.options.saved(),
            "launch": self.world.launch,
            "class_names": list(self.dataset.class_names),
            "images": len(self.dataset),
            "seconds": self.seconds,
            "model": self.trainer.averaged_model.config,
            "trainer": self.trainer.state_dict(),
        }
        save_checkpoint(self.folder / CHECKPOINT, state)

    def _check_data(self, saved: dict[str, Any]) -> None:
        """Raises ValueError for a checkpoint that was made with another dataset."""
        names, images = tuple(saved["class_names"]), saved["images"]
        if names != self.dataset.class_names or images != len(self.dataset):
            raise ValueError(
                f"--data: the run in {self.folder} was started on {images} images of"
                f" {', '.join(names)}; these are {len(self.dataset)} images of"
                f" {', '.join(self.dataset.class_names)}"
            )

    def _stopped(self, number: int) -> int:
        """Says how to go on; the status is what shells give for the signal."""
        self.console.say(
            f"Stopped and saved after step {self.trainer.step} of {self.trainer.options.steps}."
            f" Go on with: ssd-fast train --resume --output {self.folder}"
        )
        return 128 + number

    def _detect(self) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]] | None:
        """The averaged model on the validation images, of which each process takes a share.

        Returns:
            Detections and targets, in the main process.
        """
        from ssd_fast.cli.evaluate import detect_shown
        from ssd_fast.engine.distributed_evaluation import decodable, detect_together

        if not self.decoded:
            self.validation, broken = decodable(self.validation, self.world)
            self.decoded = True
            for line in broken:
                self.console.say(f"Left out of validation, because it does not decode: {line}")
        model, precision = self.trainer.averaged_model, self.trainer.precision
        if self.world.size == 1:
            return detect_shown(model, self.validation, precision, self.console)
        return detect_together(model, self.validation, self.world, precision=precision)

    def _finish(
        self,
        detections: list[dict[str, Tensor]],
        targets: list[dict[str, Tensor]],
        log: RunLog,
    ) -> None:
        """Writes weights, numbers, curves and the report of `eval`, and prints them."""
        from ssd_fast.cli.evaluate import report_shown
        from ssd_fast.engine.evaluation import score_detections
        from ssd_fast.engine.output import write_file
        from ssd_fast.engine.plots import plot_training
        from ssd_fast.engine.weights import save_weights

        evaluation = score_detections(detections, targets, self.dataset.class_names)
        if not _has_score(log, self.trainer.step):  # the run may have come so far before
            log.write(self.trainer.step, map_50=evaluation.at_50.mean)
        metrics = {
            **evaluation.metrics(),
            "image_set": self.validation_set,
            "images_trained_on": self.shared,
            "steps": self.trainer.step,
            "skipped_steps": self.trainer.skipped,
            "training_seconds": round(self.seconds, 1),
            "waiting_for_images_seconds": round(self.trainer.seconds_waiting, 1),
            "precision": str(self.trainer.precision),
            "options": {
                name: str(value) if value == math.inf else value  # JSON has no infinity
                for name, value in self.options.saved().items()
            },
        }
        weights = self.folder / "weights.safetensors"
        save_weights(weights, self.trainer.averaged_model, self.dataset.class_names)
        write_file(self.folder / "metrics.json", (json.dumps(metrics, indent=2) + "\n").encode())
        write_file(self.folder / "training.png", plot_training(log.rows, evaluation))
        self.console.show_average_precision(evaluation)
        source = {
            "weights": str(weights),
            "data": self.options.data,
            "image_set": self.validation_set,
        }
        folder, dataset = self.folder / "report", self.validation
        report_shown(folder, source, dataset, detections, targets, evaluation, self.console)
        self.console.say(f"Trained in {self.seconds:.0f} s. Wrote {weights}; now look:")
        self.console.say(f"  ssd-fast predict --weights {weights} IMAGE...")
        print(f"mAP@0.5 {evaluation.at_50.mean:.3f}", flush=True)


def _has_score(log: RunLog, step: int) -> bool:
    """Whether the model was validated after a step."""
    return any(row["step"] == step and "map_50" in row for row in log.rows)


def _count_empty(dataset: DetectionDataset, train_set: str) -> int:
    """How many images have no object to learn; raises ValueError if none has one."""
    target = getattr(dataset, "target", None)
    if target is None:  # the generated scenes, which all have
        return 0
    targets = map(target, range(len(dataset)))
    empty = sum(bool(target["ignore"].all()) for target in targets)
    if empty == len(dataset):
        raise ValueError(
            f"--data: none of the {empty} images of {train_set} has an object to learn from"
        )
    return empty


def _use_of_empty(options: Train) -> str:
    """What an image without objects trains."""
    if options.classification == "focal":
        return "train their background"
    if options.min_negatives:
        return f"train {options.min_negatives} background boxes each"
    return "train nothing; --min-negatives 3 trains their background, too"
