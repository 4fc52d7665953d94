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

// Selects in one image after another; keeps its scratch memory between them. `order_of(p, count)`
// gives the orders of `count` priors from p on, at most kLanes, and kNoOrder for what is no
// candidate; `doubtful(order)` says which lanes hold an order that tells nothing.
class Selector {
 public:
  // Lists the candidates, in order, that reach the result, all doubtful ones, and perhaps more. At
  // least k of the candidates reach the result, and hardly more; it is kNoOrder if there are fewer.
  template <typename OrderOf, typename Doubtful>
  int32_t bound(int64_t P, int64_t k, int64_t slack, const OrderOf& order_of,
                const Doubtful& doubtful) {
    pivot_ = sampled_pivot(P, k, order_of);
    list(P, pivot_, order_of, doubtful);
    int32_t found = reached_by(k, slack);
    if (found < pivot_ && pivot_ > kNoOrder + 1) {
      list(P, kNoOrder + 1, order_of, doubtful);
      found = reached_by(k, slack);
    }
    return found;
  }

  // After `bound`, lists the candidates that reach `least`, and all doubtful ones.
  template <typename OrderOf, typename Doubtful>
  void list_reaching(int64_t P, int32_t least, const OrderOf& order_of, const Doubtful& doubtful) {
    if (least < pivot_) return list(P, least, order_of, doubtful);
    const int64_t n = count_;
    store(orders_.data() + n, splat(kNoOrder));
    int64_t kept = 0;
    for (int64_t i = 0; i < n; i += kLanes) {  // written behind what was read
      const Ints order = load(orders_.data() + i), place = load(places_.data() + i);
      const Ints keep = (order >= least) | doubtful(order);
      compress(keep, order, orders_.data() + kept);
      kept += compress(keep, place, places_.data() + kept);
    }
    count_ = kept;
  }

  // What was listed.
  const int32_t* places() const { return places_.data(); }
  int64_t count() const { return count_; }

  // Orders what was listed by these keys, one each with kLanes behind them, and calls take(i), in
  // order, for the k of the largest order, the first among equals, 0 < k <= count().
  template <typename Take>
  void select_listed(int64_t k, const float* keys, const Take& take) {
    for (int64_t i = 0; i < count_; i += kLanes) {
      store(orders_.data() + i, mining_order(load(keys + i)));
    }
    take_reaching(bisect_orders(orders_.data(), count_, k, 0), k, take);
  }

  // Calls take(p), in order, for the k candidates of the largest order, the lowest p first among
  // equals; k is at most the number of candidates.
  template <typename OrderOf, typename Take>
  void select(int64_t P, int64_t k, const OrderOf& order_of, const Take& take) {
    if (k <= 0) return;
    const int32_t last = bound(P, k, 0, order_of, [](Ints) { return Ints{}; });
    take_reaching(last, k, [&](int64_t i) { take(places_[i]); });
  }

 private:
  static constexpr int32_t kMost = std::numeric_limits<int32_t>::max();

  // Calls take(i) for all that were listed above `last`, and for the first that equal it up to k.
  template <typename Take>
  void take_reaching(int32_t last, int64_t k, const Take& take) {
    store(orders_.data() + count_, splat(kNoOrder));
    int64_t ties = k - (last < kMost ? count_reaching(orders_.data(), count_, last + 1) : 0);
    for (int64_t i = 0; i < count_; i += kLanes) {
      const Ints order = load(orders_.data() + i);
      uint32_t lanes = lanes_of(order >= last);
      for (; lanes != 0; lanes &= lanes - 1) {
        const int lane = __builtin_ctz(lanes);
        if (order[lane] > last || ties-- > 0) take(i + lane);
      }
    }
  }

  // An order that about twice k candidates reach, or kNoOrder + 1, which all candidates reach,
  // where a sample tells nothing.
  template <typename OrderOf>
  int32_t sampled_pivot(int64_t P, int64_t k, const OrderOf& order_of) {
    constexpr int64_t kSample = 512;
    if (P < 4 * kSample || k > P / 6) return kNoOrder + 1;
    int32_t sample[kSample + kLanes];
    for (int64_t i = 0; i < kSample; i += kLanes) {
      store(sample + i, order_of(i * (P - kLanes) / kSample, kLanes));
    }
    const int64_t rank = 2 * k * kSample / P + 8;
    return std::max(bisect_orders(sample, kSample, rank, rank / 4), kNoOrder + 1);
  }

  // Lists the candidates that reach `pivot`, and all doubtful ones.
  template <typename OrderOf, typename Doubtful>
  void list(int64_t P, int32_t pivot, const OrderOf& order_of, const Doubtful& doubtful) {
    constexpr int64_t kStretch = 64 * kLanes;
    int64_t n = 0;
    for (int64_t begin = 0; begin < P; begin += kStretch) {
      // Few reach a pivot, so memory follows what is kept, not P.
      make_room(n + kStretch);
      n += list_stretch(begin, std::min(begin + kStretch, P), pivot, order_of, doubtful,
                        orders_.data() + n, places_.data() + n);
    }
    count_ = n;
  }

  // Of priors `begin` to `end`; returns how many. Apart, so that all of it stays in registers.
  template <typename OrderOf, typename Doubtful>
  static int64_t list_stretch(int64_t begin, int64_t end, int32_t pivot, const OrderOf& order_of,
                              const Doubtful& doubtful, int32_t* orders, int32_t* places) {
    int64_t n = 0;
    Ints place = lane_numbers() + static_cast<int32_t>(begin);
    const auto add = [&](Ints order) __attribute__((always_inline)) {
      const Ints keep = (order >= pivot) | doubtful(order);
      compress(keep, order, orders + n);
      n += compress(keep, place, places + n);
      place += static_cast<int32_t>(kLanes);
    };
    int64_t p = begin;
    for (; p + kLanes <= end; p += kLanes) add(order_of(p, kLanes));
    if (p < end) add(order_of(p, end - p));
    return n;
  }

  // `compress` writes behind the first n numbers, and `bisect_orders` behind those.
  void make_room(int64_t n) {
    if (static_cast<int64_t>(orders_.size()) >= n + 2 * kLanes) return;
    orders_.resize(static_cast<size_t>(2 * n));
    places_.resize(static_cast<size_t>(2 * n));
  }

  int32_t reached_by(int64_t k, int64_t slack) {
    return count_ < k ? kNoOrder : bisect_orders(orders_.data(), count_, k, slack);
  }

  std::vector<int32_t> orders_, places_;  // of the candidates that are listed
  int64_t count_ = 0;
  int32_t pivot_ = kNoOrder;  // which they reach
};

}  // namespace ssd_fast::SSD_FAST_ISA
