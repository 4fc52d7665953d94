// SPDX-License-Identifier: BSD-3-Clause
// The best of many scores, without a sort of all of them. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "rows.h"
#include "score_order.h"

namespace ssd_fast {

// The best of the keys that are offered.
class BestKeys {
 public:
  static constexpr size_t kMost = 2048;

  // Forgets all keys. Keeps at most twice the best `most`; those up to `visited` are not taken.
  void reset(size_t most, uint64_t visited, float floor) {
    most_ = most;
    visited_ = visited;
    limit_ = std::numeric_limits<uint64_t>::max();
    floor_ = floor;
    keys_.clear();
    keys_.reserve(2 * kMost);
  }

  void offer(uint64_t key) {
    if (key <= visited_ || key >= limit_) return;
    keys_.push_back(key);
    if (keys_.size() == 2 * most_) shrink();
  }

  // Leaves out all but the best `most`.
  void shrink() {
    if (keys_.size() <= most_) return;
    const auto last = keys_.begin() + static_cast<int64_t>(most_);
    std::nth_element(keys_.begin(), last, keys_.end());
    limit_ = *last;
    floor_ = score_of(limit_);
    keys_.erase(last, keys_.end());
  }

  // No key of a lower score can still be among the best.
  float floor() const { return floor_; }

  // What all scores exceed that can still be among the best.
  float below() const {
    return floor_ > 0 ? bits_to_float(float_to_bits(floor_) - 1)
                      : -std::numeric_limits<float>::infinity();
  }

  bool has_left_out() const { return limit_ != std::numeric_limits<uint64_t>::max(); }

  // Sorts the keys, best first.
  const std::vector<uint64_t>& sorted() {
    sorter_.sort(keys_);
    return keys_;
  }

 private:
  size_t most_ = kMost;
  uint64_t visited_ = 0;
  uint64_t limit_ = 0;
  float floor_ = 0;
  std::vector<uint64_t> keys_;
  KeySorter sorter_;
};

}  // namespace ssd_fast
