# SPDX-License-Identifier: BSD-3-Clause
"""How the prediction layers start when a detector is trained from nothing."""

from __future__ import annotations

import math

import torch
from torch import nn

from ssd_fast.models.heads import logit_of
from ssd_fast.models.ssd import SSD

__all__ = ["quiet_heads"]

_SHRINK = 0.1


@torch.no_grad()
def quiet_heads(model: SSD, *, object_share: float = 0.01) -> None:
    """Makes an untrained model predict background, and boxes equal to the priors.

    Hard-negative mining picks the rows that a model is most wrong about. With Xavier-uniform heads
    on features of length 20 those are arbitrary large scores, and the first hundred steps go into
    unlearning them. This is the start of RetinaNet (Lin et al., 2017, section 4.1), for a softmax
    as for sigmoids.

    Args:
        model: whose heads are changed in place.
        object_share: probability that every prior begins with, of all objects together, or of each
            class where scores are sigmoids.
    """
    background: int = model.loss.options["background_index"]
    odds = (1 - object_share) / object_share * (model.num_classes - 1)
    for conv in model.heads.regression:
        assert isinstance(conv, nn.Conv2d)
        conv.weight.mul_(_SHRINK)
    for conv in model.heads.classification:
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        if model.loss.classification == "focal":  # whose weights `SSD` has drawn as RetinaNet's
            conv.bias.fill_(logit_of(object_share))
            continue
        conv.weight.mul_(_SHRINK)
        conv.bias.zero_()
        conv.bias.view(-1, model.num_classes)[:, background] = math.log(odds)
