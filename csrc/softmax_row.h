// SPDX-License-Identifier: BSD-3-Clause
// The softmax of one row of logits: its cross-entropy and gradient. Torch-free.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "exponential.h"
#include "row_loads.h"
#include "rows.h"
#include "simd.h"

namespace ssd_fast {

// How the cross-entropy counts the classes, as in ssd_fast/cross_entropy.py.
struct ClassOptions {
  const float* weights;  // (C,), or null for 1
  double smoothing;
  double weight_sum;  // of all classes

  double weight(int64_t c) const { return weights ? weights[c] : 1; }

  // What each class has of the smoothing.
  double share(int64_t classes) const { return smoothing / static_cast<double>(classes); }
};

}  // namespace ssd_fast

namespace ssd_fast::SSD_FAST_ISA {

// Writes the first `count` numbers, at least one, of `values` to `to`.
inline void store_first(float* to, Floats values, int64_t count) {
  if (count >= kLanes) return store(to, values);
#if defined(__AVX512F__)
  const auto lanes = static_cast<__mmask16>((1u << count) - 1);
  _mm512_mask_storeu_ps(to, lanes, reinterpret_cast<__m512>(values));
#else
  for (int64_t i = 0; i < count; ++i) to[i] = values[i];
#endif
}

// Exponentials of one row relative to its target: ratios[c] = exp(x_c - x_target - shift), 0 for
// the target itself. The shift is 0 as long as nothing comes near overflow: small losses keep
// their digits. Sixteen partial sums, added as halves upon halves, make results equal everywhere.
class SoftmaxRow {
 public:
  void resize(int64_t classes) {
    classes_ = classes;
    row_.resize(static_cast<size_t>(classes));
    ratios_.resize(static_cast<size_t>((classes + kPartial - 1) / kPartial * kPartial));
  }

  template <typename T>
  void load_logits(const T* logits, int64_t channel_stride, int64_t target) {
    if (channel_stride != 1) {
      load_row(logits, channel_stride, classes_, row_.data());
      load_contiguous(row_.data(), target);
    } else {
      load_contiguous(logits, target);
    }
  }

  double cross_entropy() const {
    if (shift_ == 0) return std::log1p(others_);
    if (std::isinf(shift_)) return shift_;
    return shift_ + std::log(others_ + std::exp(-shift_));
  }

  // `weighted`, the target's weight times the cross-entropy, with the smoothing of the labels.
  template <typename T>
  double smoothed(double weighted, const T* logits, int64_t channel_stride, int64_t target,
                  const ClassOptions& options) const {
    const double reference = to_float(logits[target * channel_stride]);
    const double entropy = cross_entropy();
    double sum = 0;
    for (int64_t c = 0; c < classes_; ++c) {
      const double difference = to_float(logits[c * channel_stride]) - reference;
      sum += options.weight(c) * (entropy - difference);
    }
    return (1 - options.smoothing) * weighted + options.share(classes_) * sum;
  }

  // The derivatives of the loss with weights and smoothing, times `scale`.
  template <typename T>
  void write_gradient(T* gradient, int64_t channel_stride, int64_t target,
                      const ClassOptions& options, double scale) const {
    const double weight = options.weight(target);
    if (options.smoothing == 0) {
      return write_gradient(gradient, channel_stride, target, weight * scale);
    }
    const double share = options.share(classes_);
    const double all = (1 - options.smoothing) * weight + share * options.weight_sum;
    const double factor = all / (others_ + (shift_ == 0 ? 1 : std::exp(-shift_)));
    for (int64_t c = 0; c < classes_; ++c) {
      const double slope = factor * ratios_[c] - share * options.weight(c);
      gradient[c * channel_stride] = from_float<T>(static_cast<float>(slope * scale));
    }
    const double slope = share * (options.weight_sum - weight) - factor * others_;
    gradient[target * channel_stride] = from_float<T>(static_cast<float>(slope * scale));
  }

  // softmax - one_hot, times `scale`. The target's entry comes from the others: 1 - p would cancel.
  template <typename T>
  void write_gradient(T* gradient, int64_t channel_stride, int64_t target, double scale) const {
    const double factor = scale / (others_ + (shift_ == 0 ? 1 : std::exp(-shift_)));
    const float multiplier = static_cast<float>(factor);
    int64_t c = 0;
    if constexpr (std::is_same_v<T, float>) {
      const int64_t end = channel_stride == 1 ? classes_ : 0;
      for (; c < end; c += kLanes) {
        store_first(gradient + c, load(&ratios_[c]) * multiplier, classes_ - c);
      }
    }
    for (; c < classes_; ++c) gradient[c * channel_stride] = from_float<T>(ratios_[c] * multiplier);
    gradient[target * channel_stride] = from_float<T>(static_cast<float>(-others_ * factor));
  }

 private:
  static constexpr int64_t kPartial = 16;

  template <typename T>
  void load_contiguous(const T* logits, int64_t target) {
    constexpr float kLarge = 40.0f;
    const float own = to_float(logits[target]);
    shift_ = 0;
    if (!any_above(take_ratios(logits, target, own), splat(kLarge))) return;
    const float largest = largest_logit(logits);
    shift_ = static_cast<double>(largest) - own;
    take_ratios(logits, target, largest);
  }

  // Fills in the ratios, exp(x_c - reference), and their sum; returns the greatest difference in
  // each lane, at least 0. One subtraction a logit: a second one would round what is small beside
  // logits of several hundred a second time, to 1e-4 of the ratio.
  template <typename T>
  Floats take_ratios(const T* logits, int64_t target, float reference) {
    constexpr float kNothing = -std::numeric_limits<float>::infinity();
    Ints c = lane_numbers();
    Floats greatest{};
    Floats partial[kPartial / kLanes] = {};
    for (size_t begin = 0; begin < ratios_.size(); begin += kPartial) {
#pragma GCC unroll 4
      for (int i = 0; i < kPartial / kLanes; ++i, c += static_cast<int32_t>(kLanes)) {
        const int64_t at = static_cast<int64_t>(begin) + i * kLanes;
        const Floats logit = load_first(logits + at, classes_ - at);
        // An infinite or NaN reference must not bring the target in.
        const Ints other =
            (c < static_cast<int32_t>(classes_)) & (c != static_cast<int32_t>(target));
        const Floats difference = other ? logit - reference : splat(kNothing);
        greatest = max(difference, greatest);  // in this order a NaN is passed over
        const Floats ratio = exp(difference);
        store(&ratios_[at], ratio);
        partial[i] += ratio;
      }
    }
#pragma GCC unroll 2
    for (int n = kPartial / kLanes / 2; n > 0; n /= 2) {
#pragma GCC unroll 2
      for (int i = 0; i < n; ++i) partial[i] += partial[i + n];
    }
    others_ = fold_lanes(partial[0], [](Floats a, Floats b) { return a + b; });
    return greatest;
  }

  // The largest logit of a row in which one is above the target's, NaN passed over.
  template <typename T>
  float largest_logit(const T* logits) const {
    float largest = -std::numeric_limits<float>::infinity();
    for (int64_t c = 0; c < classes_; ++c) largest = std::max(largest, to_float(logits[c]));
    return largest;
  }

  int64_t classes_ = 0;
  std::vector<float> row_;     // a row that lay scattered
  std::vector<float> ratios_;  // (C,) in whole groups of kPartial
  double shift_ = 0;
  double others_ = 0;
};

}  // namespace ssd_fast::SSD_FAST_ISA
