# SPDX-License-Identifier: BSD-3-Clause
"""Data: folders in VOC or COCO layout and generated scenes; uint8 images with boxes in pixels."""

from ssd_fast.data.augmentation import Augmentation
from ssd_fast.data.coco import COCODataset
from ssd_fast.data.collate import collate
from ssd_fast.data.images import read_image
from ssd_fast.data.problems import BrokenSample, Problem
from ssd_fast.data.shapes import ShapesDataset
from ssd_fast.data.voc import VOCDataset

__all__ = [
    "Augmentation",
    "BrokenSample",
    "COCODataset",
    "Problem",
    "ShapesDataset",
    "VOCDataset",
    "collate",
    "read_image",
]
