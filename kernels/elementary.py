# SPDX-License-Identifier: BSD-3-Clause
"""exp, log, log1p and atan in float32 to 3e-7 of themselves, from Triton's own operations.

Triton's ``tl.exp`` multiplies by log2(e) first, which costs 7 bits where the result is large, its
``tl.log`` loses all digits near 1, and libdevice does not run in the interpreter.
"""

import triton
import triton.language as tl


@triton.jit
def exp(x):
    """e^x, subnormal results included; +inf above 88.72, NaN for NaN (Cephes' expf)."""
    x = tl.where(x > 89.0, 89.0, tl.where(x < -110.0, -110.0, x))  # keeps NaN
    rounded = x * 1.44269504088896341 + 12582912.0  # adding 1.5 * 2^23 rounds to an integer
    n = rounded - 12582912.0
    r = (x - n * 0.693359375) + n * 2.12194440e-4
    y = r * 1.9875691500e-4 + 1.3981999507e-3
    y = y * r + 8.3334519073e-3
    y = y * r + 4.1665795894e-2
    y = y * r + 1.6666665459e-1
    y = y * r + 5.0000001201e-1
    y = (y * r) * r + r + 1.0
    # 2^n in two steps, because n reaches beyond the exponents of normal numbers on either side.
    exponent = rounded.to(tl.int32, bitcast=True) - 0x4B400000
    half = exponent >> 1
    y = y * ((half + 127) << 23).to(tl.float32, bitcast=True)
    return y * ((exponent - half + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def log(x):
    """Natural logarithm; -inf for 0, NaN below (Cephes' logf)."""
    tiny = x < 1.17549435e-38
    scaled = tl.where(tiny, x * 16777216.0, x)
    bits = scaled.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23  # the mantissa lies in [sqrt(1/2), sqrt(2))
    z = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    e = tl.where(tiny, exponent - 24, exponent).to(tl.float32)
    y = z * 7.0376836292e-2 - 1.1514610310e-1
    y = y * z + 1.1676998740e-1
    y = y * z - 1.2420140846e-1
    y = y * z + 1.4249322787e-1
    y = y * z - 1.6668057665e-1
    y = y * z + 2.0000714765e-1
    y = y * z - 2.4999993993e-1
    y = y * z + 3.3333331174e-1
    y = y * z * (z * z) - e * 2.12194440e-4 - 0.5 * (z * z)
    y = (z + y) + e * 0.693359375
    y = tl.where(x == float("inf"), float("inf"), y)
    y = tl.where(x == 0.0, float("-inf"), y)
    return tl.where(x >= 0.0, y, float("nan"))


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0, exact to the last digits where x is small."""
    u = 1.0 + x
    # What the rounding of u lost, over u, is what its logarithm lacks.
    y = log(u) + (x - (u - 1.0)) / u
    return tl.where(x == float("inf"), float("inf"), y)


@triton.jit
def log1p_fraction(x):
    """log(1 + x) for x from 0 to 1, at a third of the cost (2 atanh(x / (2 + x)))."""
    s = x / (2.0 + x)
    z = s * s
    y = z * 2.8024507e-1 + 2.7999130e-1
    y = y * z + 4.0021697e-1
    y = y * z + 6.6666412e-1
    return y * z * s + 2.0 * s


@triton.jit
def atan(x):
    """Arctangent, +-pi/2 at the infinities (Cephes' atanf)."""
    size = tl.abs(x)
    large = size > 2.414213562373095  # tan(3/8 pi)
    middle = size > 0.4142135623730950  # tan(1/8 pi)
    # One division for both ranges: -1 / x and (x - 1) / (x + 1).
    numerator = tl.where(large, -1.0, tl.where(middle, size - 1.0, size))
    denominator = tl.where(large, size, tl.where(middle, size + 1.0, 1.0))
    r = numerator / denominator
    start = tl.where(large, 1.57079632679489662, tl.where(middle, 0.785398163397448310, 0.0))
    z = r * r
    y = z * 8.05374449538e-2 - 1.38776856032e-1
    y = y * z + 1.99777106478e-1
    y = y * z - 3.33329491539e-1
    y = start + (y * z * r + r)
    return tl.where(x < 0.0, -y, y)
