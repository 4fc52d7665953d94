# SPDX-License-Identifier: BSD-3-Clause
"""The optimizer, without decay on what is not a weight matrix, and the learning rate's schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from ssd_fast.engine.options import TrainingOptions

__all__ = ["cosine_schedule", "learning_rate_factor", "make_optimizer", "multistep_schedule"]


def make_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    optimizer: Literal["adamw", "sgd"] = "adamw",
    momentum: float = 0.9,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, ICLR 2019) or SGD; biases, norms and scales do not decay.

    Args:
        model: whose trainable parameters are taken.
        learning_rate: the peak of the schedule.
        weight_decay: of convolution and linear weights.
        optimizer: "adamw" or "sgd".
        momentum: of SGD.

    Returns:
        The optimizer, fused into one kernel.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if optimizer == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, momentum=momentum, fused=True)
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


def learning_rate_factor(step: int, options: TrainingOptions) -> float:
    """What the learning rate is multiplied by: a function of the step, without a state to save.

    Args:
        step: from 0.
        options: of the run.

    Returns:
        A number in (0, 1].
    """
    warmup = min(options.warmup, options.steps // 4)  # or a short run would never see its peak
    if options.schedule == "cosine":
        return cosine_schedule(step, steps=options.steps, warmup=warmup)
    milestones = [share * options.steps for share in options.milestones]
    return multistep_schedule(step, milestones=milestones, gamma=options.gamma, warmup=warmup)


def cosine_schedule(step: int, *, steps: int, warmup: int) -> float:
    """Factor of the learning rate: a linear rise, then half a cosine down to zero.

    Args:
        step: from 0.
        steps: of the run.
        warmup: steps of the rise.

    Returns:
        A number in (0, 1] for every step of the run.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = (step - warmup) / max(steps - warmup, 1)
    return 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def multistep_schedule(
    step: int, *, milestones: Sequence[float], gamma: float, warmup: int
) -> float:
    """Factor of the learning rate: a linear rise, then lower by `gamma` from each milestone on.

    Args:
        step: from 0.
        milestones: steps, in any order.
        gamma: of each milestone.
        warmup: steps of the rise.

    Returns:
        A number in (0, 1].
    """
    rise = min((step + 1) / (warmup + 1), 1.0)
    # A share such as 2/3 of the run need not be a whole step by rounding.
    return rise * gamma ** sum(step >= round(milestone) for milestone in milestones)
