# SPDX-License-Identifier: BSD-3-Clause
"""The definitions of cross-entropy, against float64 and on examples worked by hand."""

import math

import pytest
import torch

from ssd_fast.cross_entropy import background_key, cross_entropy, cross_entropy_gradient
from ssd_fast.testing import seeded


def test_equals_torch_in_float64() -> None:
    """On ordinary logits it is the cross-entropy that everybody knows."""
    logits = torch.randn(50, 7, generator=seeded(0)).double() * 5
    target = torch.randint(0, 7, (50,), generator=seeded(1))
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(cross_entropy(logits, target), expected)


@pytest.mark.parametrize("weights", [None, torch.tensor([0.0, 1, 2, 3, 0.5, 1, 1])])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_weights_and_smoothing_are_torchs(weights, smoothing) -> None:
    """Losses and gradients."""
    logits = torch.randn(50, 7, generator=seeded(0)).double().requires_grad_()
    target = torch.randint(0, 7, (50,), generator=seeded(1))
    expected = torch.nn.functional.cross_entropy(
        logits,
        target,
        weight=None if weights is None else weights.double(),
        label_smoothing=smoothing,
        reduction="none",
    )
    torch.testing.assert_close(cross_entropy(logits, target, weights, smoothing), expected)
    gradient = cross_entropy_gradient(logits.detach(), target, weights, smoothing)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), logits)[0])


def test_small_losses_keep_their_digits_in_float32() -> None:
    """A loss of 3e-14, which a float32 log-softmax rounds to zero."""
    logits = torch.tensor([[31.0, 0.0, -5.0]])
    loss = cross_entropy(logits, torch.tensor([0]))
    expected = math.log1p(math.exp(-31) + math.exp(-36))
    torch.testing.assert_close(loss.double(), torch.tensor([expected]).double(), rtol=1e-6, atol=0)
    assert float(-logits.log_softmax(1)[0, 0]) == 0.0


def test_large_losses_do_not_overflow() -> None:
    """Beyond the exponentials of float32 the loss is the difference of the logits."""
    logits = torch.tensor([[0.0, 200.0], [0.0, 1e30]])
    assert cross_entropy(logits, torch.tensor([0, 0])).tolist() == [200.0, torch.tensor(1e30)]


def test_large_logits_share_a_gradient_to_all_digits() -> None:
    """Two rivals far above the target: what they share depends on their difference alone."""
    logits = torch.tensor([[-777.7, 601.3, 600.9, 590.0]])
    gradient = cross_entropy_gradient(logits, torch.tensor([0]))
    exact = cross_entropy_gradient(logits.double(), torch.tensor([0]))
    torch.testing.assert_close(gradient.double(), exact, rtol=1e-6, atol=0)
    softmax = logits.double().softmax(1)
    torch.testing.assert_close(exact, softmax - torch.tensor([[1.0, 0, 0, 0]]).double())


def test_key_is_the_expm1_of_the_background_loss() -> None:
    """Mining by the key is mining by the loss."""
    logits = torch.randn(3, 40, 5, generator=seeded(0)).double()
    for background in (0, 4):
        target = torch.full((120,), background)
        expected = cross_entropy(logits.view(120, 5), target).expm1().view(3, 40)
        torch.testing.assert_close(background_key(logits, background), expected)
