// SPDX-License-Identifier: BSD-3-Clause
// Selection of the hardest negatives of one image. Contract: ssd_fast/ops/mine.py. Torch-free.
//
// What it costs: one pass over the P keys that keeps those above a pivot, which a sample of them
// gives; then a bisection of the few that are left, vector by vector. Nothing is sorted, and no
// branch depends on a key: about a nanosecond for sixteen priors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "instruction_set.h"
#include "match.h"
#include "simd.h"

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

struct MineJob {
  const float* loss;     // (B, P)
  const int32_t* match;  // (B, P)
  int64_t P;
  float ratio;
  int64_t min_negatives;
  bool* selected;  // (B, P), out, false at first
};

SSD_FAST_PER_INSTRUCTION_SET(
    // Selects in images `begin` to `end` of the batch.
    void mine_images(const MineJob& job, int64_t begin, int64_t end);)

}  // namespace ssd_fast

namespace ssd_fast::SSD_FAST_ISA {

// Below the order of every float.
constexpr int32_t kNoOrder = std::numeric_limits<int32_t>::min();

// Integers that order floats: -0.0 and 0.0 are equal, NaN is the largest.
inline Ints mining_order(Floats values) {
  const Ints bits = as_ints(values + 0.0f);
  const Ints order = bits ^ ((bits >> 31) & 0x7fffffff);
  return values == values ? order : splat(std::numeric_limits<int32_t>::max());
}

// How many of `n` orders, padded with kNoOrder to whole vectors, are at least `bound`.
inline int64_t count_reaching(const int32_t* orders, int64_t n, int32_t bound) {
  Ints count{};
  for (int64_t i = 0; i < n; i += kLanes) count -= load(orders + i) >= bound;
  return sum_of_lanes(count);
}

// An order that at least k of `n` orders reach, 0 < k <= n, and at most k + slack of them if any
// order can tell so; with slack 0 and distinct orders, exactly k. `orders` has kLanes numbers of
// room behind its end.
inline int32_t bisect_orders(int32_t* orders, int64_t n, int64_t k, int64_t slack) {
  store(orders + n, splat(kNoOrder));
  Ints least = splat(std::numeric_limits<int32_t>::max()), greatest = splat(kNoOrder);
  for (int64_t i = 0; i < n; i += kLanes) {
    const Ints order = load(orders + i);
    greatest = order > greatest ? order : greatest;
    least = order < least ? order : least;
  }
  int64_t low = least[0], high = greatest[0];
  for (int lane = 1; lane < kLanes; ++lane) {
    low = std::min<int64_t>(low, least[lane]);
    high = std::max<int64_t>(high, greatest[lane]);
  }
  while (low < high) {  // at least k reach low, fewer than k reach high + 1
    const int64_t middle = low + (high - low + 1) / 2;
    const int64_t reaching = count_reaching(orders, n, static_cast<int32_t>(middle));
    if (reaching >= k) low = middle;
    if (reaching < k) high = middle - 1;
    if (reaching >= k && reaching <= k + slack) break;
  }
  return static_cast<int32_t>(low);
}

// Lets `compress` write behind the first n numbers, and `bisect_orders` behind those. Few pass a
// pivot, so memory follows what is kept, not P.
inline void make_room(std::vector<int32_t>& numbers, int64_t n) {
  if (static_cast<int64_t>(numbers.size()) < n + 2 * kLanes) {
    numbers.resize(static_cast<size_t>(2 * n + 1024));
  }
}

// Selects in one image after another; keeps its scratch memory between them.
class Selector {
 public:
  // An order that at least k, and hardly more, of the candidates reach; kNoOrder if there are
  // fewer than k. `order_of(p)` gives the orders of kLanes priors, kNoOrder for no candidate.
  template <typename OrderOf>
  int32_t bound(int64_t P, int64_t k, int64_t slack, const OrderOf& order_of) {
    const int32_t pivot = sampled_pivot(P, k, order_of);
    int64_t n = compress_orders(P, pivot, order_of);
    if (n < k && pivot > kNoOrder + 1) n = compress_orders(P, kNoOrder + 1, order_of);
    return n < k ? kNoOrder : bisect_orders(orders_.data(), n, k, slack);
  }

  // Calls take(p), in order, for the k candidates of the largest order, the lowest p first among
  // equals; k is at most the number of candidates.
  template <typename OrderOf, typename Take>
  void select(int64_t P, int64_t k, const OrderOf& order_of, const Take& take) {
    if (k <= 0) return;
    const int32_t last = bound(P, k, 0, order_of);
    int64_t above = 0;
    const auto visit = [&](const auto& act) {
      for (int64_t p = 0; p < P; p += kLanes) {
        const Ints order = order_of(p);
        uint32_t lanes = lanes_of(order >= last);
        for (; lanes != 0; lanes &= lanes - 1) {
          const int lane = __builtin_ctz(lanes);
          act(p + lane, order[lane] > last);
        }
      }
    };
    visit([&](int64_t, bool is_above) { above += is_above; });
    int64_t ties = k - above;
    visit([&](int64_t p, bool is_above) {
      if (is_above || ties-- > 0) take(p);
    });
  }

 private:
  // An order that about twice k candidates reach, or kNoOrder + 1, which all candidates reach,
  // where a sample tells nothing.
  template <typename OrderOf>
  int32_t sampled_pivot(int64_t P, int64_t k, const OrderOf& order_of) {
    constexpr int64_t kSample = 512;
    if (P < 4 * kSample || k > P / 6) return kNoOrder + 1;
    int32_t sample[kSample + kLanes];
    for (int64_t i = 0; i < kSample; i += kLanes) {
      store(sample + i, order_of(i * (P - kLanes) / kSample));
    }
    const int64_t rank = 2 * k * kSample / P + 8;
    return std::max(bisect_orders(sample, kSample, rank, rank / 4), kNoOrder + 1);
  }

  template <typename OrderOf>
  int64_t compress_orders(int64_t P, int32_t pivot, const OrderOf& order_of) {
    int64_t n = 0;
    for (int64_t p = 0; p < P; p += kLanes) {
      const Ints order = order_of(p);
      make_room(orders_, n);
      n += compress(order >= pivot, order, orders_.data() + n);
    }
    return n;
  }

  std::vector<int32_t> orders_;
};

}  // namespace ssd_fast::SSD_FAST_ISA
