# SPDX-License-Identifier: BSD-3-Clause
"""accelerate: gives a detector of torchvision our kernels, in place, and takes them back.

A model is changed by giving the object a subclass of its own class; nothing else in the process
is touched. torchvision is imported only here, and only when a model is passed.
"""

import sys
from typing import TypeVar

from torch import nn

from ssd_fast.integrations.subclasses import CACHE

__all__ = ["accelerate", "accelerated", "restore"]

Model = TypeVar("Model", bound=nn.Module)


def accelerate(model: Model) -> Model:
    """Gives a detector of torchvision our kernels.

    An SSD gets all of them: matching, loss, anchors, decoding and NMS. RetinaNet, FCOS and the
    R-CNNs (Faster, Mask, Keypoint) get our NMS, and the R-CNNs' heads our matching; their losses
    are other losses and stay. `accelerated` lists what was replaced. The model keeps its inputs,
    outputs, state dict and attributes; thresholds and limits are read at each call. Accelerating
    twice changes nothing.

    What differs from the original, in SSD:

    * An object that overlaps no anchor claims none (torchvision gives it anchor 0).
    * Objects that share a best anchor: the last wins, on every device (torchvision on CUDA: any).
    * Negatives are mined by ``sum exp(x_c - x_background)``, whose log1p torchvision's key is up
      to its rounding, ties by the lowest anchor (torchvision's sort is not stable).
    * Where three times the positives exceed the negatives, positives count once (torchvision sums
      them twice), and an object with the label of the background is left out.
    * Classes never touch in NMS, equal scores keep the lower label, then the lower anchor, and
      rows with NaN or +inf logits yield nothing.
    * Boxes, scores and losses of a half-precision model are float32; float64 is refused.
    * An object whose label is no class of the head, or whose box is not finite, is a ValueError
      that names it (torchvision: an IndexError, or NaN).
    * `compute_loss` or another method that is no longer called, set on the object later, is a
      TypeError at the next call; `restore` leaves it in force.
    * `torch.jit.script` does not compile it; `restore` gives back a model that it does.

    In the others: classes and levels never touch in NMS, equal scores keep the lower index, boxes
    and scores that are not finite are not kept, and a model in float64 is refused by the NMS.

    Args:
        model: an `SSD`, `RetinaNet`, `FCOS` or `GeneralizedRCNN` of torchvision, by one of its
            builders (`ssd300_vgg16`, `ssdlite320_mobilenet_v3_large`, ...) or by hand.

    Returns:
        The same object.

    Raises:
        TypeError: the model is none of these, or it or its class overrides a method that would
            have to be replaced.
    """
    if accelerated(model):
        return model
    if "torchvision.models.detection" not in sys.modules:
        raise TypeError(_not_supported(model))
    from torchvision.models.detection.ssd import SSD

    from ssd_fast.integrations import torchvision_detectors, torchvision_ssd

    changes: list[tuple[nn.Module, type[nn.Module]]]
    if isinstance(model, SSD):
        changes = torchvision_ssd.changes(model)
    else:
        changes = torchvision_detectors.changes(model)
    if not changes:
        raise TypeError(_not_supported(model))
    for module, kind in changes:
        module.__class__ = kind
    return model


def restore(model: Model) -> Model:
    """Undoes `accelerate`; a model that was never accelerated is returned as it is.

    Args:
        model: what `accelerate` was given.

    Returns:
        The same object.
    """
    if accelerated(model):
        for module in (model, *model.children()):
            original = getattr(type(module), "_ssd_fast_original", None)
            if original is not None:
                module.__class__ = original
                module.__dict__.pop(CACHE, None)
    return model


def accelerated(model: nn.Module) -> dict[str, str]:
    """Which parts of a model run on our kernels.

    Args:
        model: any module.

    Returns:
        What was replaced, and by what; empty for a model that is not accelerated.
    """
    return dict(getattr(type(model), "_ssd_fast_replaced", {}))


def _not_supported(model: object) -> str:
    kind = f"{type(model).__module__}.{type(model).__name__}"  # ours is an SSD, too
    return (
        "model: expected an SSD, RetinaNet, FCOS or GeneralizedRCNN of "
        f"torchvision.models.detection, got {kind}; any other detector can call "
        "ssd_fast.MultiBoxLoss and ssd_fast.ops"
    )
