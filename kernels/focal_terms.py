# SPDX-License-Identifier: BSD-3-Clause
"""The sigmoid focal loss of one logit in Triton, and its derivative (Lin et al., 2017).

What the forward and the backward pass of ssd_fast::focal_loss share.
"""

import ctypes

import triton
import triton.language as tl

from ssd_fast.kernels.elementary import exp, log1p_fraction

OTHER_POWER = -1


@triton.jit
def focal_terms(
    x,  # logits, float32
    own,  # whether the logit is that of the row's class
    of_positive,
    of_negative,
    gamma,
    POWER: tl.constexpr,
):
    """Loss ``factor * (1 - p_t)^gamma * -log(p_t)`` of each logit, and its derivative.

    p_t = sigmoid(x) where ``own`` holds, else sigmoid(-x); no digits are lost to 1 - p_t.
    """
    z = tl.where(own, -x, x)
    e = exp(-tl.abs(z))
    tail = log1p_fraction(e)
    softplus = tl.where(z > 0.0, z, 0.0) + tail  # -log(p_t)
    larger = 1.0 / (1.0 + e)
    smaller = e * larger
    missing = tl.where(z > 0.0, larger, smaller)  # 1 - p_t
    p_t = tl.where(z > 0.0, smaller, larger)
    if POWER == 0:
        modulation = tl.full(z.shape, 1.0, tl.float32)
    elif POWER == 1:
        modulation = missing
    elif POWER == 2:
        modulation = missing * missing
    else:
        modulation = exp(-gamma * (tl.where(z > 0.0, 0.0, -z) + tail))
    modulation *= tl.where(own, of_positive, of_negative)
    # The limit for an infinite logit, not the product of infinity and 0.
    slope = modulation * (missing + tl.where(p_t > 0.0, gamma * softplus * p_t, 0.0))
    return modulation * softplus, tl.where(own, -slope, slope)


def whole_power(gamma: float) -> int:
    """The exponents that need no logarithm, and `OTHER_POWER`."""
    rounded = ctypes.c_float(gamma).value  # as the kernel gets it
    return int(rounded) if rounded in (0, 1, 2) else OTHER_POWER


def class_factors(alpha: float) -> tuple[float, float]:
    """Factors of a row's own class and of others; a negative ``alpha`` weighs nothing."""
    return (1.0, 1.0) if alpha < 0 else (float(alpha), 1.0 - float(alpha))
