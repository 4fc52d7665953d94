# SPDX-License-Identifier: BSD-3-Clause
"""SSD300 and SSD512 on VGG16 (Liu et al., 2016, arXiv:1512.02325)."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ssd_fast.models.grid import resolve_priors
from ssd_fast.models.ssd import ARCHITECTURES, SSD
from ssd_fast.models.vgg import EXTRAS_300, EXTRAS_512, VGG16, Extra
from ssd_fast.priors import SSD300, SSD512, PriorBoxes

__all__ = ["ssd300_vgg16", "ssd512_vgg16"]


def ssd300_vgg16(
    num_classes: int,
    *,
    width: float = 1.0,
    norm: bool = False,
    priors: str | PriorBoxes | Tensor = "voc",
    **options: Any,
) -> SSD:
    """SSD300 on VGG16: 8732 boxes from maps of side 38, 19, 10, 5, 3 and 1 (SSD paper, figure 2).

    Args:
        num_classes: C, background included: 21 for Pascal VOC.
        width: factor on the number of channels of every layer; 0.125 is a slim model with the same
            boxes that trains on a CPU in minutes.
        norm: batch norm after each convolution of the backbone.
        priors: a preset of `ssd_fast.priors.ssd300`, a `PriorBoxes` of the same maps, or (8732, 4)
            float32 corners in [0, 1].
        **options: of `SSD`: image_mean, image_std, score_threshold, top_k, iou_threshold,
            max_detections, nms, sigma, classification, loss, sparse_head_backward.

    Returns:
        A model in training mode, with random weights.

    Raises:
        ValueError: an option out of range, or priors that do not fit the maps.

    Example:
        >>> model = ssd300_vgg16(21).eval()
        >>> model([torch.rand(3, 375, 500)])[0].keys()
        dict_keys(['boxes', 'scores', 'labels'])
    """
    return _ssd_vgg16("ssd300_vgg16", num_classes, width, norm, priors, options)


def ssd512_vgg16(
    num_classes: int,
    *,
    width: float = 1.0,
    norm: bool = False,
    priors: str | PriorBoxes | Tensor = "voc",
    **options: Any,
) -> SSD:
    """SSD512 on VGG16: 24564 boxes from maps of side 64, 32, 16, 8, 4, 2 and 1.

    Args:
        num_classes: C, background included.
        width: factor on the number of channels of every layer.
        norm: batch norm after each convolution of the backbone.
        priors: a preset of `ssd_fast.priors.ssd512`, a `PriorBoxes` of the same maps, or (24564, 4)
            float32 corners in [0, 1].
        **options: of `SSD`, as in `ssd300_vgg16`.

    Returns:
        A model in training mode, with random weights.

    Raises:
        ValueError: an option out of range, or priors that do not fit the maps.
    """
    return _ssd_vgg16("ssd512_vgg16", num_classes, width, norm, priors, options)


class _Layout(NamedTuple):
    """What tells the two apart."""

    image_size: int
    presets: Mapping[str, PriorBoxes]
    extras: Sequence[Extra]


_LAYOUTS = {
    "ssd300_vgg16": _Layout(300, SSD300, EXTRAS_300),
    "ssd512_vgg16": _Layout(512, SSD512, EXTRAS_512),
}


def _ssd_vgg16(
    architecture: str,
    num_classes: int,
    width: float,
    norm: bool,
    priors: str | PriorBoxes | Tensor,
    options: Mapping[str, Any],
) -> SSD:
    """What the two share."""
    image_size, presets, extras = _LAYOUTS[architecture]
    boxes, boxes_per_cell, written = resolve_priors(architecture, presets, priors)
    model = SSD(
        VGG16(extras, width=width, norm=norm),
        num_classes,
        priors=boxes,
        boxes_per_cell=boxes_per_cell,
        image_size=image_size,
        **options,
    )
    # A grid given as a tensor is written down only when somebody asks for the config.
    model._architecture = {"architecture": architecture, "width": width, "norm": norm}
    model._architecture["priors"] = written
    return model


ARCHITECTURES |= {"ssd300_vgg16": ssd300_vgg16, "ssd512_vgg16": ssd512_vgg16}
