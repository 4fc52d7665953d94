// SPDX-License-Identifier: BSD-3-Clause
// Mining keys: of each row the sum over c != background of exp(x_c - x_background). Torch-free.
//
// What they cost: the rough pass reads every logit once, where it lies, and spends a difference, a
// product, a conversion and three additions on a vector of them: 2^t is taken as the float whose
// bits are t in fixed point, which is at most 6.15 % too large and never too small. That is enough
// to leave few rows whose exact keys, about twenty operations a vector, are worth computing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "rows.h"
#include "simd.h"

namespace ssd_fast::SSD_FAST_ISA {

// The rough key of a row that the rough pass cannot bound: an exponential beyond the range of
// normal floats, a NaN, an infinity.
constexpr float kDoubtful = -1.0f;

#if defined(__SSE2__)
// A rough key is between the exact one and this many times it, as long as it is not tiny.
constexpr float kRoughExcess = 1.0615f;

inline Ints rounded(Floats x) {
#if defined(__AVX512F__)
  return reinterpret_cast<Ints>(_mm512_cvtps_epi32(reinterpret_cast<__m512>(x)));
#elif defined(__AVX2__)
  return reinterpret_cast<Ints>(_mm256_cvtps_epi32(reinterpret_cast<__m256>(x)));
#else
  return reinterpret_cast<Ints>(_mm_cvtps_epi32(reinterpret_cast<__m128>(x)));
#endif
}

// The bits of roughly e^x. Of a NaN and of |x| > 88 the result is negative, not finite, or close
// to zero for an x that is truly so small: overflow wraps around to the sign.
inline Ints rough_exp(Floats x) {
  return reinterpret_cast<Ints>(reinterpret_cast<Words>(rounded(x * 12102203.16f)) + 0x3f800000u);
}
#else
constexpr float kRoughExcess = 1.00001f;

inline Ints rough_exp(Floats x) { return as_ints(exp(x)); }
#endif

// Rough keys of one level after another; keeps its scratch memory between them.
template <typename T>
class RoughKeys {
 public:
  // Prepares for a level, which must outlive the computation.
  void reset(const Level& level, int64_t classes, int64_t background) {
    level_ = &level;
    if (classes == classes_ && background == background_) return;
    classes_ = classes;
    background_ = background;
    vectors_ = (classes + kLanes - 1) / kLanes;
    block_.resize(static_cast<size_t>(kLanes * std::max(classes, kLanes)));
    starts_.clear();
    keep_.clear();
    // The last vector of a row ends with the row: it does not read on, it reads some lanes again.
    for (int64_t v = 0; v < vectors_; ++v) {
      const int64_t start = std::max<int64_t>(0, std::min(v * kLanes, classes - kLanes));
      starts_.push_back(start);
      for (int64_t c = start; c < start + kLanes; ++c) {
        keep_.push_back(c >= v * kLanes && c < classes && c != background ? -1 : 0);
      }
    }
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
    int64_t row = begin;
    for (; row + kLanes <= end; row += kLanes) {
      store(keys + row, block_keys(data + row * stride, stride));
    }
    if (row < end)
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

  // Keys of at most kLanes rows, through a copy that has no gaps.
  template <typename RowAt>
  void copied_rows(int64_t count, const RowAt& row_at, int64_t channel_stride, float* keys) {
    const int64_t stride = std::max(classes_, kLanes);
    for (int64_t i = 0; i < count; ++i) {
      load_row(row_at(i), channel_stride, classes_, &block_[i * stride]);
    }
    float values[kLanes];
    store(values, block_keys(block_.data(), stride));
    std::copy(values, values + count, keys);
  }

  // Keys of kLanes contiguous rows.
  template <typename Element>
  Floats block_keys(const Element* rows, int64_t stride) const {
    switch (vectors_) {  // of 21 and 81 classes: loops of known length stay in registers
      case 2:
        return fixed_block_keys<2>(rows, stride);
      case 3:
        return fixed_block_keys<3>(rows, stride);
      case 6:
        return fixed_block_keys<6>(rows, stride);
      default:
        return fixed_block_keys<0>(rows, stride);
    }
  }

  template <int kVectors, typename Element>
  Floats fixed_block_keys(const Element* rows, int64_t stride) const {
    const int64_t vectors = kVectors ? kVectors : vectors_;
    Floats sums[kLanes];
    Ints doubt{};
    for (int64_t r = 0; r < kLanes; ++r) {
      const Element* row = rows + r * stride;
      const Floats reference = splat(to_float(row[background_]));
      Floats sum{};
      for (int64_t v = 0; v < vectors; ++v) {
        const Ints bits =
            rough_exp(load_floats(row + starts_[v]) - reference) & load(&keep_[v * kLanes]);
        doubt |= bits;
        sum += as_floats(bits);
      }
      sums[r] = sum;
    }
    const Floats keys = combine_rows(sums, [](Floats a, Floats b) { return a + b; });
    return any(doubt < 0) ? splat(kDoubtful) : settled(keys);
  }

  // Keys of one box of each cell, the classes of which are planes: a vector holds many cells.
  void planes(const T* data, int64_t begin, int64_t end, float* keys) const {
    constexpr int64_t kStrip = 2048;  // so long that the planes of a map are read one by one
    float sums[kStrip + kLanes];
    while (begin < end) {
      const int64_t count = end - begin < kStrip + kLanes ? end - begin : kStrip;
      std::fill(sums, sums + count, 0.0f);
      Ints doubt{};
      for (int64_t c = 0; c < classes_; ++c) {
        if (c == background_) continue;
        const T* plane = data + c * level_->channel_stride + begin;
        const T* reference = data + background_ * level_->channel_stride + begin;
        const auto add = [&](int64_t i, Ints keep) {
          const Ints bits = rough_exp(load_floats(plane + i) - load_floats(reference + i)) & keep;
          doubt |= bits;
          store(sums + i, load(sums + i) + as_floats(bits));
        };
        int64_t i = 0;
        for (; i + kLanes <= count; i += kLanes) add(i, splat(-1));
        const int64_t last = count - kLanes;
        if (i < count) add(last, lane_numbers() >= static_cast<int32_t>(i - last));
      }
      const bool doubtful = any(doubt < 0);
      for (int64_t i = 0; i < count; ++i) {
        const bool good = !doubtful && sums[i] <= std::numeric_limits<float>::max();
        keys[(begin + i) * level_->anchors] = good ? sums[i] : kDoubtful;
      }
      begin += count;
    }
  }

  static Floats settled(Floats keys) {
    return keys <= std::numeric_limits<float>::max() ? keys : splat(kDoubtful);
  }

  const Level* level_ = nullptr;
  int64_t classes_ = -1;
  int64_t background_ = -1;
  int64_t vectors_ = 0;
  std::vector<int64_t> starts_;  // of each vector of a row
  std::vector<int32_t> keep_;    // -1 in the lanes of each vector that enter the key
  std::vector<float> block_;
};

// The least rough key of a row that can be among the k hardest, given one that k rows reach.
inline float least_rough_key(float reached, int64_t classes) {
  // Tiny keys are all error; sums of so many terms that rounding shows are left to exact keys.
  if (!(reached > 1e-30f) || classes > 4096) return 0;
  return reached / (kRoughExcess * 1.001f);
}

// Exact keys, rows in the lanes: the sum of a row is sequential on every machine.
class ExactKeys {
 public:
  // Keys of rows `priors[0]` to `priors[n - 1]` of an image, in ascending order.
  void compute(const Rows& logits, int64_t image, int64_t background, const int32_t* priors,
               int64_t n, float* keys) {
    block_.resize(static_cast<size_t>(logits.channels * kLanes));
    level_ = 0;
    first_ = 0;
    for (int64_t i = 0; i < n; i += kLanes) {
      const int64_t count = std::min(kLanes, n - i);
      for (int64_t lane = 0; lane < count; ++lane) copy_row(logits, image, priors[i + lane], lane);
      const Floats reference = load(&block_[background * kLanes]);
      Floats sum{};
      for (int64_t c = 0; c < logits.channels; ++c) {
        if (c != background) sum += exp(load(&block_[c * kLanes]) - reference);
      }
      float sums[kLanes];
      store(sums, sum);
      std::copy(sums, sums + count, keys + i);
    }
  }

 private:
  void copy_row(const Rows& logits, int64_t image, int64_t prior, int64_t lane) {
    while (prior - first_ >= logits.levels[level_].rows) first_ += logits.levels[level_++].rows;
    const Level& level = logits.levels[level_];
    const int64_t offset = level.offset(image, prior - first_);
    visit_dtype(logits.dtype, [&](auto* type) {
      const auto* row = static_cast<const std::remove_pointer_t<decltype(type)>*>(level.data);
      row += offset;
      for (int64_t c = 0; c < logits.channels; ++c) {
        block_[c * kLanes + lane] = to_float(row[c * level.channel_stride]);
      }
    });
  }

  size_t level_ = 0;          // where the next row is looked for
  int64_t first_ = 0;         // row of the batch's list at which that level begins
  std::vector<float> block_;  // (C, kLanes)
};

}  // namespace ssd_fast::SSD_FAST_ISA
