# SPDX-License-Identifier: BSD-3-Clause
"""The prior boxes of an architecture, by the name of a preset, as a grid or as a tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ssd_fast.priors import PriorBoxes

__all__ = ["resolve_priors"]


def resolve_priors(
    architecture: str,
    presets: Mapping[str, PriorBoxes],
    priors: str | PriorBoxes | Tensor | Mapping[str, Any] | Sequence[Sequence[float]],
) -> tuple[Tensor, Sequence[int], Any]:
    """The boxes (P, 4), how many a cell carries, and how `SSD.config` writes them down.

    What `SSD.config` wrote is taken too: a dictionary for a `PriorBoxes`, rows for a tensor.

    Args:
        architecture: its name, for messages.
        presets: its grids; they share the maps of "voc".
        priors: a name of `presets`, a grid of the same maps, or (P, 4) corners in [0, 1].

    Raises:
        ValueError: an unknown name, or priors that do not fit the maps.
    """
    standard = presets["voc"]
    if isinstance(priors, str):
        if priors not in presets:
            names = ", ".join(map(repr, presets))
            raise ValueError(f"priors: {architecture} has the presets {names}, got {priors!r}")
        return presets[priors](), standard.boxes_per_cell, priors
    grid = PriorBoxes(**priors) if isinstance(priors, Mapping) else priors
    if isinstance(grid, PriorBoxes):
        if grid.feature_maps != standard.feature_maps:
            raise ValueError(
                f"priors: expected the feature maps of {architecture}, {standard.feature_maps},"
                f" got {grid.feature_maps}"
            )
        return grid(), grid.boxes_per_cell, asdict(grid)
    # Rows of a config are data: on the meta device, where a model may be built, they would be lost.
    device = grid.device if isinstance(grid, Tensor) else torch.device("cpu")
    boxes = torch.as_tensor(grid, dtype=torch.float32, device=device)
    if boxes.shape != (len(standard), 4):
        raise ValueError(
            f"priors: expected ({len(standard)}, 4) corners for {architecture},"
            f" got {tuple(boxes.shape)}"
        )
    return boxes, standard.boxes_per_cell, None
