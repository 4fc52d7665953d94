// SPDX-License-Identifier: BSD-3-Clause
// Matching of priors to the objects of one image. Contract: ssd_fast/ops/match.py. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "box.h"
#include "simd.h"

namespace ssd_fast {

constexpr int32_t kBackground = -1;
constexpr int32_t kIgnored = -2;
constexpr int32_t kHardNegative = -3;

enum class Assign : int64_t { kLast = 0, kBipartite = 1, kNone = 2 };

struct MatchOptions {
  float iou_threshold;
  float low_threshold;  // at most iou_threshold; read where has_low_threshold
  bool has_low_threshold;
  bool strict;
  Assign assign;
};

inline MatchOptions match_options(double iou_threshold, std::optional<double> low_threshold,
                                  bool strict, int64_t assign) {
  return {static_cast<float>(iou_threshold), static_cast<float>(low_threshold.value_or(0)),
          low_threshold.has_value(), strict, static_cast<Assign>(assign)};
}

// Priors coordinate by coordinate, padded to whole vectors with boxes that overlap nothing.
class PriorPlanes {
 public:
  PriorPlanes(const float* priors, int64_t P) : size_(P) {
    padded_ = (P + kLanes - 1) / kLanes * kLanes;
    values_.assign(static_cast<size_t>(5 * padded_), 0.0f);
    for (int64_t p = 0; p < P; ++p) {
      const Box box = box_at(priors, p);
      values_[p] = box.x1;
      values_[padded_ + p] = box.y1;
      values_[2 * padded_ + p] = box.x2;
      values_[3 * padded_ + p] = box.y2;
      values_[4 * padded_ + p] = ssd_fast::area(box);
    }
  }

  int64_t size() const { return size_; }
  int64_t padded() const { return padded_; }
  const float* x1() const { return values_.data(); }
  const float* y1() const { return values_.data() + padded_; }
  const float* x2() const { return values_.data() + 2 * padded_; }
  const float* y2() const { return values_.data() + 3 * padded_; }
  const float* area() const { return values_.data() + 4 * padded_; }

 private:
  int64_t size_;
  int64_t padded_;
  std::vector<float> values_;
};

// IoU of one object with the sixteen priors from `p` on; 0 where they do not overlap.
inline Floats iou_with(const PriorPlanes& priors, int64_t p, const Box& box, float box_area) {
  const Floats width =
      min(load(priors.x2() + p), splat(box.x2)) - max(load(priors.x1() + p), splat(box.x1));
  const Floats height =
      min(load(priors.y2() + p), splat(box.y2)) - max(load(priors.y1() + p), splat(box.y1));
  const Ints overlap = (width > 0.0f) & (height > 0.0f);
  if (!any(overlap)) return Floats{};
  const Floats inter = width * height;
  const Floats sum = load(priors.area() + p) + box_area - inter;
  // A NaN coordinate of a prior makes the sum NaN: it overlaps nothing.
  return (overlap & (inter > 0.0f) & (sum > 0.0f)) ? inter / sum : Floats{};
}

// The prior that an object overlaps most.
struct Claim {
  float iou = 0;
  int32_t prior = -1;
};

// The best of per-lane bests: the highest IoU, then the lowest prior.
inline Claim reduce_claim(Floats iou, Ints prior) {
  Claim best;
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    if (iou[lane] > best.iou ||
        (iou[lane] == best.iou && iou[lane] > 0 && prior[lane] < best.prior)) {
      best = {iou[lane], prior[lane]};
    }
  }
  return best;
}

// Matches one image after another; keeps its scratch memory between them.
class Matcher {
 public:
  Matcher(const PriorPlanes& priors, const MatchOptions& options)
      : priors_(priors),
        options_(options),
        best_iou_(static_cast<size_t>(priors.padded())),
        best_object_(static_cast<size_t>(priors.padded())) {}

