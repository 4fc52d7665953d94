# SPDX-License-Identifier: BSD-3-Clause
"""The losses of a batch in Triton, from those of its images: summed and normalised."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_fast.kernels.loss_rows import IMAGES, batch_positives

__all__ = ["launch_loss_sums", "no_rows"]


@triton.jit(do_not_specialize=["B"])
def _sum_kernel(
    image_loss_ptr,  # (B, 2) float32
    num_positives_ptr,  # (B,) int64
    box_loss_ptr,  # () float32, out
    class_loss_ptr,  # () float32, out
    B,
    NORMALIZER: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """The losses of the batch: one program, in float64."""
    box = tl.zeros((BLOCK_B,), tl.float64)
    classes = tl.zeros((BLOCK_B,), tl.float64)
    first = B * 0
    while first < B:
        b = first + tl.arange(0, BLOCK_B)
        weight = tl.full((BLOCK_B,), 1.0, tl.float64)
        if NORMALIZER == 1:
            positives = tl.load(num_positives_ptr + b, b < B, other=1)
            weight = 1.0 / tl.maximum(positives, 1).to(tl.float64)
        box += weight * tl.load(image_loss_ptr + 2 * b, b < B, other=0.0).to(tl.float64)
        classes += weight * tl.load(image_loss_ptr + 2 * b + 1, b < B, other=0.0).to(tl.float64)
        first += BLOCK_B
    divisor = tl.full((), 1, tl.int64)
    if NORMALIZER == 0:
        divisor = batch_positives(num_positives_ptr, B, BLOCK_B)
    if NORMALIZER == 1:
        divisor = divisor * B
    tl.store(box_loss_ptr, (tl.sum(box, axis=0) / divisor.to(tl.float64)).to(tl.float32))
    tl.store(class_loss_ptr, (tl.sum(classes, axis=0) / divisor.to(tl.float64)).to(tl.float32))


def launch_loss_sums(
    image_loss: Tensor, num_positives: Tensor, normalizer: int
) -> tuple[Tensor, Tensor]:
    """Sums and normalises: one launch of one program, so that the order is fixed.

    Args:
        image_loss: (B, 2) float32, the box loss and the class loss of each image.
        num_positives: (B,) int64.
        normalizer: 0 the positives of the batch, 1 those of each image, 2 none.

    Returns:
        Box loss and class loss, () float32.
    """
    box_loss, class_loss = image_loss.new_empty(()), image_loss.new_empty(())
    _sum_kernel[(1,)](
        image_loss,
        num_positives,
        box_loss,
        class_loss,
        image_loss.size(0),
        NORMALIZER=normalizer,
        BLOCK_B=IMAGES,
        enable_fp_fusion=True,
    )
    return box_loss, class_loss


def no_rows(priors: Tensor, images: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the losses return where there are no images or no priors: zeros, and no codes."""
    positives = priors.new_zeros((images,), dtype=torch.int64)
    code = priors.new_empty((images, priors.size(0)), dtype=torch.int32)
    return priors.new_zeros(()), priors.new_zeros(()), positives, code
