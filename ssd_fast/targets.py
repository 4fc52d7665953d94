# SPDX-License-Identifier: BSD-3-Clause
"""Targets: the ground truth of a batch as three flat tensors, and how to pack and check it."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Literal, NamedTuple, NoReturn

import torch
from torch import Tensor

from ssd_fast.assignment import IGNORE_LABEL
from ssd_fast.boxes import box_area

__all__ = ["Targets", "check_one_for_each"]

_CPU = torch.device("cpu")
_INTEGERS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
_MARKS = ("ignore", "iscrowd")
_NOT_BOXES = {torch.bool, torch.complex32, torch.complex64, torch.complex128}

_Image = tuple[Tensor, Tensor, list[Tensor]]
"""Boxes, labels, and what marks regions to ignore."""


class Targets(NamedTuple):
    """The objects of a batch of B images, ragged: image i owns rows `offsets[i]:offsets[i + 1]`.

    Rows from `offsets[B]` on belong to no image and are ignored, so that N may be a fixed capacity
    and every shape static. All tensors are on one device.
    """

    boxes: Tensor
    """(N, 4) float32 corners, in the unit of the priors."""
    labels: Tensor
    """(N,) int64 classes, background excluded; -1 is a region to ignore."""
    offsets: Tensor
    """(B + 1,) int64, not decreasing, starting at 0."""
    dropped: int = 0
    """How many broken objects `pack` left out (with `invalid="drop"`)."""

    @property
    def num_images(self) -> int:
        """B, the number of images."""
        return self.offsets.shape[0] - 1

    @classmethod
    def pack(
        cls,
        targets: Sequence[Mapping[str, Tensor]],
        *,
        num_classes: int | None = None,
        capacity: int | None = None,
        background_index: int | None = 0,
        validate: bool = True,
        invalid: Literal["raise", "drop"] = "raise",
        device: torch.device | str | int | None = None,
    ) -> "Targets":
        """Packs torchvision's list of dictionaries, and refuses what no detector can learn from.

        A box that crosses the border of its image, or lies outside it, is accepted as it is; one
        that overlaps no prior trains nothing.

        Args:
            targets: one dictionary an image, with `"boxes"` (n, 4), corners, of any floating or
                integer dtype (converted to float32), and `"labels"` (n,), of any integer dtype
                (converted to int64). n may be 0; then the labels' dtype is free. `"ignore"` or
                COCO's `"iscrowd"` (n,), bool or 0 and 1, marks regions to ignore: crowds, or
                difficult objects. Their label becomes -1, whatever it was, and the loss takes
                priors inside them for neither object nor background. Other keys are left aside.
            num_classes: C, background included; None does not check labels from above.
            capacity: number of rows N of the result; the rows behind the objects are zeros. None
                is as many as there are objects.
            background_index: the class that no object may carry; None for no such class.
            validate: check values; False checks shapes and dtypes alone, and so waits for no
                device.
            invalid: "raise", or "drop" to leave broken objects out and count them in `dropped`.
            device: where the result goes; None is where the tensors are.

        Returns:
            The batch's `Targets`, in memory of its own.

        Raises:
            TypeError: an entry that is not a dictionary of tensors, or labels or marks that are
                not integers.
            ValueError: a wrong shape, tensors on different devices with `device=None`, more objects
                than `capacity`, or, with `validate`, a box that is not finite or has no area, or a
                label that is the background or outside [0, C) and not marked.

        Example:
            >>> image = {"boxes": torch.tensor([[0.1, 0.2, 0.5, 0.6]]), "labels": torch.tensor([3])}
            >>> Targets.pack([image, image], num_classes=21).offsets
            tensor([0, 1, 2])
        """
        if invalid not in ("raise", "drop"):
            raise ValueError(f"invalid: expected 'raise' or 'drop', got {invalid!r}")
        images = [_boxes_and_labels(i, target) for i, target in enumerate(targets)]
        boxes, labels, ignored = _concatenate(images, device)
        counts = [b.shape[0] for b, _, _ in images]
        dropped = 0
        if validate and not _is_sound(boxes, labels, num_classes, background_index):
            keep = _is_class(labels, num_classes, background_index)
            if ignored is not None:
                keep |= ignored
            keep &= _has_area(boxes)
            dropped = keep.numel() - int(keep.sum())
        if dropped:
            if invalid == "raise":
                _raise_first(boxes, labels, keep, counts, num_classes, background_index)
            counts = [int(part.sum()) for part in torch.split(keep, counts)]
            boxes, labels = boxes[keep], labels[keep]
        if capacity is not None:
            boxes, labels = _pad(boxes, labels, capacity)
        offsets = torch.tensor([0, *accumulate(counts)], dtype=torch.int64, device="cpu")
        packed = cls(boxes, labels, offsets, dropped)
        place = boxes.device if device is None else torch.device(device)
        if boxes.is_cpu and place == _CPU:
            return packed
        # No wait for a GPU: from memory that is not pinned, a copy to it is safe when it returns.
        return packed.to(place, non_blocking=place.type == "cuda")

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> "Targets":
        """The same targets on another device; tensors already there are shared.

        Args:
            device: where to.
            non_blocking: as in `torch.Tensor.to`.

        Returns:
            `Targets` on `device`.
        """
        return Targets(
            self.boxes.to(device, non_blocking=non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.offsets.to(device, non_blocking=non_blocking),
            self.dropped,
        )


def _boxes_and_labels(image: int, target: Mapping[str, Tensor]) -> _Image:
    """The tensors of one image, checked for everything but their values."""
    if not isinstance(target, Mapping):
        raise TypeError(
            f"targets[{image}]: expected a dictionary with 'boxes' and 'labels',"
            f" got {type(target).__name__}"
        )
    try:
        boxes, labels = target["boxes"], target["labels"]
    except KeyError as missing:
        raise ValueError(
            f"targets[{image}]: no {missing} among its keys {list(target)}; 'boxes' (n, 4) and"
            " 'labels' (n,) are needed"
        ) from None
    for name, value in (("boxes", boxes), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"targets[{image}]['{name}']: expected a tensor, got {type(value).__name__};"
                " convert it with torch.as_tensor"
            )
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(
            f"targets[{image}]['boxes']: expected shape (n, 4), got {tuple(boxes.shape)};"
            " an image without objects has torch.zeros(0, 4)"
        )
    if labels.shape != boxes.shape[:1]:
        raise ValueError(
            f"targets[{image}]['labels']: expected shape ({boxes.shape[0]},), one label for each of"
            f" its boxes, got {tuple(labels.shape)}"
        )
    if boxes.dtype in _NOT_BOXES:
        raise TypeError(f"targets[{image}]['boxes']: expected numbers, got {boxes.dtype}")
    if labels.dtype not in _INTEGERS and labels.shape[0]:
        raise TypeError(
            f"targets[{image}]['labels']: expected integers, got {labels.dtype};"
            " convert them with .long()"
        )
    return boxes, labels, [_marks(image, target, key) for key in _MARKS if key in target]


def _marks(image: int, target: Mapping[str, Tensor], key: str) -> Tensor:
    """Which objects of one image are regions to ignore, (n,) bool, as one key says."""
    marks, count = target[key], target["boxes"].shape[0]
    if not isinstance(marks, Tensor):
        raise TypeError(
            f"targets[{image}]['{key}']: expected a tensor, got {type(marks).__name__};"
            " convert it with torch.as_tensor"
        )
    if marks.shape != (count,):
        raise ValueError(
            f"targets[{image}]['{key}']: expected shape ({count},), one mark for each of its"
            f" boxes, got {tuple(marks.shape)}"
        )
    if marks.dtype != torch.bool and marks.dtype not in _INTEGERS and count:
        raise TypeError(f"targets[{image}]['{key}']: expected bool or integers, got {marks.dtype}")
    return marks.bool()


def _concatenate(
    images: list[_Image], device: torch.device | str | int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All boxes (N, 4) float32, labels (N,) int64 and what is to be ignored (N,), on one device.

    None where nothing is marked.
    """
    devices = {x.device for boxes, labels, marks in images for x in (boxes, labels, *marks)}
    if len(devices) > 1:
        if device is None:
            names = ", ".join(sorted(map(str, devices)))
            raise ValueError(
                f"targets: tensors on several devices ({names}); say where the batch goes with"
                " device=..."
            )
        images = [
            (boxes.to(device), labels.to(device), [x.to(device) for x in marks])
            for boxes, labels, marks in images
        ]
    if not images:
        none = torch.zeros(0, dtype=torch.int64)
        return torch.zeros(0, 4, dtype=torch.float32), none, none.bool()
    boxes = torch.cat([b if b.dtype == torch.float32 else b.to(torch.float32) for b, *_ in images])
    labels = torch.cat([x if x.dtype == torch.int64 else x.to(torch.int64) for _, x, _ in images])
    ignored = None
    if any(marks for *_, marks in images):
        marked = [
            torch.stack([torch.zeros_like(x, dtype=torch.bool), *m]).any(0) for _, x, m in images
        ]
        ignored = torch.cat(marked)
        labels = labels.masked_fill(ignored, IGNORE_LABEL)
    return boxes, labels, ignored


