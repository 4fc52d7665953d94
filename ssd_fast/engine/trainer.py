# SPDX-License-Identifier: BSD-3-Clause
"""Trainer: the steps of a training run, one at a time, for a caller that shows and saves."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ssd_fast.data.augmentation import Augmentation
from ssd_fast.data.default_device import cpu_by_default
from ssd_fast.engine.batches import Batch, TrainingSamples, batches
from ssd_fast.engine.dataset_items import DetectionDataset
from ssd_fast.engine.distributed import World, alone
from ssd_fast.engine.frozen import freeze_stages
from ssd_fast.engine.nan_watch import first_offender
from ssd_fast.engine.optimizer import learning_rate_factor, make_optimizer
from ssd_fast.engine.options import TrainingOptions
from ssd_fast.engine.precision import Precision
from ssd_fast.models.ssd import SSD
from ssd_fast.targets import Targets

__all__ = ["Diverged", "StepReport", "Trainer", "TrainingOptions"]

_KEEP_BYTES = 1 << 30
_AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "ssd": {},
    "torchvision": {"recipe": "torchvision"},
    "flip": {"zoom_out": 0.0, "crop": 0.0, "colour": 0.0},
    "none": {"zoom_out": 0.0, "crop": 0.0, "colour": 0.0, "flip": 0.0},
}


class StepReport(NamedTuple):
    """What one step did.

    Attributes:
        step: steps done, this one included.
        box_loss: smooth-L1 part.
        class_loss: cross-entropy part.
        learning_rate: of this step.
        skipped: whether a loss or the gradient was not finite, so that nothing was learned.
        offender: the first image whose loss alone is not finite, by its path or number; "" if the
            step was taken, or if it is no single image's.
        broken: of this process's images, what is wrong with those that did not decode.
    """

    step: int
    box_loss: float
    class_loss: float
    learning_rate: float
    skipped: bool
    offender: str = ""
    broken: tuple[str, ...] = ()


class Diverged(ValueError):
    """The loss stayed not finite."""


class Trainer:
    """Trains a detector on a dataset.

    `run` yields after every step; between two steps `state_dict` is the whole state of the run. A
    Trainer that loads it goes on bit for bit as the first would have (on a CPU, with the same
    number of threads): the order of the images, their augmentation, the learning rate and the
    model's own random numbers are functions of the seed and the step.

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
        dropped_boxes: objects that were left out of all processes' batches: broken boxes, and
            labels of no class.
        seconds_waiting: of this process, for images.

    Raises:
        ValueError: options that the model or the device cannot follow, or a model of other classes
            than the dataset's.
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
        _check_classes(model, dataset)
        _check_shares(model, options.batch_size, self.world)
        self._frozen = freeze_stages(model, options.freeze)
        # Only the newest torch annotates this argument of Module.to.
        layout: dict[str, Any] = {"memory_format": torch.channels_last}
        self.model = model.to(**layout)
        share = _KEEP_BYTES // max(options.workers, 1)
        augmentation = Augmentation(model.transform.size, **_AUGMENTATIONS[options.augment])
        self._samples = TrainingSamples(dataset, augmentation, keep_bytes=share)
        self._optimizer = make_optimizer(
            model,
            learning_rate=options.learning_rate,
            weight_decay=options.weight_decay,
            optimizer=options.optimizer,
            momentum=options.momentum,
        )
        # float16 gradients vanish without a scale; for the other dtypes this does nothing.
        half = precision.dtype == torch.float16
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        decay = max(min(options.average, 1 - 4 / options.steps), 0.0)
        # Its count of steps is asked for at every step: on the CPU nobody waits for it.
        self._average = cpu_by_default(AveragedModel)(
            model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True
        )
        # After the copy, which is saved and need not know how many processes trained it.
        _count_together(model, self.world)
        self._network = self.world.parallel(model)
        self._compile()
        # A step that is skipped must not leave its NaN in the running statistics either.
        self._buffers = [b for b in model.buffers() if b.is_floating_point()]
        self.step = 0
        self.skipped = 0
        self.dropped_boxes = 0
        self.seconds_waiting = 0.0
        self._skipped_in_a_row = 0

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
        loader = self._loader()
        while True:
            begun = time.monotonic()
            batch = cpu_by_default(next)(loader, None)
            self.seconds_waiting += time.monotonic() - begun
            if batch is None:
                return
            report = self._train(batch)
            if self._skipped_in_a_row == self.options.max_skipped:
                image = f"; the first image without one was {report.offender}"
                raise Diverged(
                    f"the loss was not finite in {self._skipped_in_a_row} steps in a row, up to"
                    f" step {self.step}{image if report.offender else ''}; lower the learning"
                    " rate, or check the boxes"
                )
            yield report

    @cpu_by_default
    def _loader(self) -> Iterator[Batch]:
        """The batches that are left."""
        return iter(
            batches(
                self._samples,
                batch_size=self.options.batch_size,
                seed=self.options.seed,
                start=self.step,
                stop=self.options.steps,
                share=self.world.share(self.options.batch_size),
                workers=self.options.workers,
                pin_memory=self.device.type == "cuda",
            )
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, apart from the options and the dataset."""
        return {
            "step": self.step,
            "skipped": self.skipped,
            "skipped_in_a_row": self._skipped_in_a_row,
            "dropped_boxes": self.dropped_boxes,
            "seconds_waiting": self.seconds_waiting,
            "model": self.model.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over the state of another Trainer with the same model and options.

        Args:
            state: from `state_dict`.
        """
        self.step = state["step"]
        self.skipped = state["skipped"]
        self.dropped_boxes = state["dropped_boxes"]
        # Older ones do not say these two.
        self.seconds_waiting = state.get("seconds_waiting", 0.0)
        self._skipped_in_a_row = state.get("skipped_in_a_row", 0)
        self.model.load_state_dict(state["model"])
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])

    def _compile(self) -> None:
        """Compiles the model with its loss, if the options ask for it."""
        wanted = self.options.compile
        if wanted == "cuda-graphs" and self.device.type != "cuda":
            raise ValueError(
                f"compile: CUDA graphs need a GPU, not {self.device.type}; take 'default'"
            )
        if wanted != "no":
            mode = "reduce-overhead" if wanted == "cuda-graphs" else None
            self._network.compile(mode=mode)

    def _set_learning_rate(self) -> float:
        """The schedule is a function of the step alone, so it has no state to save."""
        rate = self.options.learning_rate * learning_rate_factor(self.step, self.options)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _train(self, batch: Batch) -> StepReport:
        """One step: forward, backward, update; or nothing, if the loss is not finite."""
        self._network.train()
        for stage in self._frozen:
            stage.eval()
        images = batch.images.to(self.device, memory_format=torch.channels_last, non_blocking=True)
        targets = batch.targets.to(self.device, non_blocking=True)
        if self.options.compile != "no":
            targets = _padded(targets)
        before = [buffer.clone() for buffer in self._buffers]
        self._optimizer.zero_grad()
        with self._random_numbers():
            losses = self._losses(images, targets)
            self._scaler.scale(sum(losses.values(), torch.zeros((), device=self.device))).backward()
        self._scaler.unscale_(self._optimizer)
        norm = clip_grad_norm_(self.model.parameters(), self.options.clip_norm)
        box_loss, class_loss = losses["bbox_regression"], losses["classification"]
        # Of all processes, so that they agree on whether to take the step.
        broken = norm.new_full((), batch.targets.dropped)  # without a wait for a GPU
        *values, dropped = self.world.mean(
            torch.stack([box_loss.detach(), class_loss.detach(), norm.detach(), broken])
        ).tolist()
        skipped = not all(map(math.isfinite, values))
        learning_rate = self._set_learning_rate()
        offender = ""
        if skipped:
            offender = self._skip(batch, images, targets, math.isfinite(values[0] + values[1]))
            for buffer, old in zip(self._buffers, before, strict=True):
                buffer.copy_(old)
        else:
            self._scaler.step(self._optimizer)
            self._average.update_parameters(self.model)
            self._skipped_in_a_row = 0
        self._scaler.update()
        self.step += 1
        self.dropped_boxes += round(dropped * self.world.size)
        return StepReport(
            self.step, values[0], values[1], learning_rate, skipped, offender, batch.broken
        )

    def _losses(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        with self.precision.autocast(self.device):
            losses: dict[str, Tensor] = self._network(images, targets)
        return losses

    def _losses_alone(self, images: Tensor, targets: Targets) -> dict[str, Tensor]:
        """The losses without a word to the other processes, which may not be listening."""
        options = self.model.loss.options
        normalizer, options["normalizer"] = options["normalizer"], "positives"
        try:
            with self.precision.autocast(self.device), alone(self.model):
                # `forward` itself: past DistributedDataParallel and what was compiled.
                losses: Any = self.model.forward(images, targets)
        finally:
            options["normalizer"] = normalizer
        return cast("dict[str, Tensor]", losses)

    def _skip(self, batch: Batch, images: Tensor, targets: Targets, finite_loss: bool) -> str:
        """Counts a step without an update, and finds out whose fault it is."""
        if finite_loss and self._scaler.is_enabled() and self._scaler.get_scale() >= 1.0:
            return ""  # how the scale of float16's gradients is found
        self.skipped += 1
        self._skipped_in_a_row += 1
        index = first_offender(self._losses_alone, images, targets)
        mine = [] if index is None else [self._name(batch.indices[index])]
        return next((name for part in self.world.gather(mine) for name in part), "")

    def _name(self, index: int) -> str:
        """An image by its path, if the dataset has paths."""
        paths = getattr(self._samples.dataset, "paths", None)
        return f"image {index}" if paths is None else str(paths[index])

    @contextmanager
    def _random_numbers(self) -> Iterator[None]:
        """Dropout and the like draw what the seed, the step and the process say: no state to save.

        The caller's generators are as they were.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        numbers = f"{self.options.seed} {self.step} {self.world.rank}"
        seed = random.Random(numbers).getrandbits(63)
        with torch.random.fork_rng(devices):
            # `torch.manual_seed` would seed every GPU, of which one at most is put back.
            torch.default_generator.manual_seed(seed)
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            yield


def _padded(targets: Targets) -> Targets:
    """The same objects in one of few sizes, so that few graphs are compiled or recorded."""
    count = targets.boxes.shape[0]
    rows = max(16, 1 << (count - 1).bit_length()) - count
    return targets._replace(
        boxes=torch.nn.functional.pad(targets.boxes, (0, 0, 0, rows)),
        labels=torch.nn.functional.pad(targets.labels, (0, rows)),
    )


def _check_classes(model: SSD, dataset: DetectionDataset) -> None:
    """Raises ValueError if the loss would pass by some of the dataset's labels without a word."""
    names = len(dataset.class_names)
    if model.num_classes != names + 1:
        raise ValueError(
            f"model: expected num_classes={names + 1}, the background and the dataset's {names}"
            f" classes, got {model.num_classes}"
        )
    background = model.loss.options["background_index"]
    if background not in (0, None):
        raise ValueError(
            f"model: expected the background as class 0, for the labels of a dataset begin with 1,"
            f" got background_index={background}"
        )


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
