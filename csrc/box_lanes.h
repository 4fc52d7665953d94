// SPDX-License-Identifier: BSD-3-Clause
// Boxes in the lanes of vectors. Torch-free.
#pragma once

#include <cstdint>

#include "simd.h"

namespace ssd_fast::SSD_FAST_ISA {

// The coordinates of the boxes (n, 4) from `from` on, one box a lane.
struct Boxes {
  Floats x1, y1, x2, y2;
};

inline Boxes load_boxes(const float* from) {
#if defined(__AVX512F__)
  const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(2));
  const __m512 a = _mm512_loadu_ps(from), b = _mm512_loadu_ps(from + 16);
  const __m512 c = _mm512_loadu_ps(from + 32), d = _mm512_loadu_ps(from + 48);
  const __m512 low1 = _mm512_permutex2var_ps(a, first, b);  // x1 of eight boxes, then y1
  const __m512 low2 = _mm512_permutex2var_ps(a, second, b);
  const __m512 high1 = _mm512_permutex2var_ps(c, first, d);
  const __m512 high2 = _mm512_permutex2var_ps(c, second, d);
  return {reinterpret_cast<Floats>(_mm512_shuffle_f32x4(low1, high1, 0x44)),
          reinterpret_cast<Floats>(_mm512_shuffle_f32x4(low1, high1, 0xee)),
          reinterpret_cast<Floats>(_mm512_shuffle_f32x4(low2, high2, 0x44)),
          reinterpret_cast<Floats>(_mm512_shuffle_f32x4(low2, high2, 0xee))};
#elif defined(__AVX2__)
  const auto load_two = [&](int64_t n) {  // boxes n and n + 4
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from + 4 * n)),
                                _mm_loadu_ps(from + 4 * n + 16), 1);
  };
  const __m256 a = load_two(0), b = load_two(1), c = load_two(2), d = load_two(3);
  const auto even = [](__m256 low, __m256 high) {
    return reinterpret_cast<Floats>(
        _mm256_unpacklo_pd(_mm256_castps_pd(low), _mm256_castps_pd(high)));
  };
  const auto odd = [](__m256 low, __m256 high) {
    return reinterpret_cast<Floats>(
        _mm256_unpackhi_pd(_mm256_castps_pd(low), _mm256_castps_pd(high)));
  };
  const __m256 low1 = _mm256_unpacklo_ps(a, b), high1 = _mm256_unpacklo_ps(c, d);  // x1, y1
  const __m256 low2 = _mm256_unpackhi_ps(a, b), high2 = _mm256_unpackhi_ps(c, d);  // x2, y2
  return {even(low1, high1), odd(low1, high1), even(low2, high2), odd(low2, high2)};
#else
  Boxes boxes;
  for (int lane = 0; lane < kLanes; ++lane) {
    boxes.x1[lane] = from[4 * lane];
    boxes.y1[lane] = from[4 * lane + 1];
    boxes.x2[lane] = from[4 * lane + 2];
    boxes.y2[lane] = from[4 * lane + 3];
  }
  return boxes;
#endif
}

}  // namespace ssd_fast::SSD_FAST_ISA
