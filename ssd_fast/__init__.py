# SPDX-License-Identifier: BSD-3-Clause
"""Fast, exact kernels for SSD and anchor-based detectors on PyTorch.

Three ways in:

    ssd_fast.accelerate(model)        a detector of torchvision on these kernels, in place;
                                      `accelerated` lists what was replaced, `restore` undoes it
    ssd_fast.MultiBoxLoss(priors)     the loss of SSD, or RetinaNet's, for any detector with anchors
    ssd_fast.ops                      the operators: match, mine, multibox_loss, focal_loss,
                                      heads_loss, encode, decode, detect, nms, batched_nms,
                                      nms_padded, and a reference in plain PyTorch of each

And around them:

    ssd_fast.ssd300_vgg16(21)         SSD300 with torchvision's contract; `ssd512_vgg16`
    ssd_fast.priors                   default boxes by preset, and `PriorBoxes` for any grid
    ssd_fast.Targets, DenseTargets    the ground truth of a batch, packed and checked
    ssd_fast.Detections               what `ops.detect` returns; `to_list` for people
    ssd_fast.compat                   the losses of other SSDs, by their own signatures
    ssd_fast.convert                  weights of other SSDs, read and written

Boxes are corners (x1, y1, x2, y2); class 0 is the background unless `background_index` says
otherwise. `ssd_fast.data` (datasets, augmentation) and `ssd_fast.engine` (training, evaluation,
prediction) are imported by name; the program `ssd-fast` is made of them: `ssd-fast --help`.
"""

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
