# SPDX-License-Identifier: BSD-3-Clause
"""TrainingOptions: every number that a training run depends on, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["TrainingOptions"]


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
        steps: of the whole run.
        batch_size: images a step, of all processes together.
        optimizer: "adamw", or "sgd" with momentum.
        learning_rate: peak of the schedule.
        momentum: of SGD.
        schedule: after the warm-up, "cosine" down to zero or "multistep".
        milestones: where "multistep" lowers the learning rate, as shares of the run.
        gamma: what it is multiplied by there.
        warmup: steps of linear rise, at most a quarter of the run.
        weight_decay: of convolution weights.
        clip_norm: limit of the gradient's norm; inf for none.
        average: decay of the moving average of the weights, which is what is evaluated and saved;
            0 takes the weights as they are. At most 1 - 4 / steps, so that at the end of a short
            run its first weights count for no more than exp(-4), 2 %.
        freeze: stages of the backbone, from the image on, that keep their weights.
        augment: "ssd" for the paper's zoom-out, crop, mirror and colour by Caffe's numbers,
            "torchvision" for the same by torchvision's, "flip" to mirror half of the images, or
            "none".
        compile: "no"; "default" for `torch.compile` of the model and its loss; "cuda-graphs" for
            that with CUDA graphs.
        seed: of the order, the augmentation and the model's own random numbers.
        workers: processes that read images; 0 reads in the training process.
        max_skipped: so many steps in a row without a finite loss end the run.
    """

    steps: int
    batch_size: int = 8
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 3e-3
    momentum: float = 0.9
    schedule: Literal["cosine", "multistep"] = "cosine"
    milestones: tuple[float, ...] = (2 / 3, 5 / 6)
    gamma: float = 0.1
    warmup: int = 50
    weight_decay: float = 5e-4
    clip_norm: float = 10.0
    average: float = 0.99
    freeze: int = 0
    augment: Literal["ssd", "torchvision", "flip", "none"] = "ssd"
    compile: Literal["no", "default", "cuda-graphs"] = "no"
    seed: int = 0
    workers: int = 0
    max_skipped: int = 10

    def __post_init__(self) -> None:
        """Checks every number once, before anything is read or built."""
        limits = {
            "steps": self.steps >= 1,
            "batch_size": self.batch_size >= 1,
            "optimizer": self.optimizer in ("adamw", "sgd"),
            "learning_rate": 0 < self.learning_rate < math.inf,
            "momentum": 0 <= self.momentum < 1,
            "schedule": self.schedule in ("cosine", "multistep"),
            "milestones": all(0 < share <= 1 for share in self.milestones),
            "gamma": 0 < self.gamma <= 1,
            "warmup": self.warmup >= 0,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "clip_norm": self.clip_norm > 0,
            "average": 0 <= self.average < 1,
            "freeze": self.freeze >= 0,
            "augment": self.augment in ("ssd", "torchvision", "flip", "none"),
            "compile": self.compile in ("no", "default", "cuda-graphs"),
            "workers": self.workers >= 0,
            "max_skipped": self.max_skipped >= 1,
        }
        for name, good in limits.items():
            if not good:
                raise ValueError(f"{name}: {getattr(self, name)} is out of range")
