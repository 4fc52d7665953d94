# SPDX-License-Identifier: BSD-3-Clause
"""Datasets: generated scenes and folders in VOC layout, both as uint8 images with pixel boxes."""

from ssd_fast.data.collate import collate
from ssd_fast.data.shapes import ShapesDataset
from ssd_fast.data.voc import Problem, VOCDataset

__all__ = ["Problem", "ShapesDataset", "VOCDataset", "collate"]
