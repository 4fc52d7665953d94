# SPDX-License-Identifier: BSD-3-Clause
"""Heads, what a loss makes of them, and the operator's arguments: for tests of `multibox_loss`."""

import torch
from torch import Tensor

from ssd_fast.ops import multibox_loss, multibox_loss_reference
from ssd_fast.testing import assert_close, seeded

CELLS = [(4, 5, 5), (6, 3, 2), (4, 1, 1)]  # anchors, height, width of each level
P_CELLS = 4 * 25 + 6 * 6 + 4

OPERATOR_OPTIONS = {
    "matches": None,
    "class_weights": None,
    "iou_threshold": 0.5,
    "low_threshold": None,
    "strict": False,
    "assign": 0,
    "ignore_threshold": 0.5,
    "ratio": 3.0,
    "min_negatives": 0,
    "box_loss": 0,
    "beta": 1.0,
    "variances": (0.1, 0.1, 0.2, 0.2),
    "label_smoothing": 0.0,
    "background_index": 0,
    "normalizer": 0,
}
"""What `torch.ops.ssd_fast.multibox_loss` takes behind the targets, in its order."""


def random_heads(B: int, P: int, C: int, seed: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Random deltas and logits, (B, P, 4) and (B, P, C)."""
    generator = seeded(seed)
    logits = torch.randn(B, P, C, generator=generator) * scale
    return torch.randn(B, P, 4, generator=generator) * scale, logits


def loss_and_gradients(function, deltas, logits, *targets, **options):
    """Both losses, num_positives, and the gradients of ``2 box_loss + 3 class_loss``."""
    deltas, logits = deltas.clone().requires_grad_(), logits.clone().requires_grad_()
    box_loss, class_loss, num_positives = function(deltas, logits, *targets, **options)
    grads = torch.autograd.grad(2 * box_loss + 3 * class_loss, (deltas, logits))
    return box_loss.detach(), class_loss.detach(), num_positives, *grads


def assert_equals_float64(device, deltas, logits, priors, objects, **options) -> None:
    """The kernel in float32 (or less) against the reference in float64, forward and backward."""
    targets = priors, *objects
    there = {k: x.to(device) if isinstance(x, Tensor) else x for k, x in options.items()}
    actual = loss_and_gradients(
        multibox_loss, *(x.to(device) for x in (deltas, logits, *targets)), **there
    )
    # The reference decides in float32 as the kernel does; only its sums are float64.
    double = deltas.double(), logits.double(), priors.double(), objects.boxes.double()
    expected = loss_and_gradients(multibox_loss_reference, *double, *objects[1:], **options)
    assert torch.equal(actual[2].cpu(), expected[2])
    names = ("box_loss", "class_loss", None, "grad_deltas", "grad_logits")
    for name, a, e in zip(names, actual, expected, strict=True):
        if name:
            half = name.startswith("grad") and a.dtype != torch.float32
            tolerance = {"tolerance": torch.finfo(a.dtype).eps} if half else {}
            assert_close(a.cpu(), e, what=name, **tolerance)


def operator_inputs(deltas, logits, priors, objects, **options) -> tuple:
    """Arguments of ``torch.ops.ssd_fast.multibox_loss``, in its order."""
    return deltas, logits, priors, *objects, *(OPERATOR_OPTIONS | options).values()
