// SPDX-License-Identifier: BSD-3-Clause
// Mining keys: of each row the sum over c != background of exp(x_c - x_background). Torch-free.
//
// What they cost: the rough pass reads every logit once, where it lies, and spends a product, a
// conversion and two additions on a vector of them: 2^t is taken as the float whose
// bits are t in fixed point, which is at most 6.15 % too large and never too small. That is enough
// to leave few rows whose exact keys, about twenty operations a vector, are worth computing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "exponential.h"
#include "read_ahead.h"
#include "row_loads.h"
#include "rows.h"
#include "simd.h"

namespace ssd_fast::SSD_FAST_ISA {

// The rough key of a row that the rough pass cannot bound: an exponential beyond the range of
// normal floats, a NaN, an infinity.
constexpr float kDoubtful = -1.0f;

// A rough key is between the exact one and this many times it, as long as it is not tiny; either
// bound may be missed by 1e-4 of it.
constexpr float kRoughExcess = 1.0615f;

// e^x in the bits of a float: 2^23 / ln 2 a unit of x, and the exponent of 1.
constexpr float kRoughScale = 12102203.16f;
constexpr float kRoughOffset = 1065353216.0f;

// The offset that makes e^(x - reference) of e^x. It is rounded: beyond this size, which references
// below -266 and above 442 reach, by too much.
constexpr float kMostOffset = 4294967296.0f;

inline Floats rough_offset(Floats reference) {
  return rough_multiply_add(reference, -kRoughScale, splat(kRoughOffset));
}

// The bits of roughly e^(x - reference), 0 in the lanes not kept. Of a NaN and of a difference
// beyond 88 the result is negative, not finite, or close to zero where it is truly so small.
inline Ints rough_exp(Floats x, Floats offset, Keep keep) {
  return rounded(rough_multiply_add(x, kRoughScale, offset), keep);
}

// The greater of a, which is not negative, and the size of b; a if b is NaN.
inline Floats greater_size(Floats a, Floats b) {
#if defined(__AVX512DQ__)
  return reinterpret_cast<Floats>(
      _mm512_range_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), 0xb));
#else
  return max(as_floats(as_ints(b) & 0x7fffffff), a);
#endif
}

// Rough keys of kLanes rows at a time.
class BlockKeys {
 public:
  void reset(int64_t classes, int64_t background) {
    if (classes == classes_ && background == background_) return;
    classes_ = classes;
    background_ = background;
    vectors_ = (classes + kLanes - 1) / kLanes;
    starts_.clear();
    keep_.clear();
    // The last vector of a row ends with the row: it does not read on, it reads some lanes again.
    for (int64_t v = 0; v < vectors_; ++v) {
      const int64_t start = std::max<int64_t>(0, std::min(v * kLanes, classes - kLanes));
      starts_.push_back(start);
      const Ints c = lane_numbers() + static_cast<int32_t>(start);
      keep_.push_back(keep_lanes((c >= static_cast<int32_t>(v * kLanes)) &
                                 (c < static_cast<int32_t>(classes)) &
                                 (c != static_cast<int32_t>(background))));
    }
  }

  // Writes the keys of contiguous rows that begin `stride` apart, and asks for those behind.
  template <typename T>
  void compute(const T* rows, int64_t stride, ReadAhead ahead, float* keys) const {
#if defined(__AVX512F__)
    if (classes_ > 16 && classes_ <= 24) return three_halves_keys(rows, stride, ahead, keys);
#endif
    switch (vectors_) {  // loops of a known length, of 21 or 81 classes, stay in registers
      case kLanes == 16 ? 6:
        3 : return store(keys, fixed_keys<kLanes == 16 ? 6 : 3>(rows, stride, ahead));
      default:
        return store(keys, fixed_keys<0>(rows, stride, ahead));
    }
  }

