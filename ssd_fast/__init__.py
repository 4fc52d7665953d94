# SPDX-License-Identifier: BSD-3-Clause
"""Fast, exact kernels for SSD and anchor-based detectors on PyTorch."""

from pkgutil import extend_path

# After a plain `pip install .`, Python started in a checkout imports the package from there: this
# line lets it find the compiled module and the kernels in the installed one.
__path__ = extend_path(__path__, __name__)
__version__ = "0.1.0"

import torch  # noqa: F401  loads the libraries that the compiled module links to

from ssd_fast import (
    _C,  # registers the operators' compiled kernels
    compat,
    convert,
    ops,
    priors,
)
from ssd_fast.dense_targets import DenseTargets
from ssd_fast.detections import Detections
from ssd_fast.integrations import accelerate, accelerated, restore
from ssd_fast.models import ssd300_vgg16, ssd512_vgg16
from ssd_fast.multibox import MultiBoxLoss
from ssd_fast.targets import Targets

__all__ = [
    "_C",
    "DenseTargets",
    "Detections",
    "MultiBoxLoss",
    "Targets",
    "accelerate",
    "accelerated",
    "compat",
    "convert",
    "ops",
    "priors",
    "restore",
    "ssd300_vgg16",
    "ssd512_vgg16",
]
