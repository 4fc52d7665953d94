# SPDX-License-Identifier: BSD-3-Clause
"""The losses of other SSDs, constructor and `forward` as theirs, on this package's operators.

A training script changes one line:

    from ssd_fast.compat.amdegroot import MultiBoxLoss     # was: from layers.modules import ...
    from ssd_fast.compat.lufficc import MultiBoxLoss       # was: from ssd.modeling.box_head ...
    from ssd_fast.compat.qfgaohao import MultiboxLoss      # was: from vision.nn.multibox_loss ...
    from ssd_fast.compat.sgrvinod import MultiBoxLoss      # was: from model import ...
    from ssd_fast.compat.nvidia import Encoder, Loss       # was: from ssd.utils, ssd.model ...

On healthy input the numbers are theirs, to 1e-5. All take two more arguments, by keyword:
`min_negatives` (0), with which images without objects train, and, where the targets are boxes,
`invalid` ("raise", or "drop" to leave broken objects out). Where theirs fail:

    input                        theirs                          here
    ---------------------------  ------------------------------  ----------------------------------
    an image without objects     an exception from max();        no positives; it trains
                                 lufficc, qfgaohao and NVIDIA    `min_negatives` rows
                                 in the loader
    no positive in the batch     NaN; NVIDIA 0                   0, zero gradients
    a box without area, or not   NaN, at times infinite          ValueError naming image and row, or
    finite                                                       left out; in dense targets its rows
                                                                 train nothing
    a label out of range         IndexError, on CUDA an assert   ValueError naming image and row
                                 that ends the process
    label 0 for an object        sgrvinod: its priors become     ValueError
                                 background
    an object that overlaps no   takes prior 0 from whoever      trains nothing
    prior                        has it
    logits 104 below the         amdegroot: its log-sum-exp      mined by their own loss
    largest of the batch         underflows, so the row counts
                                 as the easiest
    positives on more than a     NVIDIA's first releases count   each counts once
    quarter of an image's rows   some of them twice
    two objects that claim one   sgrvinod, NVIDIA on CUDA: any   the last one, on every device
    prior                        of them
    decode_batch                 NVIDIA overwrites its input     left as it is
"""

from ssd_fast.compat import amdegroot, lufficc, nvidia, qfgaohao, sgrvinod

__all__ = ["amdegroot", "lufficc", "nvidia", "qfgaohao", "sgrvinod"]
