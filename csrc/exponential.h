// SPDX-License-Identifier: BSD-3-Clause
// The exponential of a vector. Torch-free.
#pragma once

#include <cstdint>

#include "multiply_add.h"
#include "simd.h"

namespace ssd_fast::SSD_FAST_ISA {

// e^x to 2 units in the last place, subnormal results included; +inf above 88.72, NaN for NaN.
// Range reduction and polynomial are those of Cephes' expf.
inline Floats exp(Floats x) {
  const float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  // In this order a NaN stays, and makes everything NaN.
  const Floats clamped = max(splat(-110.0f), min(splat(89.0f), x));
  const Floats rounded = multiply_add(clamped, splat(1.44269504088896341f), splat(kRound));
  const Floats n = rounded - kRound;
  const Floats whole = multiply_add(n, splat(-0.693359375f), clamped);
  const Floats r = multiply_add(n, splat(2.12194440e-4f), whole);
  Floats p = splat(1.9875691500e-4f);
  p = multiply_add(p, r, splat(1.3981999507e-3f));
  p = multiply_add(p, r, splat(8.3334519073e-3f));
  p = multiply_add(p, r, splat(4.1665795894e-2f));
  p = multiply_add(p, r, splat(1.6666665459e-1f));
  p = multiply_add(p, r, splat(5.0000001201e-1f));
  p = multiply_add(p * r, r, r) + 1.0f;
  // What is sure to round to zero is zero from here on: on Intel's processors a lane that
  // underflows calls microcode, which takes longer than all else. Subnormal results are left to
  // it, for they are few; but lanes that count for nothing are minus infinity.
  p = clamped <= -104.0f ? splat(0.0f) : p;
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(
      _mm512_scalef_ps(reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(n)));
#else
  // 2^n in two steps, because n reaches beyond the exponents of normal numbers.
  const Ints exponent = as_ints(rounded) - 0x4b400000;
  const Ints half = exponent >> 1;
  return p * as_floats((half + 127) << 23) * as_floats((exponent - half + 127) << 23);
#endif
}

}  // namespace ssd_fast::SSD_FAST_ISA
