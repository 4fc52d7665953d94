// SPDX-License-Identifier: BSD-3-Clause
// Loads of rows of any dtype as vectors of float32: of the heads' outputs, where they lie.
// Torch-free.
#pragma once

#include <cstdint>
#include <type_traits>

#include "rows.h"
#include "simd.h"

namespace ssd_fast::SSD_FAST_ISA {

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

// One number in all lanes, as float32.
template <typename T>
inline Floats splat_float(const T* from) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, Half>) {
    return reinterpret_cast<Floats>(
        _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<int16_t>(from->bits))));
  }
#elif defined(__AVX2__) && defined(__F16C__)
  if constexpr (std::is_same_v<T, Half>) {
    return reinterpret_cast<Floats>(
        _mm256_cvtph_ps(_mm_set1_epi16(static_cast<int16_t>(from->bits))));
  }
#endif
  return splat(to_float(*from));
}

#if defined(__AVX512F__)
// The same of half vectors.
inline __m256 load_eight(const float* from) { return _mm256_loadu_ps(from); }

inline __m256 load_eight(const BFloat16* from) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

inline __m256 load_eight(const Half* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

inline __m256 splat_eight(const float* from) { return _mm256_set1_ps(*from); }

inline __m256 splat_eight(const BFloat16* from) { return _mm256_set1_ps(to_float(*from)); }

inline __m256 splat_eight(const Half* from) {
  return _mm256_cvtph_ps(_mm_set1_epi16(static_cast<int16_t>(from->bits)));
}
#endif

// The first `count` numbers from `from` on, at most a vector of them and perhaps none, and zeros:
// nothing behind them is read.
template <typename T>
inline Floats load_first(const T* from, int64_t count) {
  if (count >= kLanes) return load_floats(from);
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    const auto lanes = static_cast<__mmask16>(count > 0 ? (1u << count) - 1 : 0);
    return reinterpret_cast<Floats>(_mm512_maskz_loadu_ps(lanes, from));
  }
#endif
  float values[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) values[i] = to_float(from[i]);
  return load(values);
}

// Copies a row into `out` as float32, vector by vector where it can.
template <typename T>
inline void load_row_as_floats(const T* row, int64_t channel_stride, int64_t channels, float* out) {
  if (channel_stride != 1 || channels < kLanes) {
    load_row(row, channel_stride, channels, out);
    return;
  }
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int64_t start = c < channels - kLanes ? c : channels - kLanes;
    store(out + start, load_floats(row + start));
  }
}

}  // namespace ssd_fast::SSD_FAST_ISA
