// SPDX-License-Identifier: BSD-3-Clause
// As many floats at a time as a register holds, in the vector extensions that GCC and Clang share
// and, where those fall short, intrinsics. Torch-free.
//
// Everything here lives in a namespace of the instruction set it is compiled for, see
// instruction_set.h. Unless its name says "rough", a lane computes what a scalar would on every
// machine: one rounding an operation, no contraction, no reassociation.
#pragma once

#include <cstdint>
#include <cstring>

#include "rows.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef SSD_FAST_ISA
#define SSD_FAST_ISA portable
#endif

namespace ssd_fast::SSD_FAST_ISA {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif

typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef uint32_t Words __attribute__((vector_size(kLanes * sizeof(uint32_t))));

inline Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof(value)); }

inline Ints load(const int32_t* from) {
  Ints value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

inline void store(int32_t* to, Ints value) { std::memcpy(to, &value, sizeof(value)); }

// The first `count` of a vector, at most all of it, and `filler` behind them.
template <typename T>
inline auto load_some(const T* from, int64_t count, T filler) -> decltype(load(from)) {
  if (count >= kLanes) return load(from);
  T values[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) values[lane] = lane < count ? from[lane] : filler;
  return load(values);
}

inline Floats splat(float value) { return value - Floats{}; }  // + would lose a -0.0
inline Ints splat(int32_t value) { return Ints{} + value; }

inline Floats as_floats(Ints bits) {
  Floats value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline Ints as_ints(Floats value) {
  Ints bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// 0, 1, 2, ... in the lanes.
inline Ints lane_numbers() {
  Ints numbers;
  for (int32_t lane = 0; lane < kLanes; ++lane) numbers[lane] = lane;
  return numbers;
}

// Of a NaN and a number these return the second argument. One instruction, which GCC does not
// always find.
#if defined(__AVX512F__)
inline Floats min(Floats a, Floats b) {
  return reinterpret_cast<Floats>(
      _mm512_min_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}
inline Floats max(Floats a, Floats b) {
  return reinterpret_cast<Floats>(
      _mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}
#else
inline Floats min(Floats a, Floats b) { return a < b ? a : b; }
inline Floats max(Floats a, Floats b) { return a > b ? a : b; }
#endif

// Where a comparison holds, as bits: lane 0 is the lowest.
inline uint32_t lanes_of(Ints mask) {
#if defined(__AVX512DQ__)
  return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(reinterpret_cast<__m256>(mask)));
#elif defined(__SSE2__)
  return static_cast<uint32_t>(_mm_movemask_ps(reinterpret_cast<__m128>(mask)));
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= (mask[lane] < 0 ? 1u : 0u) << lane;
  return bits;
#endif
}

inline bool any(Ints mask) { return lanes_of(mask) != 0; }

// Writes the lanes of `values` where `mask` holds to `to`, in order; returns how many. What
// follows them, up to kLanes in all, is overwritten.
inline int64_t compress(Ints mask, Ints values, int32_t* to) {
  uint32_t bits = lanes_of(mask);
#if defined(__AVX512F__)
  const __m512i packed =
      _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), reinterpret_cast<__m512i>(values));
  _mm512_storeu_si512(to, packed);
  return __builtin_popcount(bits);
#else
  int64_t count = 0;
  for (; bits != 0; bits &= bits - 1) to[count++] = values[__builtin_ctz(bits)];
  return count;
#endif
}

inline int64_t sum_of_lanes(Ints values) {
  int64_t sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += values[lane];
  return sum;
}

// As many numbers of a row as there are lanes, as float32.
inline Floats load_floats(const float* from) { return load(from); }

inline Floats load_floats(const BFloat16* from) {
#if defined(__AVX512F__)
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return as_floats(reinterpret_cast<Ints>(_mm512_cvtepu16_epi32(halves)) << 16);
#elif defined(__AVX2__)
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return as_floats(reinterpret_cast<Ints>(_mm256_cvtepu16_epi32(halves)) << 16);
#else
  Floats value;
  for (int lane = 0; lane < kLanes; ++lane) value[lane] = to_float(from[lane]);
  return value;
#endif
}

inline Floats load_floats(const Half* from) {
#if defined(__AVX512F__)
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return reinterpret_cast<Floats>(_mm512_cvtph_ps(halves));
#elif defined(__AVX2__) && defined(__F16C__)
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(halves));
#else
  Floats value;
  for (int lane = 0; lane < kLanes; ++lane) value[lane] = to_float(from[lane]);
  return value;
#endif
}

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

// Lane i of the result combines the lanes of rows[i], in an order of its own: of sums it is a rough
// one, of minima and maxima the exact one.
template <typename Combine>
inline Floats combine_rows(const Floats* rows, const Combine& combine) {
#if defined(__AVX512F__)
  const auto as_doubles = [](Floats value) { return reinterpret_cast<__m512d>(value); };
  const auto as_native = [](Floats value) { return reinterpret_cast<__m512>(value); };
  Floats part[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m512 a = as_native(rows[2 * i]), b = as_native(rows[2 * i + 1]);
    part[i] = combine(reinterpret_cast<Floats>(_mm512_unpacklo_ps(a, b)),
                      reinterpret_cast<Floats>(_mm512_unpackhi_ps(a, b)));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = as_doubles(part[2 * i]), b = as_doubles(part[2 * i + 1]);
    part[i] = combine(reinterpret_cast<Floats>(_mm512_unpacklo_pd(a, b)),
                      reinterpret_cast<Floats>(_mm512_unpackhi_pd(a, b)));
  }
#pragma GCC unroll 2
  for (int n = 2; n > 0; n /= 2) {
#pragma GCC unroll 2
    for (int i = 0; i < n; ++i) {
      const __m512 a = as_native(part[2 * i]), b = as_native(part[2 * i + 1]);
      part[i] = combine(reinterpret_cast<Floats>(_mm512_shuffle_f32x4(a, b, 0x88)),
                        reinterpret_cast<Floats>(_mm512_shuffle_f32x4(a, b, 0xdd)));
    }
  }
  return part[0];
#elif defined(__AVX2__)
  const auto as_native = [](Floats value) { return reinterpret_cast<__m256>(value); };
  Floats part[8];
  for (int i = 0; i < 8; ++i) part[i] = rows[i];
  for (int n = 4; n > 1; n /= 2) {
    for (int i = 0; i < n; ++i) {
      const __m256 a = as_native(part[2 * i]), b = as_native(part[2 * i + 1]);
      part[i] = combine(reinterpret_cast<Floats>(_mm256_shuffle_ps(a, b, 0x88)),
                        reinterpret_cast<Floats>(_mm256_shuffle_ps(a, b, 0xdd)));
    }
  }
  const __m256 a = as_native(part[0]), b = as_native(part[1]);
  return combine(reinterpret_cast<Floats>(_mm256_permute2f128_ps(a, b, 0x20)),
                 reinterpret_cast<Floats>(_mm256_permute2f128_ps(a, b, 0x31)));
#else
  Floats column[kLanes];
  for (int i = 0; i < kLanes; ++i) {
    for (int lane = 0; lane < kLanes; ++lane) column[lane][i] = rows[i][lane];
  }
  return combine(combine(column[0], column[1]), combine(column[2], column[3]));
#endif
}

// All lanes combined, halves upon halves: of sixteen numbers, added to kLanes of them as halves
// upon halves as well, the sum is the same for any kLanes.
template <typename Combine>
inline float fold_lanes(Floats values, const Combine& combine) {
#if defined(__AVX512F__)
  const auto as_native = [](Floats value) { return reinterpret_cast<__m512>(value); };
  const auto swap = [&](__m512 other) {
    values = combine(values, reinterpret_cast<Floats>(other));
  };
  swap(_mm512_shuffle_f32x4(as_native(values), as_native(values), 0x4e));
  swap(_mm512_shuffle_f32x4(as_native(values), as_native(values), 0xb1));
  swap(_mm512_shuffle_ps(as_native(values), as_native(values), 0x4e));
  swap(_mm512_shuffle_ps(as_native(values), as_native(values), 0xb1));
  return values[0];
#elif defined(__AVX2__)
  const auto as_native = [](Floats value) { return reinterpret_cast<__m256>(value); };
  const auto swap = [&](__m256 other) {
    values = combine(values, reinterpret_cast<Floats>(other));
  };
  swap(_mm256_permute2f128_ps(as_native(values), as_native(values), 0x01));
  swap(_mm256_shuffle_ps(as_native(values), as_native(values), 0x4e));
  swap(_mm256_shuffle_ps(as_native(values), as_native(values), 0xb1));
  return values[0];
#else
  const Floats half = combine(values, Floats{values[2], values[3], values[0], values[1]});
  return combine(half, Floats{half[1], half[0], half[3], half[2]})[0];
#endif
}

// e^x to 2 units in the last place, subnormal results included; +inf above 88.72, NaN for NaN.
// Range reduction and polynomial are those of Cephes' expf.
inline Floats exp(Floats x) {
  const float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  // In this order a NaN stays, and makes everything NaN.
  const Floats clamped = max(splat(-110.0f), min(splat(89.0f), x));
  const Floats rounded = clamped * 1.44269504088896341f + kRound;
  const Floats n = rounded - kRound;
  const Floats r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r) * r + r + 1.0f;
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

namespace ssd_fast {
using namespace SSD_FAST_ISA;
}
