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
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// For what is worth nothing unless its vectors stay in registers.
#define SSD_FAST_INLINE inline __attribute__((always_inline))

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
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    const auto lanes = static_cast<__mmask16>(count > 0 ? (1u << count) - 1 : 0);
    return reinterpret_cast<Floats>(_mm512_mask_loadu_ps(_mm512_set1_ps(filler), lanes, from));
  }
#endif
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

// Computes a running value here and now. Left to itself, the compiler reorders such sums of
// integers and keeps every term, in memory, to the end.
template <typename Vector>
SSD_FAST_INLINE void settle(Vector& running) {
#if defined(__x86_64__)
  __asm__("" : "+v"(running));
#else
  (void)running;
#endif
}

// Which lanes to keep, in the form that costs least.
#if defined(__AVX512F__)
typedef __mmask16 Keep;
inline Keep keep_lanes(Ints mask) { return static_cast<Keep>(lanes_of(mask)); }
#else
typedef Ints Keep;
inline Keep keep_lanes(Ints mask) { return mask; }
#endif

// The nearest integers, 0 in the lanes not kept; the least of all for a NaN and beyond the range.
inline Ints rounded(Floats x, Keep keep) {
#if defined(__AVX512F__)
  return reinterpret_cast<Ints>(_mm512_maskz_cvtps_epi32(keep, reinterpret_cast<__m512>(x)));
#elif defined(__AVX2__)
  return reinterpret_cast<Ints>(_mm256_cvtps_epi32(reinterpret_cast<__m256>(x))) & keep;
#elif defined(__SSE2__)
  return reinterpret_cast<Ints>(_mm_cvtps_epi32(reinterpret_cast<__m128>(x))) & keep;
#else
  Ints value;
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool fits = x[lane] > -2147483648.0f && x[lane] < 2147483648.0f;
    value[lane] = fits ? static_cast<int32_t>(x[lane]) : -2147483647 - 1;
  }
  return value & keep;
#endif
}

// a * b + c, rounded once or twice.
inline Floats rough_multiply_add(Floats a, float b, Floats c) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), _mm512_set1_ps(b), reinterpret_cast<__m512>(c)));
#elif defined(__AVX2__) && defined(__FMA__)
  return reinterpret_cast<Floats>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), _mm256_set1_ps(b), reinterpret_cast<__m256>(c)));
#else
  return a * b + c;
#endif
}

// Where a > b, as bits, and whether a >= b in any lane: GCC does not find these comparisons.
inline uint32_t lanes_above(Floats a, Floats b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_GT_OQ);
#else
  return lanes_of(a > b);
#endif
}

inline bool any_above(Floats a, Floats b) { return lanes_above(a, b) != 0; }

inline bool any_reaching(Floats a, Floats b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_GE_OQ) !=
         0;
#else
  return any(a >= b);
#endif
}

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

// The bits that are set in any of the three, in one instruction; GCC makes two of `a | b | c`.
inline Ints any_of_bits(Ints a, Ints b, Ints c) {
#if defined(__AVX512F__)
  return reinterpret_cast<Ints>(_mm512_ternarylogic_epi32(reinterpret_cast<__m512i>(a),
                                                          reinterpret_cast<__m512i>(b),
                                                          reinterpret_cast<__m512i>(c), 0xfe));
#else
  return a | b | c;
#endif
}

// Of each four lanes two of `a`, then two of `b`: kOrder holds the four places, two bits each.
template <int kOrder>
inline Floats shuffle(Floats a, Floats b) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(
      _mm512_shuffle_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), kOrder));
#elif defined(__AVX2__)
  return reinterpret_cast<Floats>(
      _mm256_shuffle_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), kOrder));
#else
  return Floats{a[kOrder & 3], a[kOrder >> 2 & 3], b[kOrder >> 4 & 3], b[kOrder >> 6 & 3]};
#endif
}

// The part of combine_rows and combine_fours that kCount rows are, of items of kWidth lanes each.
template <int64_t kWidth, int64_t kFirst, int64_t kCount, typename RowAt, typename Combine>
SSD_FAST_INLINE Floats combine_some(const RowAt& row_at, const Combine& combine) {
  if constexpr (kCount == 1) {
    if constexpr (std::is_invocable_v<RowAt, int64_t>) {
      return row_at(kFirst);
    } else {
      return row_at[kFirst];
    }
  } else {
    const Floats left = combine_some<kWidth, kFirst, kCount / 2>(row_at, combine);
    const Floats right = combine_some<kWidth, kFirst + kCount / 2, kCount / 2>(row_at, combine);
#if defined(__AVX512F__)
    const __m512 a = reinterpret_cast<__m512>(left), b = reinterpret_cast<__m512>(right);
    if constexpr (kWidth * kCount == 2) {
      return combine(reinterpret_cast<Floats>(_mm512_unpacklo_ps(a, b)),
                     reinterpret_cast<Floats>(_mm512_unpackhi_ps(a, b)));
    } else if constexpr (kWidth * kCount == 4) {
      const __m512d c = reinterpret_cast<__m512d>(left), d = reinterpret_cast<__m512d>(right);
      return combine(reinterpret_cast<Floats>(_mm512_unpacklo_pd(c, d)),
                     reinterpret_cast<Floats>(_mm512_unpackhi_pd(c, d)));
    } else {
      return combine(reinterpret_cast<Floats>(_mm512_shuffle_f32x4(a, b, 0x88)),
                     reinterpret_cast<Floats>(_mm512_shuffle_f32x4(a, b, 0xdd)));
    }
#elif defined(__AVX2__)
    const __m256 a = reinterpret_cast<__m256>(left), b = reinterpret_cast<__m256>(right);
    if constexpr (kWidth * kCount < 8) {
      return combine(reinterpret_cast<Floats>(_mm256_shuffle_ps(a, b, 0x88)),
                     reinterpret_cast<Floats>(_mm256_shuffle_ps(a, b, 0xdd)));
    } else {
      return combine(reinterpret_cast<Floats>(_mm256_permute2f128_ps(a, b, 0x20)),
                     reinterpret_cast<Floats>(_mm256_permute2f128_ps(a, b, 0x31)));
    }
#else
    Floats even, odd;
    for (int lane = 0; lane < kLanes; ++lane) {
      const Floats& from = lane < kLanes / 2 ? left : right;
      even[lane] = from[2 * lane % kLanes];
      odd[lane] = from[2 * lane % kLanes + 1];
    }
    return combine(even, odd);
#endif
  }
}

// Lane i of the result combines the lanes of row_at(i), or of row_at[i], in an order of its own:
// of sums it is a rough one, of minima and maxima the exact one. Rows are asked for once and in
// order, so that few of them are held in registers at a time.
template <typename RowAt, typename Combine>
SSD_FAST_INLINE Floats combine_rows(const RowAt& row_at, const Combine& combine) {
  return combine_some<1, 0, kLanes>(row_at, combine);
}

// The same with four lanes in place of one: four i of the result combines the fours of row_at(i).
template <typename RowAt, typename Combine>
SSD_FAST_INLINE Floats combine_fours(const RowAt& row_at, const Combine& combine) {
  return combine_some<4, 0, kLanes / 4>(row_at, combine);
}

// Each lane of a four becomes all of its four combined.
template <typename Combine>
inline Floats fold_fours(Floats values, const Combine& combine) {
  values = combine(values, shuffle<0x4e>(values, values));
  return combine(values, shuffle<0xb1>(values, values));
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

}  // namespace ssd_fast::SSD_FAST_ISA

namespace ssd_fast {
using namespace SSD_FAST_ISA;
}
