// SPDX-License-Identifier: BSD-3-Clause
// The softmax of one row of logits: its cross-entropy and gradient. Torch-free.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "rows.h"
#include "simd.h"

namespace ssd_fast::SSD_FAST_ISA {

// Exponentials of one row relative to its target: ratios[c] = exp(x_c - x_target - shift), 0 for
// the target itself. The shift is 0 as long as nothing comes near overflow: small losses keep
// their digits. Sixteen partial sums, whatever the vectors hold, make results equal everywhere.
class SoftmaxRow {
 public:
  void resize(int64_t classes) {
    classes_ = classes;
    ratios_.resize(static_cast<size_t>((classes + kPartial - 1) / kPartial * kPartial));
  }

  template <typename T>
  void load_logits(const T* logits, int64_t channel_stride, int64_t target) {
    constexpr float kLarge = 40.0f;
    constexpr float kNothing = -std::numeric_limits<float>::infinity();
    load_row_as_floats(logits, channel_stride, classes_, ratios_.data());
    const float reference = ratios_[target];
    std::fill(ratios_.begin() + classes_, ratios_.end(), kNothing);
    ratios_[target] = kNothing;
    Floats greatest{};
    for (size_t c = 0; c < ratios_.size(); c += kLanes) {
      const Floats difference = load(&ratios_[c]) - reference;
      store(&ratios_[c], difference);
      greatest = max(difference, greatest);  // in this order a NaN is passed over
    }
    // An infinite or NaN reference must not bring the target back in.
    ratios_[target] = kNothing;
    std::fill(ratios_.begin() + classes_, ratios_.end(), kNothing);
    float largest = 0;
    for (int lane = 0; lane < kLanes; ++lane) largest = std::max(largest, greatest[lane]);
    shift_ = largest > kLarge ? largest : 0;
    float partial[kPartial] = {};
    for (size_t c = 0; c < ratios_.size(); c += kLanes) {
      const Floats ratio = exp(load(&ratios_[c]) - static_cast<float>(shift_));
      store(&ratios_[c], ratio);
      float* sum = partial + c % kPartial;
      store(sum, load(sum) + ratio);
    }
    others_ = 0;
    for (float sum : partial) others_ += sum;
  }

  double cross_entropy() const {
    if (shift_ == 0) return std::log1p(others_);
    if (std::isinf(shift_)) return shift_;
    return shift_ + std::log(others_ + std::exp(-shift_));
  }

  // softmax - one_hot, times `scale`. The target's entry comes from the others: 1 - p would cancel.
  template <typename T>
  void write_gradient(T* gradient, int64_t channel_stride, int64_t target, double scale) const {
    const double factor = scale / (others_ + std::exp(-shift_));
    const float multiplier = static_cast<float>(factor);
    for (int64_t c = 0; c < classes_; ++c) {
      gradient[c * channel_stride] = from_float<T>(ratios_[c] * multiplier);
    }
    gradient[target * channel_stride] = from_float<T>(static_cast<float>(-others_ * factor));
  }

 private:
  static constexpr int64_t kPartial = 16;

  int64_t classes_ = 0;
  std::vector<float> ratios_;  // (C,) in whole groups of kPartial
  double shift_ = 0;
  double others_ = 0;
};

}  // namespace ssd_fast::SSD_FAST_ISA
