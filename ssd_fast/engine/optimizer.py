# SPDX-License-Identifier: BSD-3-Clause
"""AdamW with warm-up and a cosine, and no decay on what is not a weight matrix."""

from __future__ import annotations

import math

import torch
from torch import nn

__all__ = ["cosine_schedule", "make_optimizer"]


def make_optimizer(
    model: nn.Module, *, learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, ICLR 2019); biases, norms and scales do not decay.

    Args:
        model: whose trainable parameters are taken.
        learning_rate: the peak of the schedule.
        weight_decay: of convolution and linear weights.

    Returns:
        The optimizer, fused into one kernel.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=learning_rate, fused=True)


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
