# SPDX-License-Identifier: BSD-3-Clause
"""torchvision's SSD on our kernels: the forward of 0.28, with everything but the network replaced.

Only `accelerate` imports this module, and only when a model of torchvision is passed.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD, SSDHead, SSDScoringHead
from torchvision.models.detection.ssdlite import SSDLiteHead

from ssd_fast.integrations.subclasses import (
    CACHE,
    check_not_overridden,
    check_not_set,
    make_subclass,
)
from ssd_fast.ops.detect import detect
from ssd_fast.ops.multibox_loss import multibox_loss
from ssd_fast.targets import Targets, check_one_for_each

__all__ = ["accelerated_class"]

REPLACED = {
    "anchors": "built once for each image size",
    "matching": "ssd_fast.ops.multibox_loss",
    "loss": "ssd_fast.ops.multibox_loss",
    "head outputs": "read in place, without permute and cat",
    "decoding": "ssd_fast.ops.detect",
    "nms": "ssd_fast.ops.detect",
}

PASSED_BY = ("forward", "compute_loss", "postprocess_detections", "eager_outputs")
"""Methods of an SSD that are replaced, or no longer called."""

NOT_CALLED = PASSED_BY[1:]
"""Of these, the ones that may not be set later either; a forward that is set is called."""

# One class for each that was accelerated, so that two models of a class stay of one class.
_classes: dict[type[nn.Module], type[nn.Module]] = {}


def changes(model: SSD) -> list[tuple[nn.Module, type[nn.Module]]]:
    """The module that changes its class, and to which.

    Raises:
        TypeError: the model or its class overrides a method that the new forward would pass by.
    """
    check_not_set(model, PASSED_BY)
    return [(model, accelerated_class(type(model)))]


def accelerated_class(original: type[nn.Module]) -> type[nn.Module]:
    """A subclass of `original`, an SSD, whose forward runs on our kernels.

    Raises:
        TypeError: `original` overrides a method that the new forward would pass by.
    """
    if original not in _classes:
        check_not_overridden(original, SSD, PASSED_BY)
        members = {"forward": _forward}
        _classes[original] = make_subclass(original, members, REPLACED, accelerated_class)
    return _classes[original]


def _forward(
    model: Any, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
) -> dict[str, Tensor] | list[dict[str, Tensor]]:
    """Losses in training, detections in evaluation: see `torchvision.models.detection.ssd.SSD`."""
    check_not_set(model, NOT_CALLED)
    if targets is not None:
        check_one_for_each(targets, len(images))
    if model.training:
        _check_targets(targets)
    original_sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
    batch, targets = model.transform(images, targets)
    packed = None
    if targets is not None:
        packed = _pack(targets) if model.training else None
        _check_values(targets, packed, _num_classes(model.head))
    features = model.backbone(batch.tensors)
    features = [features] if isinstance(features, Tensor) else list(features.values())
    deltas, logits = _head_outputs(model.head, features)
    anchors = _anchors(model, batch, features)
    if packed is not None:
        if isinstance(logits, Tensor) and logits.shape[-1] != _num_classes(model.head):
            _check_values(targets, packed, logits.shape[-1])
        return _losses(model, deltas, logits, anchors, packed)
    return _detections(model, deltas, logits, anchors, batch, original_sizes)


def _check_targets(targets: list[dict[str, Tensor]] | None) -> None:
    """Torchvision's own checks, with its messages."""
    if targets is None:
        torch._assert(False, "targets should not be none when in training mode")
        return
    for target in targets:
        boxes = target["boxes"]
        torch._assert(
            isinstance(boxes, Tensor),
            f"Expected target boxes to be of type Tensor, got {type(boxes)}.",
        )
        torch._assert(
            boxes.dim() == 2 and boxes.shape[-1] == 4,
            f"Expected target boxes to be a tensor of shape [N, 4], got {boxes.shape}.",
        )


def _pack(targets: list[dict[str, Tensor]]) -> Targets:
    # Without marks of what to ignore: torchvision trains on crowds as on any object.
    objects = [{key: target[key] for key in ("boxes", "labels")} for target in targets]
    return Targets.pack(objects, validate=False)


def _num_classes(head: Any) -> int | None:
    """C, background included; None of a head that tells it by its outputs alone."""
    part = head.classification_head if type(head) in (SSDHead, SSDLiteHead) else None
    return part.num_columns if isinstance(part, SSDScoringHead) else None


