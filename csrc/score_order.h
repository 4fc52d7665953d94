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
// comparisons take 10 ns times the logarithm of their number; keys of equal scores are few.
class KeySorter {
 public:
  void sort(std::vector<uint64_t>& keys) {
    if (keys.size() < 64) {
      std::sort(keys.begin(), keys.end());
    } else {
      if (scratch_.size() < keys.size()) scratch_.resize(keys.size());
      keys.size() < 4096 ? sort_scores<8, 4>(keys) : sort_scores<11, 3>(keys);
      sort_equals(keys);
    }
  }

 private:
  // A stable sort by score, kBits at a time.
  template <int kBits, int kDigits>
  void sort_scores(std::vector<uint64_t>& keys) {
    constexpr uint32_t kValues = 1u << kBits;
    const auto digit_of = [](uint64_t key, int digit) {
      return static_cast<uint32_t>(key >> (32 + kBits * digit)) & (kValues - 1);
    };
    const size_t n = keys.size();
    uint32_t counts[kDigits][kValues] = {};
    for (const uint64_t key : keys) {
      for (int d = 0; d < kDigits; ++d) ++counts[d][digit_of(key, d)];
    }
    uint64_t* from = keys.data();
    uint64_t* to = scratch_.data();
    for (int d = 0; d < kDigits; ++d) {
      if (counts[d][digit_of(from[0], d)] == n) continue;
      uint32_t begin = 0;
      for (uint32_t& count : counts[d]) {
        const uint32_t end = begin + count;
        count = begin;
        begin = end;
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
