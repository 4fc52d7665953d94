// SPDX-License-Identifier: BSD-3-Clause
// Rows of a matrix into the lanes of vectors. Torch-free.
#pragma once

#include <cstdint>

#include "simd.h"

namespace ssd_fast::SSD_FAST_ISA {

// Number i of rows[k] becomes number k of rows[i].
inline void transpose(Floats (&rows)[kLanes]) {
#if defined(__AVX512F__)
  __m512 a[kLanes], b[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) a[i] = reinterpret_cast<__m512>(rows[i]);
#pragma GCC unroll 8
  for (int i = 0; i < kLanes; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4) {  // a[i + c]: columns c, c + 4, ... of rows i to i + 3
#pragma GCC unroll 2
    for (int c = 0; c < 2; ++c) {
      const __m512d low = _mm512_castps_pd(b[i + c]), high = _mm512_castps_pd(b[i + c + 2]);
      a[i + 2 * c] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      a[i + 2 * c + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 even1 = _mm512_shuffle_f32x4(a[c], a[c + 4], 0x88);
    const __m512 even2 = _mm512_shuffle_f32x4(a[c + 8], a[c + 12], 0x88);
    const __m512 odd1 = _mm512_shuffle_f32x4(a[c], a[c + 4], 0xdd);
    const __m512 odd2 = _mm512_shuffle_f32x4(a[c + 8], a[c + 12], 0xdd);
    rows[c] = reinterpret_cast<Floats>(_mm512_shuffle_f32x4(even1, even2, 0x88));
    rows[c + 4] = reinterpret_cast<Floats>(_mm512_shuffle_f32x4(odd1, odd2, 0x88));
    rows[c + 8] = reinterpret_cast<Floats>(_mm512_shuffle_f32x4(even1, even2, 0xdd));
    rows[c + 12] = reinterpret_cast<Floats>(_mm512_shuffle_f32x4(odd1, odd2, 0xdd));
  }
#else
  for (int i = 0; i < kLanes; ++i) {
    for (int k = 0; k < i; ++k) {
      const float upper = rows[k][i];
      rows[k][i] = rows[i][k];
      rows[i][k] = upper;
    }
  }
#endif
}

}  // namespace ssd_fast::SSD_FAST_ISA