def _check_values(
    targets: list[dict[str, Tensor]], packed: Targets | None, num_classes: int | None
) -> None:
    """Torchvision's check for boxes without area and, with `packed`, for what would train nothing.

    In one pass and at most one synchronisation.
    """
    boxes = torch.cat([target["boxes"] for target in targets])
    broken = (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
    if packed is not None:
        broken |= ~packed.boxes.isfinite().all(dim=1) | (packed.labels < 0)
        if num_classes is not None:
            broken |= packed.labels >= num_classes
    if not bool(broken.any()):
        return
    for index, target in enumerate(targets):
        degenerate = (target["boxes"][:, 2:] <= target["boxes"][:, :2]).any(dim=1)
        if bool(degenerate.any()):
            torch._assert(
                False,
                "All bounding boxes should have positive height and width. Found invalid box "
                f"{target['boxes'][degenerate][0].tolist()} for target at index {index}.",
            )
    _raise_first(targets, int(broken.nonzero()[0]), num_classes)


def _raise_first(targets: list[dict[str, Tensor]], row: int, num_classes: int | None) -> NoReturn:
    """Raises ValueError about object `row` of the batch."""
    image = 0
    while row >= len(targets[image]["boxes"]):
        row -= len(targets[image]["boxes"])
        image += 1
    box, label = targets[image]["boxes"][row], int(targets[image]["labels"][row])
    if not bool(box.float().isfinite().all()):
        problem = f"['boxes'][{row}] is {tuple(box.tolist())}: expected finite corners"
    else:
        upper = "" if num_classes is None else f" and less than the head's {num_classes} classes"
        problem = f"['labels'][{row}] is {label}: expected at least 0{upper}"
    raise ValueError(f"targets[{image}]{problem}; correct the object, or leave it out")


def _head_outputs(head: Any, features: list[Tensor]) -> tuple[Any, Any]:
    """Deltas and logits: raw maps where the head is torchvision's own, else what it returns."""
    if type(head) in (SSDHead, SSDLiteHead) and not _has_hooks(head):
        parts = head.regression_head, head.classification_head
        if all(_is_plain(part, len(features)) for part in parts):
            deltas, logits = (
                [module(x) for module, x in zip(part.module_list, features, strict=True)]
                for part in parts
            )
            return deltas, logits
    outputs = head(features)
    return outputs["bbox_regression"], outputs["cls_logits"]


def _is_plain(part: Any, levels: int) -> bool:
    return (
        isinstance(part, SSDScoringHead)
        and type(part).forward is SSDScoringHead.forward
        and len(part.module_list) == levels
        and not _has_hooks(part)
    )


def _has_hooks(module: Any) -> bool:
    """Whether calling the module does more than its forward."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks)


def _anchors(model: Any, batch: ImageList, features: list[Tensor]) -> Tensor:
    """(P, 4) float32 corners in pixels of the resized images, built once for each size."""
    generator = model.anchor_generator
    one = ImageList(batch.tensors[:1], batch.image_sizes[:1] or [(1, 1)])
    if type(generator) is not DefaultBoxGenerator:
        built: Tensor = generator(one, features)[0]
        return built.float()
    grids = tuple(tuple(x.shape[-2:]) for x in features)
    size = tuple(batch.tensors.shape[-2:])
    key = (id(generator), repr(generator), grids, size, features[0].dtype, features[0].device)
    held = model.__dict__.get(CACHE)
    if held is not None and held[0] == key and not torch.compiler.is_exporting():
        kept: Tensor = held[1]
        return kept
    # An inference tensor, kept, could not take part in training later.
    with torch.inference_mode(False), torch.no_grad():
        anchors: Tensor = generator(one, features)[0].float()
    if _outlives_call(anchors):
        model.__dict__[CACHE] = key, anchors
    return anchors


def _outlives_call(x: Tensor) -> bool:
    """Whether a tensor has values of its own: none that a compiler traces has."""
    return (
        type(x) is Tensor
        and not torch.compiler.is_compiling()
        and not torch._is_functional_tensor(x)
    )


def _variances(coder: Any) -> tuple[float, ...]:
    if type(coder) is not BoxCoder:
        raise TypeError(
            f"box_coder: expected torchvision's BoxCoder, got {type(coder).__name__}; "
            "ssd_fast.restore(model) brings back the original"
        )
    return tuple(1.0 / weight for weight in coder.weights)


def _losses(
    model: Any, deltas: Any, logits: Any, anchors: Tensor, packed: Targets
) -> dict[str, Tensor]:
    matcher = model.proposal_matcher
    if type(matcher) is not SSDMatcher:
        raise TypeError(
            f"proposal_matcher: expected torchvision's SSDMatcher, got {type(matcher).__name__}; "
            "ssd_fast.restore(model) brings back the original"
        )
    box_loss, class_loss, _ = multibox_loss(
        deltas,
        logits,
        anchors,
        packed.boxes,
        packed.labels,
        packed.offsets,
        iou_threshold=matcher.high_threshold,
        ignore_threshold=None,
        ratio=model.neg_to_pos_ratio,
        variances=_variances(model.box_coder),
    )
    return {"bbox_regression": box_loss, "classification": class_loss}


def _bounds(batch: ImageList) -> tuple[float, float, float, float] | Tensor:
    """What boxes are clipped to: the size of the images, or (B, 4) where they differ."""
    bounds = [(0.0, 0.0, float(width), float(height)) for height, width in batch.image_sizes]
    if len(set(bounds)) == 1:
        return bounds[0]
    rows = torch.tensor(bounds, dtype=torch.float32, device="cpu").reshape(-1, 4)
    # A copy to a GPU without a wait for it.
    return rows.to(batch.tensors.device, non_blocking=batch.tensors.is_cuda)


def _detections(
    model: Any,
    deltas: Any,
    logits: Any,
    anchors: Tensor,
    batch: ImageList,
    original_sizes: list[tuple[int, int]],
) -> list[dict[str, Tensor]]:
    detections = detect(
        deltas,
        logits,
        anchors,
        score_threshold=model.score_thresh,
        top_k=model.topk_candidates,
        iou_threshold=model.nms_thresh,
        max_detections=model.detections_per_img,
        variances=_variances(model.box_coder),
        clip=_bounds(batch),
        max_log_scale=model.box_coder.bbox_xform_clip,
    )
    result: list[dict[str, Tensor]] = model.transform.postprocess(
        detections.to_list(), batch.image_sizes, original_sizes
    )
    return result