 private:
  template <int kVectors, typename T>
  Floats fixed_keys(const T* rows, int64_t stride, ReadAhead ahead) const {
    const int64_t vectors = kVectors ? kVectors : vectors_;
    const int64_t background = background_;
    Ints doubt{};
    Floats most{};
    const auto sum_of_row = [&](int64_t r) __attribute__((always_inline)) {
      const T* row = rows + r * stride;
      ahead(row, classes_);
      const Floats offset = rough_offset(splat_float(row + background));
      most = greater_size(most, offset);
      Floats sum{};
      const auto add = [&](int64_t v) __attribute__((always_inline)) {
        const Ints bits = rough_exp(load_floats(row + starts_[v]), offset, keep_[v]);
        sum = v > 0 ? sum + as_floats(bits) : as_floats(bits);
        return bits;
      };
      int64_t v = 0;
      if constexpr (kVectors % 2 == 0 && kVectors > 0) {
#pragma GCC unroll 3  // kVectors / 2, for which GCC wants a number
        for (; v < kVectors; v += 2) {
          const Ints bits = add(v);
          doubt = any_of_bits(doubt, bits, add(v + 1));
        }
      }
      for (; v < vectors; ++v) doubt |= add(v);
      settle(doubt);
      settle(most);
      settle(sum);
      return sum;
    };
    const Floats keys = combine_rows(sum_of_row, [](Floats a, Floats b) { return a + b; });
    if (any(doubt < 0) || any_above(most, splat(kMostOffset))) return splat(kDoubtful);
    return settled(keys);
  }

#if defined(__AVX512F__)
  // `compute` for 17 to 24 classes: three half vectors leave fewer lanes idle than two whole
  // ones. AMD's Zen 4 splits whole ones, and spends as much on one as on two halves; Intel's cores
  // close one of their three vector ports while a whole one is under way, so that none must be.
  template <typename T>
  void three_halves_keys(const T* rows, int64_t stride, ReadAhead ahead, float* keys) const {
    const int64_t background = background_, last = classes_ - 8;
    // Lane i of the last one is class `last` + i: those that the others have are left out.
    const __mmask8 keep_0 = keep_[0] & 0xff, keep_1 = keep_[0] >> 8, keep_2 = keep_[1] >> 8;
    const __m256 scale = _mm256_set1_ps(kRoughScale), zero_offset = _mm256_set1_ps(kRoughOffset);
    __m256i doubt = _mm256_setzero_si256();
    __m256 most = _mm256_setzero_ps();
    const auto sum_of_row = [&](int64_t r) __attribute__((always_inline)) {
      const T* row = rows + r * stride;
      const __m256 offset = _mm256_fnmadd_ps(splat_eight(row + background), scale, zero_offset);
      most = _mm256_range_ps(most, offset, 0xb);  // the greater size
      settle(most);
      const auto bits = [&](int64_t start, __mmask8 kept) __attribute__((always_inline)) {
        return _mm256_maskz_cvtps_epi32(kept,
                                        _mm256_fmadd_ps(load_eight(row + start), scale, offset));
      };
      const __m256i a = bits(0, keep_0), b = bits(8, keep_1), c = bits(last, keep_2);
      doubt = _mm256_ternarylogic_epi32(_mm256_or_si256(doubt, a), b, c, 0xfe);
      settle(doubt);
      __m256 sum = _mm256_add_ps(_mm256_add_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)),
                                 _mm256_castsi256_ps(c));
      settle(sum);
      return sum;
    };
    const auto two = [](__m256 a, __m256 b) __attribute__((always_inline)) {
      return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
    };
    const auto eight = [&](int64_t r) __attribute__((always_inline)) {
      ahead(rows + r * stride, 8 * classes_);
      const auto four = [&](int64_t i) __attribute__((always_inline)) {
        const __m256 low = two(sum_of_row(i), sum_of_row(i + 1));
        return two(low, two(sum_of_row(i + 2), sum_of_row(i + 3)));
      };
      const __m256 low = four(r), high = four(r + 4);
      return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20),
                           _mm256_permute2f128_ps(low, high, 0x31));
    };
    const __m256 low = eight(0), high = eight(8);
    const __m256 beyond = _mm256_cmp_ps(most, _mm256_set1_ps(kMostOffset), _CMP_GT_OQ);
    const bool good = _mm256_movemask_ps(_mm256_or_ps(_mm256_castsi256_ps(doubt), beyond)) == 0;
    const auto settled = [&](__m256 sums) __attribute__((always_inline)) {
      const __m256 greatest = _mm256_set1_ps(std::numeric_limits<float>::max());
      const __mmask8 finite = _mm256_cmp_ps_mask(sums, greatest, _CMP_LE_OQ);
      return _mm256_mask_mov_ps(_mm256_set1_ps(kDoubtful), good ? finite : 0, sums);
    };
    _mm256_storeu_ps(keys, settled(low));
    _mm256_storeu_ps(keys + 8, settled(high));
  }
#endif

  static Floats settled(Floats keys) {
    return keys <= std::numeric_limits<float>::max() ? keys : splat(kDoubtful);
  }

  int64_t classes_ = -1;
  int64_t background_ = -1;
  int64_t vectors_ = 0;
  std::vector<int64_t> starts_;  // of each vector of a row
  std::vector<Keep> keep_;       // the lanes of each vector that enter the key
};

// Rough keys of one level after another; keeps its scratch memory between them.
template <typename T>
class RoughKeys {
 public:
  // Prepares for a level, which must outlive the computation.
  void reset(const Level& level, int64_t classes, int64_t background) {
    level_ = &level;
    classes_ = classes;
    background_ = background;
    block_keys_.reset(classes, background);
    block_.resize(static_cast<size_t>(kLanes * std::max(classes, kLanes)));
  }

