// SPDX-License-Identifier: BSD-3-Clause
// Selection of the hardest negatives of one image. Contract: ssd_fast/ops/mine.py. Torch-free.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "match.h"
#include "rows.h"

namespace ssd_fast {

// How many negatives an image wants: ceil(float32(ratio) * float32(positives)), at least
// `min_negatives`, at most `candidates`.
inline int64_t negatives_wanted(float ratio, int64_t positives, int64_t min_negatives,
                                int64_t candidates) {
  const float share = std::ceil(ratio * static_cast<float>(positives));
  const int64_t least = std::min(std::max<int64_t>(min_negatives, 0), candidates);
  if (share >= static_cast<float>(candidates)) return candidates;
  return std::max(static_cast<int64_t>(share), least);
}

// An unsigned integer that orders floats: -0.0 and 0.0 are equal, NaN is the largest.
inline uint32_t mining_order(float value) {
  if (value != value) return 0xffffffffu;
  const uint32_t bits = float_to_bits(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Selects in one image after another; keeps its scratch memory between them.
class Miner {
 public:
  // Calls `take(p)`, in no order, for the `k` candidates p (match[p] == -1) with the largest
  // loss, the lowest p first among equals. k is at most the number of candidates.
  template <typename Take>
  void select(const float* loss, const int32_t* match, int64_t P, int64_t k, const Take& take) {
    if (k <= 0) return;
    keys_.clear();
    priors_.clear();
    for (int64_t p = 0; p < P; ++p) {
      if (match[p] != kBackground) continue;
      keys_.push_back(mining_order(loss[p]));
      priors_.push_back(static_cast<int32_t>(p));
    }
    const uint32_t last = kth_largest(k);
    int64_t ties = k;
    for (uint32_t key : keys_) ties -= key > last;
    for (size_t i = 0; i < keys_.size(); ++i) {
      if (keys_[i] > last || (keys_[i] == last && ties-- > 0)) take(int64_t{priors_[i]});
    }
  }

 private:
  // The k-th largest key. A pivot from a sample leaves few keys to select among: the whole set is
  // read once and compressed, never sorted.
  uint32_t kth_largest(int64_t k) {
    const uint32_t pivot = sampled_pivot(k);
    survivors_.clear();
    for (uint32_t key : keys_) {
      if (key >= pivot) survivors_.push_back(key);
    }
    if (static_cast<int64_t>(survivors_.size()) < k) survivors_ = keys_;
    std::nth_element(survivors_.begin(), survivors_.begin() + (k - 1), survivors_.end(),
                     std::greater<>());
    return survivors_[k - 1];
  }

  // A key that about twice k of the keys reach; 0, which all reach, where sampling gains nothing.
  uint32_t sampled_pivot(int64_t k) const {
    constexpr int64_t kSample = 512;
    const int64_t n = static_cast<int64_t>(keys_.size());
    if (n < 2 * kSample || k > n / 4) return 0;
    uint32_t sample[kSample];
    for (int64_t i = 0; i < kSample; ++i) sample[i] = keys_[i * n / kSample];
    const int64_t rank = std::min(kSample - 1, 2 * k * kSample / n + 4);
    std::nth_element(sample, sample + rank, sample + kSample, std::greater<>());
    return sample[rank];
  }

  std::vector<uint32_t> keys_;
  std::vector<uint32_t> survivors_;
  std::vector<int32_t> priors_;
};

}  // namespace ssd_fast
