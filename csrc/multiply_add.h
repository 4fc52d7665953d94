// SPDX-License-Identifier: BSD-3-Clause
// Fused multiply-add of vectors, with the same result on processors that have none. Torch-free.
#pragma once

#include <cstdint>

#include "doubles.h"
#include "simd.h"

namespace ssd_fast::SSD_FAST_ISA {

// a + b in doubles, on its side of what is halfway between two floats where it is inexact: the
// last bit is odd, so that rounding it again to a float is rounding once (Boldo and Melquiond,
// Emulation of FMA and correctly rounded sums, 2008).
inline Doubles sum_rounded_to_odd(Doubles a, Doubles b) {
  const Doubles sum = a + b, added = sum - a, lost = (a - (sum - added)) + (b - added);
  const Longs bits = as_longs(sum), towards_zero = (lost > 0.0) ^ (sum > 0.0);
  return as_doubles(((lost > 0.0) | (lost < 0.0)) ? (bits + towards_zero) | 1 : bits);
}

// a * b + c, rounded once.
inline Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_fmadd_ps(
      reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__AVX2__) && defined(__FMA__)
  return reinterpret_cast<Floats>(_mm256_fmadd_ps(
      reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#elif defined(__FP_FAST_FMAF)
  Floats result;
  for (int lane = 0; lane < kLanes; ++lane) {
    result[lane] = __builtin_fmaf(a[lane], b[lane], c[lane]);
  }
  return result;
#else
  Floats result;
  for (int64_t half = 0; half < kLanes; half += kWide) {
    Doubles x, y, z;
    for (int64_t i = 0; i < kWide; ++i) {
      x[i] = a[half + i];
      y[i] = b[half + i];
      z[i] = c[half + i];
    }
    const Doubles sum = sum_rounded_to_odd(x * y, z);  // a double holds a product of floats
    for (int64_t i = 0; i < kWide; ++i) result[half + i] = static_cast<float>(sum[i]);
  }
  return result;
#endif
}

}  // namespace ssd_fast::SSD_FAST_ISA