  // Keys of all rows of cells `begin` to `end` of an image; row 0 of the level is keys[0].
  void compute(int64_t image, int64_t begin, int64_t end, float* keys) {
    const T* data = static_cast<const T*>(level_->data) + image * level_->batch_stride;
    if (level_->has_even_rows() && classes_ >= kLanes) {
      even_rows(data, begin * level_->anchors, end * level_->anchors, keys);
    } else if (level_->x_stride == 1 && level_->has_even_cells() && end - begin >= kLanes) {
      for (int64_t anchor = 0; anchor < level_->anchors; ++anchor) {
        planes(data + anchor * level_->anchor_stride, begin, end, keys + anchor);
      }
    } else {
      any_rows(image, begin * level_->anchors, end * level_->anchors, keys);
    }
  }

 private:
  void even_rows(const T* data, int64_t begin, int64_t end, float* keys) {
    const int64_t stride = level_->row_stride();
    const ReadAhead ahead = read_ahead_.of_rows(stride, classes_);
    int64_t row = begin;
    for (; row + kLanes <= end; row += kLanes) {
      block_keys_.compute(data + row * stride, stride, ahead, keys + row);
    }
    if (row == end) return;
    copied_rows(end - row, [&](int64_t i) { return data + (row + i) * stride; }, 1, keys + row);
  }

  void any_rows(int64_t image, int64_t begin, int64_t end, float* keys) {
    const T* data = static_cast<const T*>(level_->data);
    for (int64_t row = begin; row < end; row += kLanes) {
      copied_rows(
          std::min(kLanes, end - row),
          [&](int64_t i) { return data + level_->offset(image, row + i); }, level_->channel_stride,
          keys + row);
    }
  }

  // Keys of at most kLanes rows, through a copy in float32 that has no gaps.
  template <typename RowAt>
  void copied_rows(int64_t count, const RowAt& row_at, int64_t channel_stride, float* keys) {
    const int64_t stride = std::max(classes_, kLanes);
    for (int64_t i = 0; i < count; ++i) {
      load_row_as_floats(row_at(i), channel_stride, classes_, &block_[i * stride]);
    }
    float computed[kLanes];
    block_keys_.compute(block_.data(), stride, ReadAhead(), computed);
    std::copy(computed, computed + count, keys);
  }

  // Keys of one box of each cell, the classes of which are planes: a vector holds many cells.
  void planes(const T* data, int64_t begin, int64_t end, float* keys) const {
    constexpr int64_t kStrip = 2048;  // so long that the planes of a map are read one by one
    float sums[kStrip + kLanes];
    while (begin < end) {
      const int64_t count = end - begin < kStrip + kLanes ? end - begin : kStrip;
      std::fill(sums, sums + count, 0.0f);
      const Keep all = keep_lanes(splat(-1));
      Ints doubt{};
      for (int64_t c = 0; c < classes_; ++c) {
        if (c == background_) continue;
        const T* plane = data + c * level_->channel_stride + begin;
        const T* reference = data + background_ * level_->channel_stride + begin;
        const auto add = [&](int64_t i, Keep keep) {
          read_ahead_(plane + i, kLanes);
          const Floats difference = load_floats(plane + i) - load_floats(reference + i);
          const Ints bits = rough_exp(difference, splat(kRoughOffset), keep);
          doubt |= bits;
          store(sums + i, load(sums + i) + as_floats(bits));
        };
        int64_t i = 0;
        for (; i + kLanes <= count; i += kLanes) add(i, all);
        const int64_t last = count - kLanes;
        if (i < count) add(last, keep_lanes(lane_numbers() >= static_cast<int32_t>(i - last)));
      }
      const bool doubtful = any(doubt < 0);
      for (int64_t i = 0; i < count; ++i) {
        const bool good = !doubtful && sums[i] <= std::numeric_limits<float>::max();
        keys[(begin + i) * level_->anchors] = good ? sums[i] : kDoubtful;
      }
      begin += count;
    }
  }

  const Level* level_ = nullptr;
  int64_t classes_ = -1;
  int64_t background_ = -1;
  BlockKeys block_keys_;
  ReadAhead read_ahead_ = ReadAhead::if_worth_it();
  std::vector<float> block_;
};

// The least rough key of a row that can be among the k hardest, given one that k rows reach.
inline float least_rough_key(float reached, int64_t classes) {
  // Tiny keys are all error; sums of so many terms that rounding shows are left to exact keys.
  if (!(reached > 1e-30f) || classes > 4096) return 0;
  return reached / (kRoughExcess * 1.001f);
}

}  // namespace ssd_fast::SSD_FAST_ISA