def _is_sound(
    boxes: Tensor, labels: Tensor, num_classes: int | None, background_index: int | None
) -> bool:
    """Whether the extremes of all objects tell that every one of them is valid.

    What `_is_class` and `_has_area` ask of each object, in a fifth of the time; False says nothing.
    On a GPU it stays unasked, for each extreme would be waited for.
    """
    if boxes.shape[0] == 0:
        return True
    if not boxes.is_cpu:
        return False
    x1, y1, x2, y2 = boxes.unbind(1)
    width, height = x2 - x1, y2 - y1
    # Numbers, because to compare a tensor takes longer than to find its extremes. A NaN is both
    # extremes and fails every comparison.
    least_area, greatest_area = (extreme.item() for extreme in torch.aminmax(width * height))
    lowest, highest = (extreme.item() for extreme in torch.aminmax(labels))
    return (
        width.min().item() > 0
        and height.min().item() > 0
        and least_area > 0
        and greatest_area < math.inf
        and lowest >= 0
        and (num_classes is None or highest < num_classes)
        and (background_index is None or not lowest <= background_index <= highest)
    )


def _has_area(boxes: Tensor) -> Tensor:
    """(N,) bool: which boxes (N, 4) are finite, not inverted, and have a float32 area above 0."""
    size = boxes[:, 2:] - boxes[:, :2]
    area = box_area(boxes)
    return (size > 0).all(dim=1) & (area > 0) & (area < float("inf"))


