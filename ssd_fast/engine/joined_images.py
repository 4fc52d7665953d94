# SPDX-License-Identifier: BSD-3-Clause
"""The detections and objects of all images in one piece, checked, for the rules that score them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ssd_fast.boxes import box_area
from ssd_fast.data.default_device import cpu_by_default

__all__ = ["JoinedImages", "Rows", "join_images"]

Rows: TypeAlias = dict[str, Tensor]


class JoinedImages(NamedTuple):
    """The rows of all images by column: boxes, labels, images and key of both, and more of each."""

    found: Rows  # scores (D,) too; ascending label, then descending score
    there: Rows  # areas (N,), difficult (N,) and ignore (N,) too
    num_classes: int


@cpu_by_default
def join_images(
    detections: Sequence[Rows], targets: Sequence[Rows], num_classes: int
) -> JoinedImages:
    """Checks all images and puts them together, which takes longer than to score them.

    Args:
        detections: one dict an image: boxes (D, 4), scores (D,), labels (D,).
        targets: one dict an image: boxes (N, 4), labels (N,), and optionally difficult (N,) bool,
            ignore or iscrowd (N,) bool, area (N,).
        num_classes: classes with background.

    Returns:
        All rows.

    Raises:
        ValueError: something is missing or does not fit; names the image.
    """
    if len(detections) != len(targets):
        raise ValueError(
            f"detections: expected one for each of {len(targets)} targets, got {len(detections)}"
        )
    if num_classes < 2:
        raise ValueError(f"num_classes: expected 2 or more, background included, got {num_classes}")
    found = _join("detections", detections, ("boxes", "labels", "scores"), num_classes)
    there = _join("targets", targets, ("boxes", "labels"), num_classes)
    order = found["scores"].argsort(descending=True, stable=True)
    order = order[found["labels"][order].argsort(stable=True)]
    found = {name: column[order] for name, column in found.items()}
    for rows in (found, there):
        rows["key"] = rows["images"] * num_classes + rows["labels"]
    return JoinedImages(found, there, num_classes)


def _join(
    name: str, images: Sequence[Rows], needed: tuple[str, ...], num_classes: int
) -> dict[str, Tensor]:
    """The images' columns in one piece each, checked, on the CPU, and the image of each row."""
    counts = [_check_shapes(name, i, rows, needed) for i, rows in enumerate(images)]
    of = torch.arange(len(images)).repeat_interleave(torch.tensor(counts, dtype=torch.int64))
    joined = {"images": of}
    for column, empty in (("boxes", torch.zeros(0, 4)), ("labels", torch.zeros(0).long())):
        joined[column] = torch.cat([empty, *(rows[column].detach().cpu() for rows in images)])
    boxes, labels = joined["boxes"].double(), joined["labels"].long()
    bad = ((labels < 1) | (labels >= num_classes)).nonzero()
    if bad.numel():
        raise ValueError(
            f"{name}[{int(of[bad[0]])}]: expected labels from 1 to {num_classes - 1}, "
            f"got {int(labels[bad[0]])}"
        )
    joined |= {"boxes": boxes, "labels": labels}
    if "scores" in needed:
        scores = [torch.zeros(0), *(rows["scores"].detach().cpu() for rows in images)]
        joined["scores"] = torch.cat(scores).double()
        broken = joined["scores"].isnan().nonzero()
        if broken.numel():
            image = int(of[broken[0]])
            row = int(broken[0]) - sum(counts[:image])
            raise ValueError(f"{name}[{image}]: scores[{row}] is NaN")
        return joined
    joined["difficult"] = _flags(images, counts, "difficult")
    joined["ignore"] = _flags(images, counts, "ignore") | _flags(images, counts, "iscrowd")
    areas = zip(images, box_area(boxes).split(counts) if counts else (), strict=True)
    parts = [rows["area"].detach().cpu().double() if "area" in rows else own for rows, own in areas]
    joined["areas"] = torch.cat([torch.zeros(0, dtype=torch.float64), *parts])
    return joined


def _check_shapes(name: str, image: int, rows: Rows, needed: tuple[str, ...]) -> int:
    """How many rows an image has, once its columns are known to be there and to fit."""
    missing = [column for column in needed if column not in rows]
    if missing:
        raise ValueError(f"{name}[{image}]: expected {' and '.join(missing)} beside {list(rows)}")
    n = rows["labels"].numel()
    optional = ("difficult", "ignore", "iscrowd", "area") if "scores" not in needed else ()
    for column in (*needed, *(c for c in optional if c in rows)):
        expected = (n, 4) if column == "boxes" else (n,)
        if tuple(rows[column].shape) != expected:
            raise ValueError(
                f"{name}[{image}]: expected {column} {expected} beside {n} labels, got"
                f" {tuple(rows[column].shape)}"
            )
    return n


def _flags(images: Sequence[Rows], counts: list[int], column: str) -> Tensor:
    """A column of booleans, false for images that lack it."""
    parts = [
        rows[column].detach().cpu().bool() if column in rows else torch.zeros(n, dtype=torch.bool)
        for rows, n in zip(images, counts, strict=True)
    ]
    return torch.cat([torch.zeros(0, dtype=torch.bool), *parts])
