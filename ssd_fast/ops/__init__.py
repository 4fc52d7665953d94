# SPDX-License-Identifier: BSD-3-Clause
"""The operators: one file each, with contract, public function, reference, schema and fake.

All of them are known to `torch.compile`. Under `torch.vmap` an operator is called once for each
slice; `torch.func.grad`, `vjp` and `jacrev` go through the losses, `encode` and `decode`.
Forward-mode derivatives (`jvp`, `jacfwd`, `hessian`) there are none: PyTorch says so.
"""

from ssd_fast.ops.decode import decode, decode_reference, encode, encode_reference
from ssd_fast.ops.detect import detect, detect_reference
from ssd_fast.ops.focal_loss import focal_loss, focal_loss_reference
from ssd_fast.ops.heads_loss import heads_loss, heads_loss_reference
from ssd_fast.ops.match import match, match_reference
from ssd_fast.ops.mine import mine, mine_reference
from ssd_fast.ops.multibox_loss import multibox_loss, multibox_loss_reference
from ssd_fast.ops.nms import (
    batched_nms,
    batched_nms_reference,
    nms,
    nms_padded,
    nms_padded_reference,
    nms_reference,
)

__all__ = [
    "batched_nms",
    "batched_nms_reference",
    "decode",
    "decode_reference",
    "detect",
    "detect_reference",
    "encode",
    "encode_reference",
    "focal_loss",
    "focal_loss_reference",
    "heads_loss",
    "heads_loss_reference",
    "match",
    "match_reference",
    "mine",
    "mine_reference",
    "multibox_loss",
    "multibox_loss_reference",
    "nms",
    "nms_padded",
    "nms_padded_reference",
    "nms_reference",
]
