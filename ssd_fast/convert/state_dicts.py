# SPDX-License-Identifier: BSD-3-Clause
"""State dicts of SSD300 from one implementation's names to another's, checked in full."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ssd_fast.convert.layouts import BOXES_PER_CELL, LAYOUTS, Layout, shapes

__all__ = ["export_state_dict", "import_state_dict", "layout_of", "num_classes_of"]

_CLASSIFIER = "heads.classification.0.bias"

# Layouts that this package knows and cannot take: a key that gives them away, and the reason.
_NO_WAY = {
    "feature_extractor.feature_provider.0.weight": (
        "NVIDIA's SSD300, a ResNet, and SSD300 here is a VGG16. ssd_fast.convert."
        "import_nvidia_state_dict(weights) is for an SSD around NVIDIA's own backbone"
    ),
    "base_net.0.weight": (
        "qfgaohao's SSD, which has batch norm where SSD300 has L2 normalisation; they cannot be"
        " converted"
    ),
    "backbone.conv1.0.norm.weight": (
        "an SSD of this package with norm=True, which no other has; they cannot be converted"
    ),
}


def layout_of(weights: Mapping[str, Tensor]) -> str:
    """Whose names a state dict has.

    Args:
        weights: tensors by name.

    Returns:
        "ssd_fast", "amdegroot", "torchvision", "lufficc" or "sgrvinod": the one that most of the
        names belong to.

    Raises:
        ValueError: no SSD300 on VGG16 that this package knows.
    """
    for key, what in _NO_WAY.items():
        if key in weights:
            raise ValueError(f"weights: these are of {what}")
    known = {name: len(weights.keys() & set(lay.names.values())) for name, lay in LAYOUTS.items()}
    best = max(known, key=lambda name: known[name])
    if known[best] < 10:
        first = ", ".join(map(repr, list(weights)[:3]))
        raise ValueError(
            f"weights: expected an SSD300 on VGG16 as {', '.join(LAYOUTS)} name it, got names like"
            f" {first or 'none'}"
        )
    return best


def import_state_dict(
    weights: Mapping[str, Tensor], layout: str | None = None
) -> dict[str, Tensor]:
    """Another implementation's SSD300 under this package's names.

    Args:
        weights: their state dict; all 71 tensors, and nothing else.
        layout: whose names these are, see `layout_of`; None finds out.

    Returns:
        A state dict for `ssd_fast.ssd300_vgg16(num_classes)`. The tensors are shared.

    Raises:
        ValueError: an unknown layout, or tensors that are missing, left over or of a wrong shape:
            all of them are listed.
    """
    theirs = _layout(layout_of(weights) if layout is None else layout)
    _check(weights, theirs.names, theirs)
    renamed = {ours: weights[name] for ours, name in theirs.names.items()}
    scale = "backbone.l2norm.weight"
    return renamed | {scale: renamed[scale].reshape(-1)}


def export_state_dict(weights: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """This package's SSD300 under another implementation's names.

    Args:
        weights: `state_dict()` of an `ssd300_vgg16` of full width without batch norm.
        layout: "amdegroot", "torchvision", "lufficc" or "sgrvinod".

    Returns:
        A state dict for their model with the same number of classes, which has to use the same
        priors: `model.config["priors"]` here. The tensors are shared.

    Raises:
        ValueError: an unknown layout, or tensors that are missing, left over or of a wrong shape:
            all of them are listed.
    """
    theirs = _layout(layout)
    ours = LAYOUTS["ssd_fast"]
    _check(weights, ours.names, ours)
    renamed = {name: weights[our] for our, name in theirs.names.items()}
    scale = theirs.names["backbone.l2norm.weight"]
    return renamed | {scale: renamed[scale].reshape(theirs.scale_shape)}


def num_classes_of(weights: Mapping[str, Tensor], layout: str) -> int:
    """C of a state dict, background included.

    Raises:
        ValueError: the tensor that says so is not there.
    """
    name = _layout(layout).names[_CLASSIFIER]
    if name not in weights:
        raise ValueError(f"weights: no {name!r}, which tells the number of classes")
    return weights[name].numel() // BOXES_PER_CELL[0]


def _layout(name: str) -> Layout:
    if name not in LAYOUTS:
        raise ValueError(f"layout: expected one of {', '.join(map(repr, LAYOUTS))}, got {name!r}")
    return LAYOUTS[name]


def _check(weights: Mapping[str, Any], names: Mapping[str, str], layout: Layout) -> None:
    """Raises ValueError with all that is wrong with the tensors."""
    classifier = weights.get(names[_CLASSIFIER])
    classes = classifier.numel() // BOXES_PER_CELL[0] if isinstance(classifier, Tensor) else 0
    expected = shapes(max(classes, 2))
    problems = []
    for ours, name in names.items():
        tensor = weights.get(name)
        shape = expected[ours]
        if ours == "backbone.l2norm.weight" and len(layout.scale_shape) > 1:
            shape = (1, *shape, 1, 1)
        if tensor is None:
            problems.append(f"missing {name!r}")
        elif not isinstance(tensor, Tensor):
            problems.append(f"{name!r} is no tensor but {type(tensor).__name__}")
        elif tensor.shape != shape and not (classes < 2 and "classification" in ours):
            problems.append(f"{name!r} is {tuple(tensor.shape)}, expected {tuple(shape)}")
    problems += [f"left over {name!r}" for name in sorted(weights.keys() - set(names.values()))]
    if problems:
        raise ValueError(f"weights: not an SSD300 on VGG16: {'; '.join(problems)}")
