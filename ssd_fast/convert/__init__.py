# SPDX-License-Identifier: BSD-3-Clause
"""Weights of other SSD300s: amdegroot's, torchvision's, lufficc's and sgrvinod's, read and written.

    model = ssd_fast.convert.load_ssd300("ssd300_mAP_77.43_v2.pth")

builds the network with the priors and the normalisation that the weights were trained with, so that
its outputs are equal. All five layouts name the same 71 tensors; none needs a permutation.

NVIDIA's SSD300 is a ResNet, which this package has no model of: `import_nvidia_state_dict` fits it
to an `SSD` that the caller builds around NVIDIA's own backbone.

What is not weights does not come along. Labels keep their numbers: torchvision's COCO has 91
classes with holes, lufficc's 81. Decoding clamps sizes at 1000 / 16 of the prior as torchvision
does, where the others let the exponential overflow.
"""

from ssd_fast.convert.checkpoints import load_ssd300, load_weights, read_weights
from ssd_fast.convert.nvidia import import_nvidia_state_dict
from ssd_fast.convert.state_dicts import export_state_dict, import_state_dict, layout_of

__all__ = [
    "export_state_dict",
    "import_nvidia_state_dict",
    "import_state_dict",
    "layout_of",
    "load_ssd300",
    "load_weights",
    "read_weights",
]
