# SPDX-License-Identifier: BSD-3-Clause
"""NVIDIA DeepLearningExamples' SSD300 in an `SSD` of this package, around NVIDIA's own backbone."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ssd_fast.convert.layouts import BOXES_PER_CELL

__all__ = ["import_nvidia_state_dict"]

_HEADS = {"loc": "heads.regression", "conf": "heads.classification"}


def import_nvidia_state_dict(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """NVIDIA's SSD300, a ResNet, as the state dict of an `SSD` around the same layers.

    NVIDIA's heads give channel `k * A + a`, the boxes of a level first, where `SSD` has
    `a * K + k`: their channels are put in order. All other tensors keep their names below
    "backbone.", so that the backbone is a module that holds NVIDIA's `feature_extractor` and
    `additional_blocks` (PyTorch/Detection/SSD, ssd/model.py) and returns the six maps as a list:

        model = ssd_fast.models.SSD(
            backbone, 81, priors=ssd_fast.priors.ssd300("nvidia"),
            boxes_per_cell=(4, 6, 6, 6, 4, 4), image_size=300,
            image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225))
        weights = ssd_fast.convert.read_weights("nvidia_ssdpyt_amp.pt")
        model.load_state_dict(ssd_fast.convert.import_nvidia_state_dict(weights))

    Args:
        weights: their state dict, see `read_weights`.

    Returns:
        A state dict; the heads are copies, the other tensors are shared.

    Raises:
        ValueError: tensors of the heads that are missing, left over or of a wrong shape: all of
            them are listed.
    """
    classes, problems = _check_heads(weights)
    if problems:
        raise ValueError(f"weights: not an SSD300 as NVIDIA names it: {'; '.join(problems)}")
    converted = {}
    for name, tensor in weights.items():
        kind, _, layer = name.partition(".")
        if kind in _HEADS:
            columns = 4 if kind == "loc" else classes
            rows = tensor.unflatten(0, (columns, -1)).transpose(0, 1)
            name, tensor = f"{_HEADS[kind]}.{layer}", rows.flatten(0, 1)
        else:
            name = f"backbone.{name}"
        converted[name] = tensor
    return converted


def _check_heads(weights: Mapping[str, Any]) -> tuple[int, list[str]]:
    """The number of classes, and all that is wrong with the heads."""
    bias = weights.get("conf.0.bias")
    classes = bias.numel() // BOXES_PER_CELL[0] if isinstance(bias, Tensor) else 0
    problems, known = [], set()
    for kind, columns in (("loc", 4), ("conf", classes)):
        for level, boxes in enumerate(BOXES_PER_CELL):
            other = weights.get(f"{'conf' if kind == 'loc' else 'loc'}.{level}.weight")
            inner = other.shape[1:] if isinstance(other, Tensor) else None
            for part, behind in (("weight", inner), ("bias", torch.Size())):
                name = f"{kind}.{level}.{part}"
                known.add(name)
                tensor = weights.get(name)
                if not isinstance(tensor, Tensor):
                    problems.append(f"missing {name!r}")
                elif columns and behind is not None and tensor.shape != (boxes * columns, *behind):
                    expected = (boxes * columns, *behind)
                    problems.append(f"{name!r} is {tuple(tensor.shape)}, expected {expected}")
    heads = (name for name in weights if name.partition(".")[0] in _HEADS)
    problems += [f"left over {name!r}" for name in sorted(set(heads) - known)]
    return classes, problems
