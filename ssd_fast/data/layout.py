# SPDX-License-Identifier: BSD-3-Clause
"""find_layout: whether folders are laid out like VOC's or like COCO's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ssd_fast.data.coco_layout import find_sets
from ssd_fast.data.voc_folder import find_voc_folders

__all__ = ["find_layout"]


def find_layout(roots: Sequence[Path]) -> Literal["voc", "coco"]:
    """The layout of folders.

    Args:
        roots: one folder, or several in VOC layout.

    Returns:
        "voc" or "coco".

    Raises:
        ValueError: a folder is missing or empty, has neither layout, or has both.
    """
    for root in roots:
        if not root.is_dir():
            raise ValueError(f"{root}: there is no such folder")
        if not any(root.iterdir()):
            raise ValueError(
                f"{root}: the folder is empty; expected one in VOC layout (Annotations, JPEGImages,"
                " ImageSets/Main) or in COCO's (images, and annotations in JSON)"
            )
    coco = [bool(find_sets(root)) for root in roots]
    try:
        find_voc_folders(roots)
    except ValueError as error:
        if all(coco):
            return "coco"
        raise ValueError(
            f"{error} Nor are there annotations in COCO's format: annotations/instances_*.json or"
            " _annotations.coco.json"
        ) from None
    if any(coco):
        raise ValueError(
            f"{roots[coco.index(True)]}: holds annotations of VOC and of COCO; say which to take:"
            " voc:PATH or coco:PATH"
        )
    return "voc"
