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

// The way back.
inline void store_boxes(float* to, const Boxes& boxes) {
#if defined(__AVX512F__)
  const __m512 x1 = reinterpret_cast<__m512>(boxes.x1), y1 = reinterpret_cast<__m512>(boxes.y1);
  const __m512 x2 = reinterpret_cast<__m512>(boxes.x2), y2 = reinterpret_cast<__m512>(boxes.y2);
  const __m512d low1 = _mm512_castps_pd(_mm512_unpacklo_ps(x1, y1));  // of boxes 0, 1, 4, 5, ...
  const __m512d low2 = _mm512_castps_pd(_mm512_unpacklo_ps(x2, y2));
  const __m512d high1 = _mm512_castps_pd(_mm512_unpackhi_ps(x1, y1));  // of boxes 2, 3, 6, 7, ...
  const __m512d high2 = _mm512_castps_pd(_mm512_unpackhi_ps(x2, y2));
  const __m512d a = _mm512_unpacklo_pd(low1, low2);  // boxes 0, 4, 8, 12; b: one on, ...
  const __m512d b = _mm512_unpackhi_pd(low1, low2);
  const __m512d c = _mm512_unpacklo_pd(high1, high2), d = _mm512_unpackhi_pd(high1, high2);
  const __m512d ab = _mm512_shuffle_f64x2(a, b, 0x44), cd = _mm512_shuffle_f64x2(c, d, 0x44);
  const __m512d ab2 = _mm512_shuffle_f64x2(a, b, 0xee), cd2 = _mm512_shuffle_f64x2(c, d, 0xee);
  _mm512_storeu_pd(to, _mm512_shuffle_f64x2(ab, cd, 0x88));
  _mm512_storeu_pd(to + 16, _mm512_shuffle_f64x2(ab, cd, 0xdd));
  _mm512_storeu_pd(to + 32, _mm512_shuffle_f64x2(ab2, cd2, 0x88));
  _mm512_storeu_pd(to + 48, _mm512_shuffle_f64x2(ab2, cd2, 0xdd));
#elif defined(__AVX2__)
  const __m256 x1 = reinterpret_cast<__m256>(boxes.x1), y1 = reinterpret_cast<__m256>(boxes.y1);
  const __m256 x2 = reinterpret_cast<__m256>(boxes.x2), y2 = reinterpret_cast<__m256>(boxes.y2);
  const __m256d low1 = _mm256_castps_pd(_mm256_unpacklo_ps(x1, y1));  // of boxes 0, 1, 4, 5
  const __m256d low2 = _mm256_castps_pd(_mm256_unpacklo_ps(x2, y2));
  const __m256d high1 = _mm256_castps_pd(_mm256_unpackhi_ps(x1, y1));  // of boxes 2, 3, 6, 7
  const __m256d high2 = _mm256_castps_pd(_mm256_unpackhi_ps(x2, y2));
  const __m256d a = _mm256_unpacklo_pd(low1, low2), b = _mm256_unpackhi_pd(low1, low2);
  const __m256d c = _mm256_unpacklo_pd(high1, high2), d = _mm256_unpackhi_pd(high1, high2);
  const auto store_two = [to](int64_t n, __m256d two) {
    _mm256_storeu_ps(to + 4 * n, _mm256_castpd_ps(two));
  };
  store_two(0, _mm256_permute2f128_pd(a, b, 0x20));
  store_two(2, _mm256_permute2f128_pd(c, d, 0x20));
  store_two(4, _mm256_permute2f128_pd(a, b, 0x31));
  store_two(6, _mm256_permute2f128_pd(c, d, 0x31));
#else
  for (int lane = 0; lane < kLanes; ++lane) {
    to[4 * lane] = boxes.x1[lane];
    to[4 * lane + 1] = boxes.y1[lane];
    to[4 * lane + 2] = boxes.x2[lane];
    to[4 * lane + 3] = boxes.y2[lane];
  }
#endif
}

}  // namespace ssd_fast::SSD_FAST_ISA
