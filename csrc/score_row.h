// SPDX-License-Identifier: BSD-3-Clause
// The scores of one row of logits: its softmax, or the sigmoid of each. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "exponential.h"
#include "row_loads.h"
#include "rows.h"
#include "scratch.h"
#include "simd.h"

namespace ssd_fast::SSD_FAST_ISA {

// Sixteen partial sums, whatever a vector holds, added in one order: scores are equal everywhere.
class ScoreRow {
 public:
  void resize(int64_t classes) {
    classes_ = classes;
    exps_.resize(static_cast<size_t>((classes + kPartial - 1) / kPartial * kPartial));
  }

  // Reads a row, and minus infinity behind it.
  template <typename T>
  void read(const T* logits, int64_t channel_stride) {
    if constexpr (kLanes == kPartial && std::is_same_v<T, float>) {
      if (channel_stride == 1) {
        // No store overlaps another, or loads would wait for both.
        for (int64_t c = 0; c < classes_; c += kLanes) {
          store(&exps_[c], load_some(logits + c, classes_ - c, kNone));
        }
        return;
      }
    }
    if (channel_stride == 1 && classes_ >= kLanes) {
      for (int64_t c = 0; c < classes_; c += kLanes) {
        const int64_t start = std::min(c, classes_ - kLanes);
        store(&exps_[start], load_floats(logits + start));
      }
    } else {
      load_row(logits, channel_stride, classes_, exps_.data());
    }
    std::fill(exps_.begin() + classes_, exps_.end(), kNone);
  }

  // Of the row that was read, once: calls each(c, score, lanes) for kLanes classes from c on,
  // `lanes` those whose score exceeds `threshold` and for which open[c] is not 0. `open` covers
  // whole groups of kPartial classes. A NaN or +inf logit makes all scores NaN, and NaN exceeds
  // nothing.
  template <typename Each>
  void scores(float threshold, const int32_t* open, const Each& each) {
    Floats greatest = splat(kNone);
    for (size_t c = 0; c < exps_.size(); c += kLanes) greatest = max(load(&exps_[c]), greatest);
    const float largest = fold_lanes(greatest, [](Floats a, Floats b) { return max(a, b); });
    Floats partial[kPartial / kLanes] = {};
    for (size_t c = 0; c < exps_.size(); c += kPartial) {
#pragma GCC unroll 4
      for (int i = 0; i < kPartial / kLanes; ++i) {
        const Floats power = exp(load(&exps_[c + i * kLanes]) - largest);
        store(&exps_[c + i * kLanes], power);
        partial[i] += power;
      }
    }
#pragma GCC unroll 2
    for (int n = kPartial / kLanes / 2; n > 0; n /= 2) {
#pragma GCC unroll 2
      for (int i = 0; i < n; ++i) partial[i] += partial[i + n];
    }
    const float sum = fold_lanes(partial[0], [](Floats a, Floats b) { return a + b; });
    for (size_t c = 0; c < exps_.size(); c += kLanes) {
      const Floats score = load(&exps_[c]) / sum;
      const uint32_t lanes = lanes_of((score > threshold) & (load(open + c) != 0));
      if (lanes != 0) each(static_cast<int64_t>(c), score, lanes);
    }
  }

  // The same with the sigmoid of each logit, none of which depends on the others. Logits below
  // `bar`, or NaN, have no score above the threshold: vectors of these cost a comparison.
  template <typename Each>
  void sigmoids(float threshold, float bar, const int32_t* open, const Each& each) {
    for (size_t c = 0; c < exps_.size(); c += kLanes) {
      const Floats logit = load(&exps_[c]);
      if (!any_reaching(logit, splat(bar))) continue;
      const Floats score = splat(1.0f) / (exp(Floats{} - logit) + 1.0f);
      const uint32_t lanes = lanes_of((score > threshold) & (load(open + c) != 0));
      if (lanes != 0) each(static_cast<int64_t>(c), score, lanes);
    }
  }

  static constexpr int64_t kPartial = 16;

 private:
  static constexpr float kNone = -std::numeric_limits<float>::infinity();
  int64_t classes_ = 0;
  AlignedVector<float> exps_;  // (C,) in whole groups of kPartial
};

}  // namespace ssd_fast::SSD_FAST_ISA
