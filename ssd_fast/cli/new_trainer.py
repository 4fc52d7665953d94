# SPDX-License-Identifier: BSD-3-Clause
"""The trainer that the options of `ssd-fast train` ask for, and its model."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from ssd_fast.cli.train import Train

if TYPE_CHECKING:
    from ssd_fast.engine.dataset_items import DetectionDataset
    from ssd_fast.engine.distributed import World
    from ssd_fast.engine.trainer import Trainer
    from ssd_fast.models.ssd import SSD

__all__ = ["make_trainer"]

_MOST_EPOCHS = 1e6


def make_trainer(
    options: Train, dataset: DetectionDataset, world: World, config: dict[str, Any] | None
) -> Trainer:
    """A model for the classes of a dataset, and its trainer.

    Args:
        options: of the command.
        dataset: to train on.
        world: the processes that train together.
        config: of the model that a checkpoint holds; None for a new one.

    Returns:
        The trainer.

    Raises:
        ValueError: an option is out of its range.
    """
    import torch

    from ssd_fast.engine.allocator import keep_freed_memory
    from ssd_fast.engine.precision import choose_precision
    from ssd_fast.engine.trainer import Trainer, TrainingOptions
    from ssd_fast.models.ssd import SSD

    if not 0.0 < options.epochs <= _MOST_EPOCHS:
        raise ValueError(
            f"--epochs: expected more than 0 and at most {_MOST_EPOCHS:.0f}, got {options.epochs}"
        )
    if options.batch_size < 1:
        raise ValueError(f"--batch-size: expected 1 or more, got {options.batch_size}")
    # The options of the same names; the others of the command are no matter of the trainer.
    names = {field.name for field in dataclasses.fields(TrainingOptions)}
    chosen = {name: value for name, value in options.saved().items() if name in names}
    if options.steps is None:
        chosen["steps"] = math.ceil(options.epochs * len(dataset) / options.batch_size)
    training = TrainingOptions(**chosen)
    torch.manual_seed(options.seed)
    classes = len(dataset.class_names) + 1
    model = _new_model(options, classes) if config is None else SSD.from_config(config)
    precision = choose_precision(world.device, options.precision)
    if world.device.type == "cpu":
        keep_freed_memory()
    return Trainer(model.to(world.device), dataset, training, precision=precision, world=world)


def _new_model(options: Train, num_classes: int) -> SSD:
    """A detector with random weights, or with those of a backbone and heads that know nothing."""
    from ssd_fast.engine.backbone_weights import read_backbone
    from ssd_fast.engine.initialisation import quiet_heads
    from ssd_fast.models import ssd300_vgg16

    source = options.backbone_weights
    weights = read_backbone(source) if source not in ("", "none") else None
    model = ssd300_vgg16(
        num_classes,
        width=options.width,
        norm=options.norm,
        priors=options.priors,
        classification=options.classification,
        loss={"min_negatives": options.min_negatives},
        **weights.pixels if weights else {},
    )
    if weights:
        weights.load_into(model)
    quiet_heads(model)
    return model
