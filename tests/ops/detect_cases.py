# SPDX-License-Identifier: BSD-3-Clause
"""Heads of a detector on three small maps: for tests of `detect`."""

import torch

from ssd_fast.testing import random_boxes

CELLS = [(4, 5, 5), (6, 3, 3), (4, 1, 1)]  # (A, H, W) of each level
P = sum(a * h * w for a, h, w in CELLS)


def heads(generator, *, batch=2, priors=P, classes=4, kind="trained", dtype=torch.float32):
    """Deltas (B, P, 4), logits (B, P, C) and priors (P, 4).

    "trained": background nearly everywhere, and a few rows sure of a class; "untrained": every
    class as likely as the other; "ties": few distinct logits, so that many scores are equal.
    """
    deltas = torch.randn(batch, priors, 4, generator=generator)
    logits = torch.randn(batch, priors, classes, generator=generator)
    if kind == "trained":
        logits[..., 0] += 8
        sure = torch.rand(batch, priors, generator=generator) < 0.2
        label = torch.randint(0, classes, (batch, priors), generator=generator)
        logits.scatter_add_(2, label.unsqueeze(2), sure.unsqueeze(2) * 12.0)
    if kind == "ties":
        logits = logits.round()
    return deltas.to(dtype), logits.to(dtype), random_boxes(priors, generator, smallest=0.1)