  // Writes the object of each prior to `matched` (P,). `is_candidate(n)` says whether object n of
  // `boxes` (N, 4) may match; returns the number of positives.
  template <typename IsCandidate>
  int64_t match(const float* boxes, int64_t N, const IsCandidate& is_candidate, int32_t* matched) {
    std::fill(best_iou_.begin(), best_iou_.end(), -1.0f);
    std::fill(best_object_.begin(), best_object_.end(), kBackground);
    claims_.assign(static_cast<size_t>(N), Claim{});
    for (int64_t n = 0; n < N; ++n) {
      const Box box = box_at(boxes, n);
      if (is_valid(box) && is_candidate(n)) claims_[n] = scan(box, static_cast<int32_t>(n));
    }
    threshold(matched);
    if (options_.assign == Assign::kLast) {
      for (int64_t n = 0; n < N; ++n) {
        if (claims_[n].iou > 0) matched[claims_[n].prior] = static_cast<int32_t>(n);
      }
    } else if (options_.assign == Assign::kBipartite) {
      claim_bipartite(boxes, N, matched);
    }
    return std::count_if(matched, matched + priors_.size(), [](int32_t m) { return m >= 0; });
  }

 private:
  // Offers object n to every prior; returns the prior that it overlaps most.
  Claim scan(const Box& box, int32_t n) {
    const float box_area = area(box);
    Floats claim_iou{};
    Ints claim_prior{};
    Ints prior;
    for (int32_t lane = 0; lane < kLanes; ++lane) prior[lane] = lane;
    for (int64_t p = 0; p < priors_.padded(); p += kLanes, prior += int32_t{kLanes}) {
      const Floats iou = iou_with(priors_, p, box, box_area);
      const Floats best = load(&best_iou_[p]);
      const Ints better = iou > best;  // strict: the first of equal objects stays
      store(&best_iou_[p], better ? iou : best);
      store(&best_object_[p], better ? splat(n) : load(&best_object_[p]));
      const Ints nearer = iou > claim_iou;
      claim_iou = nearer ? iou : claim_iou;
      claim_prior = nearer ? prior : claim_prior;
    }
    return reduce_claim(claim_iou, claim_prior);
  }

  void threshold(int32_t* matched) const {
    for (int64_t p = 0; p < priors_.size(); ++p) {
      const float iou = best_iou_[p];
      const bool positive =
          options_.strict ? iou > options_.iou_threshold : iou >= options_.iou_threshold;
      const bool ignored = options_.has_low_threshold && iou >= options_.low_threshold;
      matched[p] = positive ? best_object_[p] : (ignored ? kIgnored : kBackground);
    }
  }

  // Greedily takes the globally best pair: highest IoU, then lowest prior, then lowest object.
  // An object whose best prior was taken looks again among the free ones.
  void claim_bipartite(const float* boxes, int64_t N, int32_t* matched) {
    taken_.assign(static_cast<size_t>(priors_.padded()), 0);
    while (true) {
      int64_t winner = -1;
      for (int64_t n = 0; n < N; ++n) {
        if (claims_[n].iou > 0 && (winner < 0 || beats(claims_[n], claims_[winner]))) winner = n;
      }
      if (winner < 0) return;
      const int32_t prior = claims_[winner].prior;
      matched[prior] = static_cast<int32_t>(winner);
      taken_[prior] = -1;
      claims_[winner] = Claim{};
      for (int64_t n = 0; n < N; ++n) {
        if (claims_[n].iou > 0 && claims_[n].prior == prior) {
          claims_[n] = best_free_prior(box_at(boxes, n));
        }
      }
    }
  }

  static bool beats(const Claim& a, const Claim& b) {
    return a.iou > b.iou || (a.iou == b.iou && a.prior < b.prior);
  }

  Claim best_free_prior(const Box& box) const {
    const float box_area = area(box);
    Floats claim_iou{};
    Ints claim_prior{};
    Ints prior;
    for (int32_t lane = 0; lane < kLanes; ++lane) prior[lane] = lane;
    for (int64_t p = 0; p < priors_.padded(); p += kLanes, prior += int32_t{kLanes}) {
      const Floats iou = iou_with(priors_, p, box, box_area);
      const Ints nearer = (iou > claim_iou) & ~load(&taken_[p]);
      claim_iou = nearer ? iou : claim_iou;
      claim_prior = nearer ? prior : claim_prior;
    }
    return reduce_claim(claim_iou, claim_prior);
  }

  const PriorPlanes& priors_;
  const MatchOptions options_;
  std::vector<float> best_iou_;
  std::vector<int32_t> best_object_;
  std::vector<int32_t> taken_;  // -1, all bits, where a prior is taken
  std::vector<Claim> claims_;
};

}  // namespace ssd_fast
