// SPDX-License-Identifier: BSD-3-Clause
// Scores and indices as integers that sort best first. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "rows.h"

namespace ssd_fast {

// Sorting these in ascending order sorts by score, best first, then by index. -0.0 equals 0.0.
inline uint64_t score_key(float score, uint32_t index) {
  const uint32_t bits = float_to_bits(score + 0.0f);
  return uint64_t{bits & 0x80000000u ? bits : bits ^ 0x7fffffffu} << 32 | index;
}

inline float score_of(uint64_t key) {
  const uint32_t bits = static_cast<uint32_t>(key >> 32);
  return bits_to_float(bits & 0x80000000u ? bits : bits ^ 0x7fffffffu);
}

// Sorts keys; keeps its scratch memory. Two passes of a radix sort over the leading bits leave few
// keys for comparisons: some 5 ns a key, where a sort by comparisons alone takes 3 ns times the
// logarithm of their number.
class KeySorter {
 public:
  void sort(std::vector<uint64_t>& keys) {
    if (keys.size() < 64) {
      std::sort(keys.begin(), keys.end());
    } else {
      sort_leading(keys);
      sort_rest(keys);
    }
  }

 private:
  static constexpr int kMaxBits = 11;  // of a digit

  uint64_t leading(uint64_t key) const { return (key - least_) >> shift_; }

  // A stable sort by the leading bits of the scores, from the highest in which they differ: two
  // digits, long enough that among evenly spread scores few agree in both.
  void sort_leading(std::vector<uint64_t>& keys) {
    const size_t n = keys.size();
    if (scratch_.size() < n) scratch_.resize(n);
    uint64_t greatest = keys[0];
    least_ = keys[0];
    for (const uint64_t key : keys) {
      least_ = key < least_ ? key : least_;
      greatest = key > greatest ? key : greatest;
    }
    least_ &= ~uint64_t{0xffffffff};
    int bits = 7;
    while (bits < kMaxBits && n >> bits != 0) ++bits;
    shift_ = 32;
    while (leading(greatest) >> (2 * bits) != 0) ++shift_;

    const uint32_t values = 1u << bits;
    uint32_t low[1 << kMaxBits], high[1 << kMaxBits];
    std::fill(low, low + values, 0);
    std::fill(high, high + values, 0);
    for (const uint64_t key : keys) {
      const uint64_t digits = leading(key);
      ++low[digits & (values - 1)];
      ++high[digits >> bits];
    }
    for (uint32_t value = 0, low_end = 0, high_end = 0; value < values; ++value) {
      low_end += low[value];
      low[value] = low_end - low[value];
      high_end += high[value];
      high[value] = high_end - high[value];
    }
    for (const uint64_t key : keys) scratch_[low[leading(key) & (values - 1)]++] = key;
    for (size_t i = 0; i < n; ++i) keys[high[leading(scratch_[i]) >> bits]++] = scratch_[i];
  }

  // Sorts the runs of keys that agree in their leading bits.
  void sort_rest(std::vector<uint64_t>& keys) const {
    const size_t n = keys.size();
    for (size_t i = 1; i < n; ++i) {
      if (keys[i - 1] <= keys[i]) continue;
      const auto agrees = [&](size_t k) { return leading(keys[k]) == leading(keys[i]); };
      size_t begin = i, end = i;
      while (begin > 0 && agrees(begin - 1)) --begin;
      while (end < n && agrees(end)) ++end;
      std::sort(keys.begin() + static_cast<int64_t>(begin),
                keys.begin() + static_cast<int64_t>(end));
      i = end;
    }
  }

  std::vector<uint64_t> scratch_;
  uint64_t least_ = 0;
  int shift_ = 0;
};

}  // namespace ssd_fast
