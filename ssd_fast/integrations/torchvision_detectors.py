# SPDX-License-Identifier: BSD-3-Clause
"""torchvision's RetinaNet, FCOS and R-CNNs on our NMS, and the R-CNNs' heads on our matching.

Only `accelerate` imports this module, and only when a model of torchvision is passed.
"""

from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from ssd_fast.integrations.subclasses import check_not_overridden, check_not_set, make_subclass
from ssd_fast.ops.match import match
from ssd_fast.ops.nms import batched_nms

__all__ = ["accelerated_class", "changes"]

_NMS = "ssd_fast.ops.batched_nms"

# Of each class of torchvision: the method whose NMS is replaced, and what is listed for it.
_METHODS: dict[type[nn.Module], tuple[str | None, dict[str, str]]] = {
    RetinaNet: ("postprocess_detections", {"nms": _NMS}),
    FCOS: ("postprocess_detections", {"nms": _NMS}),
    RegionProposalNetwork: ("filter_proposals", {"nms": _NMS}),
    RoIHeads: ("postprocess_detections", {"nms": _NMS, "matching": "ssd_fast.ops.match"}),
    GeneralizedRCNN: (
        None,
        {
            "nms of the proposals": _NMS,
            "nms of the detections": _NMS,
            "matching of the proposals": "ssd_fast.ops.match",
        },
    ),
}

# One class for each that was accelerated, so that two modules of a class stay of one class.
_classes: dict[type[nn.Module], type[nn.Module]] = {}


def changes(model: nn.Module) -> list[tuple[nn.Module, type[nn.Module]]]:
    """The modules of a detector that change their class, and to which; none for another model.

    Raises:
        TypeError: a module or its class overrides a method that is replaced, or an R-CNN has a
            proposal network or heads that are not torchvision's.
    """
    if not isinstance(model, RetinaNet | FCOS | GeneralizedRCNN):
        return []
    modules: list[nn.Module] = [model]
    if isinstance(model, GeneralizedRCNN):
        for name, kind in (("rpn", RegionProposalNetwork), ("roi_heads", RoIHeads)):
            part = getattr(model, name)
            if not isinstance(part, kind):
                raise TypeError(
                    f"model.{name}: expected torchvision's {kind.__name__}, got "
                    f"{type(part).__name__}"
                )
            modules.append(part)
    for module in modules:
        check_not_set(module, list(_members(_base(type(module)))))
    return [(module, accelerated_class(type(module))) for module in modules]


def accelerated_class(original: type[nn.Module]) -> type[nn.Module]:
    """A subclass of `original`, a detector or a part of one, that runs on our kernels.

    Raises:
        TypeError: `original` overrides a method that is replaced.
    """
    if original not in _classes:
        base = _base(original)
        members = _members(base)
        check_not_overridden(original, base, list(members))
        replaced = _METHODS[base][1]
        _classes[original] = make_subclass(original, members, replaced, accelerated_class)
    return _classes[original]


def _base(original: type[nn.Module]) -> type[nn.Module]:
    """The class of torchvision that `original` is or derives from."""
    return next(base for base in _METHODS if issubclass(original, base))


def _members(base: type[nn.Module]) -> dict[str, Any]:
    """The methods that replace those of `base`, by name."""
    method, _ = _METHODS[base]
    members: dict[str, Any] = {}
    if method is not None:
        members[method] = _with_our_nms(getattr(base, method))
    if base is RoIHeads:
        members["assign_targets_to_proposals"] = _assign_targets_to_proposals
    return members


def _with_our_nms(method: FunctionType) -> FunctionType:
    """The same method, with `box_ops.batched_nms` as ours and all other names as they were.

    A function of its own over a copy of its module's names: torchvision's module, and with it
    every other model in the process, keeps its NMS.
    """
    names = method.__globals__
    if "batched_nms" not in method.__code__.co_names or "box_ops" not in names:
        raise TypeError(
            f"model: {method.__qualname__}() of this torchvision does not call "
            "box_ops.batched_nms; ssd_fast knows torchvision up to 0.29"
        )
    ours = SimpleNamespace(**(vars(names["box_ops"]) | {"batched_nms": batched_nms}))
    rebound = FunctionType(
        method.__code__,
        {**names, "box_ops": ours},
        method.__name__,
        method.__defaults__,
        method.__closure__,
    )
    rebound.__kwdefaults__ = method.__kwdefaults__
    rebound.__doc__ = method.__doc__
    return rebound


def _assign_targets_to_proposals(
    heads: Any, proposals: list[Tensor], gt_boxes: list[Tensor], gt_labels: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Object and label of each proposal of each image: see `RoIHeads` of torchvision."""
    matcher = heads.proposal_matcher
    if type(matcher) is not Matcher or matcher.allow_low_quality_matches:
        found: tuple[list[Tensor], list[Tensor]] = RoIHeads.assign_targets_to_proposals(
            heads, proposals, gt_boxes, gt_labels
        )
        return found
    banded = matcher.low_threshold < matcher.high_threshold
    objects, labels = [], []
    for candidates, boxes, classes in zip(proposals, gt_boxes, gt_labels, strict=True):
        owner = match(
            candidates.float(),
            boxes.float(),
            torch.tensor([0, boxes.shape[0]], device=boxes.device),
            iou_threshold=matcher.high_threshold,
            low_threshold=matcher.low_threshold if banded else None,
            assign="none",
        )[0].long()
        objects.append(owner.clamp(min=0))
        label = torch.where(owner == matcher.BETWEEN_THRESHOLDS, -1, 0)
        if boxes.shape[0]:
            label = torch.where(owner >= 0, classes[objects[-1]].long(), label)
        labels.append(label)
    return objects, labels
