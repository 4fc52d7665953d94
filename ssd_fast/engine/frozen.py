# SPDX-License-Identifier: BSD-3-Clause
"""Stages of a backbone that keep their weights."""

from __future__ import annotations

from torch import nn

from ssd_fast.models.ssd import SSD
from ssd_fast.models.vgg import VGG16

__all__ = ["freeze_stages"]


def freeze_stages(model: SSD, count: int) -> list[nn.Module]:
    """Stops the first stages from learning: what an image starts with is much the same everywhere.

    Args:
        model: its parameters are changed in place.
        count: from 0 to 5, of VGG's conv1 to conv5.

    Returns:
        The stages; keep them in evaluation mode, so that their batch norm stays, too.

    Raises:
        ValueError: another number, or a backbone without these stages.
    """
    if count == 0:
        return []
    backbone = model.backbone
    if not isinstance(backbone, VGG16):
        raise ValueError(f"freeze: {type(backbone).__name__} has no stages to freeze; take 0")
    stages: list[nn.Module] = [
        backbone.conv1,
        backbone.conv2,
        backbone.conv3,
        backbone.conv4,
        backbone.conv5,
    ]
    if count > len(stages):
        raise ValueError(f"freeze: expected 0 to {len(stages)} stages, got {count}")
    for stage in stages[:count]:
        stage.requires_grad_(False)
    return stages[:count]