def check_one_for_each(targets: object, images: int) -> None:
    """Raises unless there is one target for each image.

    Args:
        targets: what should be a list of dictionaries.
        images: how many there are.

    Raises:
        TypeError: no list.
        ValueError: another number of targets; the message names both.
    """
    if not isinstance(targets, Sequence):
        raise TypeError(
            f"targets: expected a list of dictionaries, one for each of the {images} images, got"
            f" {type(targets).__name__}"
        )
    if len(targets) != images:
        raise ValueError(
            f"targets: expected one dictionary for each of the {images} images, got {len(targets)}"
        )


def _is_class(labels: Tensor, num_classes: int | None, background_index: int | None) -> Tensor:
    """(N,) bool: which labels (N,) are classes other than the background."""
    valid = labels >= 0
    if background_index is not None:
        valid &= labels != background_index
    return valid if num_classes is None else valid & (labels < num_classes)


def _raise_first(
    boxes: Tensor,
    labels: Tensor,
    keep: Tensor,
    counts: list[int],
    num_classes: int | None,
    background_index: int | None,
) -> NoReturn:
    """Raises ValueError about the first broken object."""
    broken = torch.nonzero(~keep).flatten().tolist()
    row, image = broken[0], 0
    box, label = boxes[row].tolist(), int(labels[row])
    has_area = bool(_has_area(boxes[row : row + 1]))
    while row >= counts[image]:
        row -= counts[image]
        image += 1
    more = f" ({len(broken) - 1} more like it)" if len(broken) > 1 else ""
    remedy = "; correct it, or leave such objects out with invalid='drop'"
    if not has_area:
        problem = f"['boxes'][{row}] is {tuple(box)}: expected finite corners, x1 < x2 and y1 < y2"
    elif label == background_index:
        problem = (
            f"['labels'][{row}] is {label}, the background: objects have labels of their own,"
            " in torchvision's convention from 1 on"
        )
    else:
        upper = "" if num_classes is None else f" and less than num_classes = {num_classes}"
        if label == IGNORE_LABEL:
            upper += " (mark a region to ignore in 'ignore')"
        problem = f"['labels'][{row}] is {label}: expected at least 0{upper}"
    raise ValueError(f"targets[{image}]{problem}{more}{remedy}")


def _pad(boxes: Tensor, labels: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """Both with rows of zeros appended up to `capacity`."""
    missing = capacity - boxes.shape[0]
    if missing < 0:
        raise ValueError(
            f"capacity: the batch has {boxes.shape[0]} objects, more than {capacity}; raise it"
        )
    return (
        torch.cat([boxes, boxes.new_zeros(missing, 4)]),
        torch.cat([labels, labels.new_zeros(missing)]),
    )
