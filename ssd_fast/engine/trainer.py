# SPDX-License-Identifier: BSD-3-Clause
"""Trainer: the steps of a training run, one at a time, for a caller that shows and saves."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ssd_fast.data.augmentation import Augmentation
from ssd_fast.engine.batches import Batch, DetectionDataset, TrainingSamples, batches
from ssd_fast.engine.distributed import World
from ssd_fast.engine.optimizer import cosine_schedule, make_optimizer
from ssd_fast.engine.precision import Precision
from ssd_fast.models.ssd import SSD

__all__ = ["Diverged", "StepReport", "Trainer", "TrainingOptions"]

_KEEP_BYTES = 1 << 30
_AUGMENTATIONS: dict[str, dict[str, float]] = {
    "ssd": {},
    "flip": {"zoom_out": 0.0, "crop": 0.0, "colour": 0.0},
    "none": {"zoom_out": 0.0, "crop": 0.0, "colour": 0.0, "flip": 0.0},
}


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
        steps: of the whole run.
        batch_size: images a step, of all processes together.
        learning_rate: peak of the schedule.
        warmup: steps of linear rise before the cosine.
        weight_decay: of convolution weights.
        clip_norm: limit of the gradient's norm.
        average: decay of the moving average of the weights, which is what is evaluated and saved.
        augment: "ssd" for the paper's zoom-out, crop, mirror and colour, "flip" to mirror half of
            the images, or "none".
        seed: of the order and the augmentation.
        workers: processes that read images; 0 reads in the training process.
        max_skipped: so many steps in a row without a finite loss end the run.
    """

    steps: int
    batch_size: int = 8
    learning_rate: float = 3e-3
    warmup: int = 50
    weight_decay: float = 5e-4
    clip_norm: float = 10.0
    average: float = 0.99
    augment: Literal["ssd", "flip", "none"] = "ssd"
    seed: int = 0
    workers: int = 0
    max_skipped: int = 10

    def __post_init__(self) -> None:
        """Checks every number once, before anything is read or built."""
        limits = {
            "steps": self.steps >= 1,
            "batch_size": self.batch_size >= 1,
            "learning_rate": 0 < self.learning_rate < math.inf,
            "warmup": self.warmup >= 0,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "clip_norm": self.clip_norm > 0,
            "average": 0 <= self.average < 1,
            "workers": self.workers >= 0,
            "max_skipped": self.max_skipped >= 1,
            "augment": self.augment in _AUGMENTATIONS,
        }
        for name, good in limits.items():
            if not good:
                raise ValueError(f"{name}: {getattr(self, name)} is out of range")


class StepReport(NamedTuple):
    """What one step did.

    Attributes:
        step: steps done, this one included.
        box_loss: smooth-L1 part.
        class_loss: cross-entropy part.
        learning_rate: of this step.
        skipped: whether a loss or the gradient was not finite, so that nothing was learned.
    """

    step: int
    box_loss: float
    class_loss: float
    learning_rate: float
    skipped: bool


class Diverged(ValueError):
    """The loss stayed not finite."""


