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

// Sorts keys; keeps its scratch memory. A radix sort of the scores takes about 5 ns a key where
// comparisons take 3 ns times the logarithm of their number; keys of equal scores are few.
class KeySorter {
 public:
  void sort(std::vector<uint64_t>& keys) {
    if (keys.size() < 64) {
      std::sort(keys.begin(), keys.end());
    } else {
      sort_scores(keys);
      sort_equals(keys);
    }
  }

 private:
  static constexpr int kDigits = 3;
  static constexpr int kMaxBits = 11;  // of a digit: three hold 32 bits

  // A stable sort by score, in digits just long enough for the range of the scores.
  void sort_scores(std::vector<uint64_t>& keys) {
    const size_t n = keys.size();
    if (scratch_.size() < n) scratch_.resize(n);
    uint64_t least = keys[0], greatest = keys[0];
    for (const uint64_t key : keys) {
      least = key < least ? key : least;
      greatest = key > greatest ? key : greatest;
    }
    least &= ~uint64_t{0xffffffff};
    int bits = 1;
    while (bits < kMaxBits && (greatest - least) >> (32 + kDigits * bits) != 0) ++bits;
    const uint32_t mask = (1u << bits) - 1;
    const auto digit_of = [=](uint64_t key, int digit) {
      return static_cast<uint32_t>((key - least) >> (32 + bits * digit)) & mask;
    };
    uint32_t counts[kDigits][1 << kMaxBits];
    for (auto& count : counts) std::fill(count, count + mask + 1, 0);
    for (const uint64_t key : keys) {
      for (int d = 0; d < kDigits; ++d) ++counts[d][digit_of(key, d)];
    }
    uint64_t* from = keys.data();
    uint64_t* to = scratch_.data();
    for (int d = 0; d < kDigits; ++d) {
      if (counts[d][digit_of(from[0], d)] == n) continue;
      uint32_t begin = 0;
      for (uint32_t value = 0; value <= mask; ++value) {
        const uint32_t count = counts[d][value];
        counts[d][value] = begin;
        begin += count;
      }
      for (size_t i = 0; i < n; ++i) to[counts[d][digit_of(from[i], d)]++] = from[i];
      std::swap(from, to);
    }
    if (from != keys.data()) std::copy(from, from + n, keys.data());
  }

  // Puts runs of equal scores in the order of their indices.
  static void sort_equals(std::vector<uint64_t>& keys) {
    const size_t n = keys.size();
    for (size_t i = 1; i < n; ++i) {
      if (keys[i - 1] <= keys[i]) continue;
      const auto is_equal = [&](size_t k) { return keys[k] >> 32 == keys[i] >> 32; };
      size_t begin = i, end = i;
      while (begin > 0 && is_equal(begin - 1)) --begin;
      while (end < n && is_equal(end)) ++end;
      std::sort(keys.begin() + static_cast<int64_t>(begin),
                keys.begin() + static_cast<int64_t>(end));
      i = end;
    }
  }

  std::vector<uint64_t> scratch_;
};

}  // namespace ssd_fast
