# SPDX-License-Identifier: BSD-3-Clause
"""How each implementation of SSD300 on VGG16 names its 71 tensors, and what it was trained with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["BOXES_PER_CELL", "LAYOUTS", "Layout", "shapes"]

_SCALE = "backbone.l2norm.weight"
_STAGES = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}
_LEVELS = 6
BOXES_PER_CELL = (4, 6, 6, 6, 4, 4)
"""Of each of SSD300's maps."""

_Mean = tuple[float, float, float]
_CAFFE_MEAN: _Mean = (123 / 255, 117 / 255, 104 / 255)
_CAFFE_STD: _Mean = (1 / 255, 1 / 255, 1 / 255)


@dataclass(frozen=True)
class Layout:
    """The names of one implementation, and the preprocessing and priors that belong to them."""

    names: Mapping[str, str]
    """This package's name of each tensor, and theirs."""
    image_mean: _Mean
    """Of each channel, RGB, images in [0, 1]."""
    image_std: _Mean
    """Of each channel."""
    priors: Callable[[int], str]
    """Preset of `ssd_fast.priors.ssd300` by number of classes."""
    scale_shape: tuple[int, ...] = (-1,)
    """What the scale of conv4_3 is reshaped to."""


def _names(
    convs: list[str], extras: list[str], scale: str, regression: list[str], classes: list[str]
) -> Mapping[str, str]:
    """Names by this package's, from the layers' names in the order of the network."""
    ours = [f"backbone.conv{stage}.{i}" for stage, n in _STAGES.items() for i in range(n)]
    ours += ["backbone.conv6", "backbone.conv7"]
    ours += [f"backbone.extras.{k}.{i}" for k in range(4) for i in range(2)]
    layers = {f"{a}.conv": b for a, b in zip(ours, [*convs, *extras], strict=True)}
    for kind, theirs in (("regression", regression), ("classification", classes)):
        layers |= {f"heads.{kind}.{k}": theirs[k] for k in range(_LEVELS)}
    names = {_SCALE: scale}
    for part in ("weight", "bias"):
        names |= {f"{a}.{part}": f"{b}.{part}" for a, b in layers.items()}
    return MappingProxyType(names)


def _numbered(prefix: str, numbers: list[int]) -> list[str]:
    return [f"{prefix}.{number}" for number in numbers]


def _ssd_fast() -> Mapping[str, str]:
    convs = [f"backbone.conv{stage}.{i}.conv" for stage, n in _STAGES.items() for i in range(n)]
    return _names(
        [*convs, "backbone.conv6.conv", "backbone.conv7.conv"],
        [f"backbone.extras.{k}.{i}.conv" for k in range(4) for i in range(2)],
        _SCALE,
        _numbered("heads.regression", list(range(_LEVELS))),
        _numbered("heads.classification", list(range(_LEVELS))),
    )


# Positions of the convolutions in the list of VGG's layers that all these nets are written as.
_VGG = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21]
_CONV5_TO_7 = [24, 26, 28, 31, 33]


def _amdegroot() -> Mapping[str, str]:
    return _names(
        _numbered("vgg", _VGG + _CONV5_TO_7),
        _numbered("extras", list(range(8))),
        "L2Norm.weight",
        _numbered("loc", list(range(_LEVELS))),
        _numbered("conf", list(range(_LEVELS))),
    )


def _lufficc() -> Mapping[str, str]:
    return _names(
        _numbered("backbone.vgg", _VGG + _CONV5_TO_7),
        _numbered("backbone.extras", list(range(8))),
        "backbone.l2_norm.weight",
        _numbered("box_head.predictor.reg_headers", list(range(_LEVELS))),
        _numbered("box_head.predictor.cls_headers", list(range(_LEVELS))),
    )


def _torchvision() -> Mapping[str, str]:
    return _names(
        _numbered("backbone.features", _VGG)
        + [f"backbone.extra.0.{i}" for i in (1, 3, 5, "7.1", "7.3")],
        [f"backbone.extra.{k + 1}.{i}" for k in range(4) for i in (0, 2)],
        "backbone.scale_weight",
        _numbered("head.regression_head.module_list", list(range(_LEVELS))),
        _numbered("head.classification_head.module_list", list(range(_LEVELS))),
    )


def _sgrvinod() -> Mapping[str, str]:
    levels = ["conv4_3", "conv7", "conv8_2", "conv9_2", "conv10_2", "conv11_2"]
    convs = [f"base.conv{stage}_{i + 1}" for stage, n in _STAGES.items() for i in range(n)]
    return _names(
        [*convs, "base.conv6", "base.conv7"],
        [f"aux_convs.conv{8 + k}_{i + 1}" for k in range(4) for i in range(2)],
        "rescale_factors",
        [f"pred_convs.loc_{level}" for level in levels],
        [f"pred_convs.cl_{level}" for level in levels],
    )


def _voc_or_coco(num_classes: int) -> str:
    """COCO's boxes for COCO's 80 classes, or the 200 outputs of amdegroot's config for it."""
    return "coco" if num_classes in (81, 201) else "voc"


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "ssd_fast": Layout(_ssd_fast(), _CAFFE_MEAN, _CAFFE_STD, _voc_or_coco),
        "amdegroot": Layout(_amdegroot(), _CAFFE_MEAN, _CAFFE_STD, _voc_or_coco),
        "torchvision": Layout(
            _torchvision(), (0.48235, 0.45882, 0.40784), _CAFFE_STD, lambda _: "torchvision"
        ),
        "lufficc": Layout(_lufficc(), _CAFFE_MEAN, _CAFFE_STD, _voc_or_coco),
        "sgrvinod": Layout(
            _sgrvinod(),
            (0.485, 0.456, 0.406),
            (0.229, 0.224, 0.225),
            lambda _: "sgrvinod",
            (1, -1, 1, 1),
        ),
    }
)
"""Layouts by name; "ssd_fast" is this package's own."""


def shapes(num_classes: int) -> dict[str, tuple[int, ...]]:
    """The shape of each of SSD300's 71 tensors, under this package's names.

    Args:
        num_classes: C, background included.
    """
    layers = {}
    channels = 3
    for stage, width in {1: 64, 2: 128, 3: 256, 4: 512, 5: 512}.items():
        for i in range(_STAGES[stage]):
            layers[f"backbone.conv{stage}.{i}.conv"] = (width, channels, 3, 3)
            channels = width
    layers["backbone.conv6.conv"] = (1024, 512, 3, 3)
    layers["backbone.conv7.conv"] = (1024, 1024, 1, 1)
    maps = [512, 1024]
    for k, (reduced, width) in enumerate([(256, 512), *[(128, 256)] * 3]):
        layers[f"backbone.extras.{k}.0.conv"] = (reduced, maps[-1], 1, 1)
        layers[f"backbone.extras.{k}.1.conv"] = (width, reduced, 3, 3)
        maps.append(width)
    for k, (boxes, width) in enumerate(zip(BOXES_PER_CELL, maps, strict=True)):
        layers[f"heads.regression.{k}"] = (boxes * 4, width, 3, 3)
        layers[f"heads.classification.{k}"] = (boxes * num_classes, width, 3, 3)
    tensors: dict[str, tuple[int, ...]] = {_SCALE: (512,)}
    for layer, shape in layers.items():
        tensors |= {f"{layer}.weight": shape, f"{layer}.bias": shape[:1]}
    return tensors
