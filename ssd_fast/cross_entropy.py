# SPDX-License-Identifier: BSD-3-Clause
"""Softmax cross-entropy without cancellation, in plain PyTorch: the definitions.

Exponentials are taken relative to the target's logit. The loss is then the log1p of the others'
sum, exact to the last digits however small it is, where a log-softmax subtracts two numbers that
are nearly equal.
"""

import torch
from torch import Tensor

__all__ = [
    "background_key",
    "cross_entropy",
    "cross_entropy_gradient",
    "relative_exponentials",
]

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
    a log-softmax loses to cancellation. Otherwise it is that of the largest logit, from which the
    others are subtracted: by way of the target's they would be rounded twice, and logits of several
    hundred lose four digits of what is left.
    """
    target = target.unsqueeze(1)
    own = logits.gather(1, target)
    largest = logits.detach().amax(dim=1, keepdim=True)
    is_far = largest - own > LARGE
    difference = (logits - torch.where(is_far, largest, own)).scatter(1, target, 0)
    shift = torch.where(is_far, largest - own, torch.zeros_like(own))
    return difference.exp().scatter(1, target, 0), shift


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Softmax cross-entropy of rows, as `torch.nn.functional.cross_entropy` without a reduction.

    With n_c the negative log-probability of class c, w its weight (1 without weights), y the
    target and e the smoothing, ``(1 - e) * w_y * n_y + e / C * sum_c w_c * n_c``.

    Args:
        logits: (n, C).
        target: (n,) int64 classes.
        class_weights: (C,), or None.
        label_smoothing: from 0 to 1.

    Returns:
        (n,) losses.
    """
    if logits.size(0) == 0:
        return logits.sum(dim=1)
    ratios, shift = relative_exponentials(logits, target)
    others, shift = ratios.sum(dim=1), shift.squeeze(1)
    loss = torch.where(shift > 0, shift + (others + (-shift).exp()).log(), others.log1p())
    loss = loss.masked_fill(shift == torch.inf, torch.inf)
    if class_weights is None and label_smoothing == 0:
        return loss
    weights = _weights(logits, class_weights)
    weighted = weights[target] * loss
    if label_smoothing == 0:
        return weighted
    difference = logits - logits.gather(1, target.unsqueeze(1))
    smooth = (weights * (loss.unsqueeze(1) - difference)).sum(dim=1)
    return (1 - label_smoothing) * weighted + label_smoothing / logits.size(1) * smooth


def cross_entropy_gradient(
    logits: Tensor,
    target: Tensor,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The derivative of `cross_entropy` by the logits.

    ``a * (softmax - one_hot) + e / C * (one_hot * sum_c w_c - w)`` with
    ``a = (1 - e) * w_y + e / C * sum_c w_c``.

    Args:
        logits: (n, C).
        target: (n,) int64 classes.
        class_weights: (C,), or None.
        label_smoothing: from 0 to 1.

    Returns:
        (n, C).
    """
    ratios, shift = relative_exponentials(logits, target)
    others = ratios.sum(dim=1, keepdim=True)
    total = others + (-shift).exp()
    # softmax - one_hot, with the target's entry taken from the others: 1 - p would cancel.
    target = target.unsqueeze(1)
    slope = (ratios / total).scatter(1, target, -others / total)
    if class_weights is None and label_smoothing == 0:
        return slope
    weights = _weights(logits, class_weights)
    share = label_smoothing / logits.size(1)
    scale = (1 - label_smoothing) * weights[target] + share * weights.sum()
    smooth = (-share * weights).expand_as(slope).scatter(1, target, 0)
    return scale * slope + smooth.scatter(1, target, -smooth.sum(dim=1, keepdim=True))


def _weights(logits: Tensor, class_weights: Tensor | None) -> Tensor:
    """The weight of each class, (C,) in the dtype of the logits."""
    if class_weights is None:
        return logits.new_ones(logits.size(1))
    return class_weights.to(logits.dtype)
