# SPDX-License-Identifier: BSD-3-Clause
"""Softmax cross-entropy without cancellation, in plain PyTorch: the definitions.

Exponentials are taken relative to the target's logit. The loss is then the log1p of the others'
sum, exact to the last digits however small it is, where a log-softmax subtracts two numbers that
are nearly equal.
"""

import torch
from torch import Tensor

__all__ = ["background_key", "cross_entropy", "relative_exponentials"]

# From here on the exponentials of a row are taken relative to its maximum, not its target.
LARGE = 80.0


def background_key(logits: Tensor, background_index: int) -> Tensor:
    """The mining key, (B, P): the sum over c != background of ``exp(x_c - x_background)``."""
    ratios = (logits - logits[..., background_index, None]).exp()
    ratios[..., background_index] = 0
    return ratios.sum(dim=2)


def relative_exponentials(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """``exp(x_c - x_target - shift)`` with 0 for the target itself (n, C), and the shift (n, 1).

    The shift is 0 as long as no exponential overflows: small losses keep all their digits, which
    a log-softmax loses to cancellation.
    """
    target = target.unsqueeze(1)
    difference = (logits - logits.gather(1, target)).scatter(1, target, 0)
    largest = difference.detach().amax(dim=1, keepdim=True)
    shift = torch.where(largest > LARGE, largest, torch.zeros_like(largest))
    return (difference - shift).exp().scatter(1, target, 0), shift


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Softmax cross-entropy of rows, (n, C) logits and (n,) targets to (n,) losses."""
    if logits.size(0) == 0:
        return logits.sum(dim=1)
    ratios, shift = relative_exponentials(logits, target)
    others, shift = ratios.sum(dim=1), shift.squeeze(1)
    loss = torch.where(shift > 0, shift + (others + (-shift).exp()).log(), others.log1p())
    return loss.masked_fill(shift == torch.inf, torch.inf)
