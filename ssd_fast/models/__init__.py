# SPDX-License-Identifier: BSD-3-Clause
"""Detectors: SSD and its backbones."""

from ssd_fast.models.ssd import SSD
from ssd_fast.models.ssd_vgg16 import ssd300_vgg16, ssd512_vgg16

__all__ = ["SSD", "ssd300_vgg16", "ssd512_vgg16"]
