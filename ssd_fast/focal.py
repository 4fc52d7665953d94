# SPDX-License-Identifier: BSD-3-Clause
"""The sigmoid focal loss of single logits in plain PyTorch: the definition and its derivative."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["focal_loss_terms", "focal_slopes"]


def focal_loss_terms(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """The focal loss of each logit (Lin et al., 2017, arXiv:1708.02002, equation 5).

    With y = -x where the target is 1 and x elsewhere: ``a sigmoid(y)^gamma log(1 + exp(y))``, that
    is ``-a (1 - p_t)^gamma log(p_t)``, without a difference that cancels.

    Args:
        logits: of any shape.
        targets: of the same shape, bool.
        alpha: a is alpha where the target is 1, 1 - alpha elsewhere; 1 if alpha is negative.
        gamma: 0 for the weighted cross-entropy.

    Returns:
        Of the same shape.
    """
    y = torch.where(targets, -logits, logits)
    terms = -logsigmoid(-y)
    if gamma > 0:
        terms = terms * (gamma * logsigmoid(y)).exp()
    return terms * _balance(terms, targets, alpha)


def focal_slopes(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """The derivative of `focal_loss_terms` by each logit.

    ``a sigmoid(y)^gamma (gamma (1 - sigmoid(y)) log(1 + exp(y)) + sigmoid(y))``, against the sign
    of the logit where the target is 1.

    Args:
        logits: as `focal_loss_terms`, as all of them.
        targets: see there.
        alpha: see there.
        gamma: see there.

    Returns:
        Of the same shape.
    """
    y = torch.where(targets, -logits, logits)
    slopes = y.sigmoid()
    if gamma > 0:
        # At an infinite y the probability is 0 and the cross-entropy infinite: the limit is 0.
        rest = torch.where(y == torch.inf, 0, (-y).sigmoid() * -logsigmoid(-y))
        slopes = (gamma * logsigmoid(y)).exp() * (gamma * rest + slopes)
    slopes = slopes * _balance(slopes, targets, alpha)
    return torch.where(targets, -slopes, slopes)


def _balance(like: Tensor, targets: Tensor, alpha: float) -> Tensor:
    if alpha < 0:
        return torch.ones_like(like)
    return torch.where(targets, torch.full_like(like, alpha), torch.full_like(like, 1 - alpha))
