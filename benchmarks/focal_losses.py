# SPDX-License-Identifier: BSD-3-Clause
"""Who computes the sigmoid focal loss, on the outputs of one batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.peers.torchvision_installed import installed_torchvision
from ssd_fast import ops
from ssd_fast.focal import focal_loss_terms

Loss = Callable[[Tensor], Tensor]
PLAIN = "plain PyTorch"


def class_losses(case: Case) -> dict[str, Loss]:
    """The class loss of logits by who computes it: ours, plain PyTorch and, installed, torchvision.

    Tensors may be on any device.
    """
    objects = tuple(case.objects)
    matched = ops.match(case.priors, objects[0], objects[2])
    image, prior = (matched >= 0).nonzero(as_tuple=True)
    label = objects[1][objects[2][image] + matched[image, prior]]

    def targets(like: Tensor) -> Tensor:
        target = torch.zeros_like(like)
        target[image, prior, label] = 1
        return target

    def ours(logits: Tensor) -> Tensor:
        return ops.focal_loss(case.deltas, logits, case.priors, *objects, normalizer="none")[1]

    def plain(logits: Tensor) -> Tensor:
        return focal_loss_terms(logits, targets(logits) > 0, 0.25, 2.0).sum()

    losses: dict[str, Loss] = {"ssd_fast": ours, PLAIN: plain}
    installed: Any = installed_torchvision()
    if installed is not None:
        losses["torchvision"] = lambda x: installed.sigmoid_focal_loss(
            x, targets(x), reduction="sum"
        )
    return losses
