# SPDX-License-Identifier: BSD-3-Clause
"""The operators: one file each, with contract, public function, reference, schema and fake."""

from ssd_fast.ops.match import match, match_reference
from ssd_fast.ops.mine import mine, mine_reference
from ssd_fast.ops.multibox_loss import multibox_loss, multibox_loss_reference

__all__ = [
    "match",
    "match_reference",
    "mine",
    "mine_reference",
    "multibox_loss",
    "multibox_loss_reference",
]