class Trainer:
    """Trains a detector on a dataset.

    `run` yields after every step; between two steps `state_dict` is the whole state of the run. A
    Trainer that loads it goes on bit for bit as the first would have (on a CPU, with the same
    number of threads).

    Several processes, each with a Trainer of the same arguments and its own `world`, train as one
    would on the same batches: the positives of all are counted together, and gradients are
    averaged. Batch norm on the CPU is the exception (`World.parallel`).

    Args:
        model: trained in place, on its device.
        dataset: uint8 images with boxes in pixels.
        options: how.
        precision: arithmetic of the model.
        world: the processes that train together; None for this one alone.

    Attributes:
        step: steps done.
        skipped: steps whose loss was not finite.
        dropped_boxes: broken boxes that were left out of batches.
    """

    def __init__(
        self,
        model: SSD,
        dataset: DetectionDataset,
        options: TrainingOptions,
        *,
        precision: Precision,
        world: World | None = None,
    ) -> None:
        self.options = options
        self.precision = precision
        self.device = next(model.parameters()).device
        self.world = world or World(self.device)
        _check_shares(model, options.batch_size, self.world)
        # Only the newest torch annotates this argument of Module.to.
        layout: dict[str, Any] = {"memory_format": torch.channels_last}
        self.model = model.to(**layout)
        share = _KEEP_BYTES // max(options.workers, 1)
        augmentation = Augmentation(model.transform.size, **_AUGMENTATIONS[options.augment])
        self._samples = TrainingSamples(dataset, augmentation, keep_bytes=share)
        self._optimizer = make_optimizer(
            model, learning_rate=options.learning_rate, weight_decay=options.weight_decay
        )
        self._average = AveragedModel(
            model, multi_avg_fn=get_ema_multi_avg_fn(options.average), use_buffers=True
        )
        # After the copy, which is saved and need not know how many processes trained it.
        _count_together(model, self.world)
        self._network = self.world.parallel(model)
        # A step that is skipped must not leave its NaN in the running statistics either.
        self._buffers = [b for b in model.buffers() if b.is_floating_point()]
        self.step = 0
        self.skipped = 0
        self.dropped_boxes = 0

    @property
    def averaged_model(self) -> SSD:
        """The moving average of the weights: the detector to evaluate and keep."""
        return cast(SSD, self._average.module)

    def run(self) -> Iterator[StepReport]:
        """Trains to the last step of the options.

        Yields:
            A report after every step.

        Raises:
            Diverged: too many steps in a row had no finite loss.
        """
        loader = batches(
            self._samples,
            batch_size=self.options.batch_size,
            seed=self.options.seed,
            start=self.step,
            stop=self.options.steps,
            share=self.world.share(self.options.batch_size),
            workers=self.options.workers,
            pin_memory=self.device.type == "cuda",
        )
        in_a_row = 0
        for batch in loader:
            report = self._train(batch)
            in_a_row = in_a_row + 1 if report.skipped else 0
            if in_a_row == self.options.max_skipped:
                raise Diverged(
                    f"the loss was not finite in {in_a_row} steps in a row, up to step {self.step};"
                    " lower the learning rate, or check the boxes"
                )
            yield report

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, apart from the options and the dataset."""
        return {
            "step": self.step,
            "skipped": self.skipped,
            "dropped_boxes": self.dropped_boxes,
            "model": self.model.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over the state of another Trainer with the same model and options.

        Args:
            state: from `state_dict`.
        """
        self.step = state["step"]
        self.skipped = state["skipped"]
        self.dropped_boxes = state["dropped_boxes"]
        self.model.load_state_dict(state["model"])
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])

    def _set_learning_rate(self) -> float:
        """The schedule is a function of the step alone, so it has no state to save."""
        options = self.options
        factor = cosine_schedule(self.step, steps=options.steps, warmup=options.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = options.learning_rate * factor
        return options.learning_rate * factor

    def _train(self, batch: Batch) -> StepReport:
        """One step: forward, backward, update; or nothing, if the loss is not finite."""
        self.model.train()
        images = batch.images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        targets = batch.targets.to(self.device, non_blocking=True)
        before = [buffer.clone() for buffer in self._buffers]
        with self.precision.autocast(self.device):
            losses: dict[str, Tensor] = self._network(images, targets)
        box_loss, class_loss = losses["bbox_regression"], losses["classification"]
        self._optimizer.zero_grad()
        (box_loss + class_loss).backward()
        norm = clip_grad_norm_(self.model.parameters(), self.options.clip_norm)
        # Of all processes, so that they agree on whether to take the step.
        values = self.world.mean(
            torch.stack([box_loss.detach(), class_loss.detach(), norm.detach()])
        ).tolist()
        skipped = not all(map(math.isfinite, values))
        learning_rate = self._set_learning_rate()
        if skipped:
            self.skipped += 1
            for buffer, old in zip(self._buffers, before, strict=True):
                buffer.copy_(old)
        else:
            self._optimizer.step()
            self._average.update_parameters(self.model)
        self.step += 1
        self.dropped_boxes += batch.targets.dropped
        return StepReport(self.step, values[0], values[1], learning_rate, skipped)


def _check_shares(model: SSD, batch_size: int, world: World) -> None:
    """Raises ValueError if a process would get too few images."""
    smallest = batch_size // world.size
    if smallest < 1:
        raise ValueError(
            f"batch_size: {batch_size} images a step do not go round {world.size} processes; take"
            f" {world.size} or more"
        )
    norms = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    if smallest == 1 and norms and not (world.size > 1 and world.device.type == "cuda"):
        least = "2 or more" if world.size == 1 else f"{2 * world.size} or more"
        raise ValueError(
            f"batch_size: batch norm cannot learn from one image; take {least}, or norm=False"
        )


def _count_together(model: SSD, world: World) -> None:
    """Makes the mean of the processes' gradients that of one process on the whole batch."""
    if world.size == 1:
        return
    normalizer = model.loss.options["normalizer"]
    if normalizer not in ("positives", "world"):
        raise ValueError(
            f"normalizer: {normalizer!r} depends on how many processes train; take 'positives'"
        )
    model.loss.options["normalizer"] = "world"
