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
        words = {
            "optimizer": ("adamw", "sgd"),
            "schedule": ("cosine", "multistep"),
            "augment": ("ssd", "torchvision", "flip", "none"),
            "compile": ("no", "default", "cuda-graphs"),
        }
        for name, known in words.items():
            self._check(name, getattr(self, name) in known, f"one of {', '.join(known)}")
        for name in ("steps", "batch_size", "max_skipped"):
            self._check(name, getattr(self, name) >= 1, "1 or more")
        for name in ("warmup", "freeze", "workers"):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        for name in ("momentum", "average"):
            self._check(name, 0 <= getattr(self, name) < 1, "0 or more and less than 1")
        rate, decay = self.learning_rate, self.weight_decay
        self._check("learning_rate", 0 < rate < math.inf, "a finite number above 0")
        self._check("weight_decay", 0 <= decay < math.inf, "a finite number, 0 or more")
        self._check("clip_norm", self.clip_norm > 0, "more than 0; inf for no limit")
        self._check("gamma", 0 < self.gamma <= 1, "more than 0 and at most 1")
        shares = all(0 < share <= 1 for share in self.milestones)
        self._check("milestones", shares, "shares of the run, more than 0 and at most 1")

    def _check(self, name: str, good: bool, expected: str) -> None:
        if not good:
            raise ValueError(f"{name}: expected {expected}, got {getattr(self, name)!r}")
