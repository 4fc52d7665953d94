# SPDX-License-Identifier: BSD-3-Clause
"""Weights that a backbone starts with: of a detector, or of VGG16 trained on ImageNet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ssd_fast.convert import import_state_dict, layout_of, read_weights
from ssd_fast.convert.layouts import LAYOUTS
from ssd_fast.engine.weights import saved_config
from ssd_fast.models.ssd import SSD

__all__ = ["BackboneWeights", "read_backbone"]

_ENUM = "VGG16_Weights."
_PREFIX = "backbone."
_OWN = "backbone.conv1.0.conv.weight"  # in files of this package
# Where torchvision's list of layers holds the convolutions; conv6 and conv7 follow in
# vgg16_reducedfc.pth, ImageNet's fully connected layers made convolutions (SSD paper, section 3).
_CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_REDUCED = (31, 33)


@dataclass(frozen=True)
class BackboneWeights:
    """Tensors for a backbone, and the pixels that they were trained on.

    Attributes:
        source: where they come from.
        tensors: by the names of this package's backbone.
        pixels: options of the model, image_mean and image_std, where the source says them.
    """

    source: str
    tensors: dict[str, Tensor]
    pixels: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def load_into(self, model: SSD) -> None:
        """Fills what there is weights for; the rest of the model stays as it is.

        Args:
            model: an SSD on VGG16.

        Raises:
            ValueError: tensors that the model lacks, or of another shape; all are named.
        """
        own = model.backbone.state_dict()
        wrong = [
            f"{name} {tuple(tensor.shape)}"
            + (f", the model's is {tuple(own[name].shape)}" if name in own else ", not there")
            for name, tensor in self.tensors.items()
            if name not in own or own[name].shape != tensor.shape
        ]
        if wrong:
            more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise ValueError(
                f"backbone_weights: {self.source} does not fit the model: {'; '.join(wrong[:3])}"
                f"{more}. VGG16 of ImageNet needs width 1 and no batch norm; a detector, its own"
            )
        model.backbone.load_state_dict(self.tensors, strict=False)


def read_backbone(source: str | os.PathLike[str]) -> BackboneWeights:
    """Reads weights for the backbone.

    Args:
        source: a torchvision enum such as "VGG16_Weights.IMAGENET1K_FEATURES", downloaded once;
            or a file: weights of this package, an SSD300 that `ssd_fast.convert` knows, a state
            dict of torchvision's `vgg16`, or `vgg16_reducedfc.pth`.

    Returns:
        The weights.

    Raises:
        ConnectionError: the download failed.
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: an enum, and torchvision is not installed.
        ValueError: an unknown enum, or a file that holds no such weights.
    """
    source = os.fspath(source)
    if source.startswith(_ENUM):
        return _of_torchvision(source)
    weights = read_weights(source)
    tensors = _named(weights)
    if tensors is None:
        raise ValueError(
            f"backbone_weights: {source} holds no weights of VGG16 or of an SSD300 on it; its names"
            f" are like {', '.join(map(repr, list(weights)[:3]))}"
        )
    return BackboneWeights(source, tensors, _pixels(source, weights))


def _pixels(source: str, weights: dict[str, Tensor]) -> dict[str, tuple[float, ...]]:
    """What a detector was trained on, by the file's own config or by the layout of its names."""
    if _OWN in weights:
        config = saved_config(source) if source.endswith(".safetensors") else {}
        return {name: tuple(config[name]) for name in ("image_mean", "image_std") if name in config}
    try:
        layout = LAYOUTS[layout_of(weights)]
    except ValueError:  # of VGG16 alone
        return {}
    return {"image_mean": layout.image_mean, "image_std": layout.image_std}


def _named(weights: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """The backbone's tensors by its own names, whoever named them."""
    if _OWN not in weights:
        for prefix, numbers in (("features.", _CONVOLUTIONS), ("", _CONVOLUTIONS + _REDUCED)):
            if all(f"{prefix}{number}.weight" in weights for number in numbers):
                return _numbered(weights, prefix, numbers)
        try:
            weights = import_state_dict(weights, layout_of(weights))
        except ValueError:
            return None
    return {
        name.removeprefix(_PREFIX): tensor
        for name, tensor in weights.items()
        if name.startswith(_PREFIX)
    }


def _numbered(weights: dict[str, Tensor], prefix: str, numbers: Sequence[int]) -> dict[str, Tensor]:
    """From numbered layers to stages."""
    stages = [f"conv{stage}.{i}" for stage, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(n)]
    return {
        f"{name}.conv.{part}": weights[f"{prefix}{number}.{part}"]
        for name, number in zip([*stages, "conv6", "conv7"], numbers, strict=False)
        for part in ("weight", "bias")
    }


def _of_torchvision(source: str) -> BackboneWeights:
    """What one of torchvision's enums names."""
    try:
        from torchvision.models import VGG16_Weights
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise ModuleNotFoundError(
            f"backbone_weights: {source} needs torchvision, which does not load: pip install"
            " torchvision, or name a file"
        ) from error
    name = source.removeprefix(_ENUM)
    if name not in VGG16_Weights.__members__:
        known = ", ".join(_ENUM + member for member in VGG16_Weights.__members__)
        raise ValueError(f"backbone_weights: expected a file, {known}, got {source}")
    weights = VGG16_Weights[name]
    try:
        state = weights.get_state_dict(progress=False)
    except OSError as error:  # URLError is one
        raise ConnectionError(
            f"backbone_weights: cannot download {source} from {weights.url}: {error}; fetch it"
            " elsewhere and name the file, or name none"
        ) from error
    # Its fully connected layers are of no use here: in the FEATURES weights they are NaN.
    transform = weights.transforms()
    pixels = {"image_mean": tuple(transform.mean), "image_std": tuple(transform.std)}
    return BackboneWeights(source, _numbered(state, "features.", _CONVOLUTIONS), pixels)
