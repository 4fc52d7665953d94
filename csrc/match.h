// SPDX-License-Identifier: BSD-3-Clause
// Matching of priors to the objects of one image. Contract: ssd_fast/ops/match.py. Torch-free.
//
// What it costs: priors are taken in blocks of sixteen neighbours, blocks in groups of sixteen. A
// call reads the priors once to bound both (P * 16 bytes in, P * 1.6 out). An object then tests the
// P / 256 bounds of the groups, a vector at a time, the sixteen of each group that may hold what it
// looks for, six or seven of SSD's, and computes the IoU only in the blocks whose bound reaches the
// threshold, some twenty, of which three hold a match. The bound is built from the operations of
// the IoU itself, each of which is monotonic after rounding too, so no decision can differ from the
// dense matrix.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <vector>

#include "box.h"
#include "box_lanes.h"
#include "instruction_set.h"
#include "prior_blocks.h"
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

  // The least IoU that makes a difference to a prior.
  float least() const { return has_low_threshold ? low_threshold : iou_threshold; }
};

inline MatchOptions match_options(double iou_threshold, std::optional<double> low_threshold,
                                  bool strict, int64_t assign) {
  return {static_cast<float>(iou_threshold), static_cast<float>(low_threshold.value_or(0)),
          low_threshold.has_value(), strict, static_cast<Assign>(assign)};
}

// The objects of a batch; image i owns rows offsets[i] to offsets[i + 1].
struct Objects {
  const float* boxes;      // (N, 4)
  const int64_t* labels;   // (N,); null where labels do not matter
  const int64_t* offsets;  // (B + 1,)
  int64_t N;
};

struct MatchJob {
  const PriorBlocks& priors;
  int64_t P;
  Objects objects;
  MatchOptions options;
  int32_t* matched;  // (B, P), out
};

SSD_FAST_PER_INSTRUCTION_SET(
    // Fills the bounds of all blocks.
    void bound_blocks(PriorBlocks& priors);
    // Matches images `begin` to `end` of the batch.
    void match_images(const MatchJob& job, int64_t begin, int64_t end);)

// The blocks of (P, 4) priors, good until this thread's next call.
inline const PriorBlocks& bounded_blocks(const float* priors, int64_t P) {
  thread_local PriorBlocks blocks;
  blocks.reset(priors, P);
  SSD_FAST_KERNEL(bound_blocks)(blocks);
  return blocks;
}

}  // namespace ssd_fast

namespace ssd_fast::SSD_FAST_ISA {

inline Floats area(const Boxes& boxes) { return (boxes.x2 - boxes.x1) * (boxes.y2 - boxes.y1); }

// IoU of one object with the priors in the lanes; 0 where they do not overlap.
inline Floats iou_with(const Boxes& priors, const Box& box, float box_area) {
  const Floats width = min(priors.x2, splat(box.x2)) - max(priors.x1, splat(box.x1));
  const Floats height = min(priors.y2, splat(box.y2)) - max(priors.y1, splat(box.y1));
  const Floats inter = width * height;
  const Floats sum = area(priors) + box_area - inter;
  // A NaN coordinate of a prior makes the sum NaN: it overlaps nothing. Where the product of two
  // positive sides is 0, so is the quotient.
  const Ints overlap = (width > 0.0f) & (height > 0.0f) & (sum > 0.0f);
  return overlap ? inter / sum : Floats{};
}

// What bounds are asked: whether a box within them may overlap an object by at least some IoU.
struct Demand {
  Floats x1, y1, x2, y2, area;
  float floor;

  Demand(const Box& box, float box_area, float least_iou)
      : x1(splat(box.x1)),
        y1(splat(box.y1)),
        x2(splat(box.x2)),
        y2(splat(box.y2)),
        area(splat(box_area)),
        // The slack outweighs the rounding of a product where the IoU has a quotient.
        floor(least_iou < 1e-30f ? 0.0f : least_iou * (1 - 1e-6f)) {}

  // Asks a vector of bounds, from number `first` on.
  Ints met_by(const Bounds& bounds, int64_t first) const {
    const auto bound = [&](int64_t which) { return load(bounds[which] + first); };
    const Floats width = min(bound(2), x2) - max(bound(0), x1);
    const Floats height = min(bound(3), y2) - max(bound(1), y1);
    const Floats inter = min(min(width * height, area), bound(5));
    const Floats sum = bound(4) + area - inter;
    return (width > 0.0f) & (height > 0.0f) & ~(inter < sum * floor);
  }
};

// The prior that an object overlaps most.
struct Claim {
  float iou = 0;
  int32_t prior = -1;
};

// Matches one image after another; keeps its scratch memory between them.
class Matcher {
 public:
  // `best_iou` is scratch for an IoU a prior, in whole blocks. All three must outlive the matching.
  void reset(const PriorBlocks& priors, const MatchOptions& options, float* best_iou) {
    priors_ = &priors;
    options_ = options;
    best_iou_ = best_iou;
    touched_.assign(static_cast<size_t>(priors.blocks()), 0);
    touched_blocks_.resize(static_cast<size_t>(priors.blocks() + 1));
    found_.resize(static_cast<size_t>(priors.block_bounds.count() + kLanes));
    found_groups_.resize(static_cast<size_t>(priors.group_bounds.count() + kLanes));
    touched_count_ = 0;
  }

  // Writes the object of each prior to `matched` (P,). `is_candidate(n)` says whether object n of
  // `boxes` (N, 4) may match; returns the number of positives.
  template <typename IsCandidate>
  int64_t match(const float* boxes, int64_t N, const IsCandidate& is_candidate, int64_t P,
                int32_t* matched) {
    std::fill(matched, matched + P, kBackground);
    const int64_t whole = P / kBlock * kBlock;
    const auto objects_of = [&](int64_t block) {
      return block * kBlock < whole ? matched + block * kBlock : last_objects_;
    };
    claims_.assign(static_cast<size_t>(N), Claim{});
    for (int64_t n = 0; n < N; ++n) {
      const Box box = box_at(boxes, n);
      if (is_valid(box) && is_candidate(n)) {
        claims_[n] = offer(box, static_cast<int32_t>(n), objects_of);
      }
    }
    int64_t positives = 0;
    for (int64_t i = 0; i < touched_count_; ++i) {
      const int64_t block = touched_blocks_[i];
      positives += apply_thresholds(block, P - block * kBlock, objects_of(block));
      touched_[block] = 0;
    }
    touched_count_ = 0;
    if (whole < P) std::copy(last_objects_, last_objects_ + (P - whole), matched + whole);
    std::fill(last_objects_, last_objects_ + kBlock, kBackground);
    if (options_.assign == Assign::kLast) {
      for (int64_t n = 0; n < N; ++n) positives += take(n, claims_[n], matched);
    } else if (options_.assign == Assign::kBipartite) {
      positives += claim_bipartite(boxes, N, matched);
    }
    return positives;
  }

 private:
  // Lists the blocks, in order, that may hold a prior of at least this IoU; returns how many. A
  // list, and no branch that depends on a bound: there are about as many of them as misses would
  // be.
  int64_t list_blocks(const Box& box, float box_area, float least_iou) {
    const Demand demand(box, box_area, least_iou);
    int64_t groups = 0;
    for (int64_t first = 0; first < priors_->group_bounds.count(); first += kLanes) {
      groups += list_meeting(demand, priors_->group_bounds, first, found_groups_.data() + groups);
    }
    int64_t count = 0;
    for (int64_t i = 0; i < groups; ++i) {
      const int64_t first = found_groups_[i] * kGroup;
      for (int64_t v = 0; v < kGroup; v += kLanes) {
        count += list_meeting(demand, priors_->block_bounds, first + v, found_.data() + count);
      }
    }
    return count;
  }

  // The part of a list that a vector of bounds gives.
  static int64_t list_meeting(const Demand& demand, const Bounds& bounds, int64_t first,
                              int32_t* found) {
    const Ints numbers = lane_numbers() + static_cast<int32_t>(first);
    return compress(demand.met_by(bounds, first), numbers, found);
  }

  // The best of the blocks that may reach `least_iou`; `scan(block, v, priors)` gives the IoU of
  // the v-th vector of a block. Of found_, leaves those that do reach it, reached_ in number.
  template <typename Scan>
  Claim best_prior(const Box& box, float box_area, float least_iou, const Scan& scan) {
    Floats best_iou{};
    Ints best_prior{};
    const Ints numbers = lane_numbers();
    const int64_t count = list_blocks(box, box_area, least_iou);
    int64_t reached = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int32_t block = found_[i];
      bool reaches = false;
      for (int64_t v = 0; v < kBlock; v += kLanes) {
        const Floats iou = scan(block, v, load_boxes(priors_->boxes(block) + 4 * v));
        const Ints better = iou > best_iou;
        best_iou = better ? iou : best_iou;
        best_prior = better ? numbers + static_cast<int32_t>(block * kBlock + v) : best_prior;
        reaches |= any_reaching(iou, splat(least_iou));
      }
      found_[reached] = block;
      reached += reaches;
    }
    reached_ = reached;
    // The lowest prior among equals.
    Claim best{fold_lanes(best_iou, [](Floats a, Floats b) { return max(a, b); }), -1};
    if (!(best.iou > 0)) return best;
    best.prior = std::numeric_limits<int32_t>::max();
    for (uint32_t lanes = lanes_of(best_iou == best.iou); lanes != 0; lanes &= lanes - 1) {
      best.prior = std::min(best.prior, best_prior[__builtin_ctz(lanes)]);
    }
    return best;
  }

  // Repeats `best_prior` with lower demands until nothing unseen can be better: what was found
  // among the more likely priors is nearly the best, so once anything was found, the next time is
  // the last.
  template <typename Scan>
  Claim search(const Box& box, float box_area, float least_iou, float found, const Scan& scan) {
    constexpr float kTiny = 1e-4f;
    Claim best{found, -1};
    do {
      least_iou = best.iou > 0 ? best.iou : (least_iou > kTiny ? std::min(least_iou / 4, 1.0f) : 0);
      best = best_prior(box, box_area, least_iou, scan);
    } while (best.iou < least_iou);
    return best;
  }

  // Offers object n to every prior; returns its claim.
  template <typename ObjectsOf>
  Claim offer(const Box& box, int32_t n, const ObjectsOf& objects_of) {
    const float box_area = ssd_fast::area(box);
    const float least = options_.least();
    const auto iou_of = [&](int64_t, int64_t, const Boxes& priors) {
      return iou_with(priors, box, box_area);
    };
    const Claim best = best_prior(box, box_area, least, iou_of);
    // At a threshold of 0 a prior that overlaps nothing is positive: no block may be left out.
    const int64_t count = least <= 0 ? priors_->blocks() : reached_;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t block = least <= 0 ? i : found_[i];
      offer_block(box, box_area, n, block, objects_of(block));
    }
    if (options_.assign == Assign::kNone || best.iou >= least) return best;
    return search(box, box_area, least, best.iou, iou_of);
  }

  // Offers object n to the priors of a block.
  void offer_block(const Box& box, float box_area, int32_t n, int64_t block, int32_t* objects) {
    const Ints known = touch(block);
    for (int64_t v = 0; v < kBlock; v += kLanes) {
      float* best_at = best_iou_ + block * kBlock + v;
      const Floats iou = iou_with(load_boxes(priors_->boxes(block) + 4 * v), box, box_area);
      const Floats best = known ? load(best_at) : splat(-1.0f);
      const Ints better = iou > best;  // strict: the first of equal objects stays
      store(best_at, better ? iou : best);
      store(objects + v, better ? splat(n) : load(objects + v));
    }
  }

  // Lists a block for the thresholds; returns whether it was, in all lanes. Without a branch: which
  // blocks objects share is hard to predict.
  Ints touch(int64_t block) {
    const int32_t known = touched_[block];
    touched_blocks_[touched_count_] = static_cast<int32_t>(block);
    touched_count_ += 1 - known;
    touched_[block] = 1;
    return splat(-known);
  }

  // Turns the best objects of a block into matches; returns the number of positives. From `priors`
  // on the block is padding, whose IoU of 0 reaches a threshold of 0.
  int64_t apply_thresholds(int64_t block, int64_t priors, int32_t* objects) const {
    int64_t positives = 0;
    for (int64_t v = 0; v < kBlock; v += kLanes) {
      const Floats iou = load(best_iou_ + block * kBlock + v);
      const Ints exists = lane_numbers() < static_cast<int32_t>(std::min(priors - v, kLanes));
      const Ints reached =
          options_.strict ? iou > options_.iou_threshold : iou >= options_.iou_threshold;
      const Ints positive = reached & exists;
      Ints otherwise = splat(kBackground);
      if (options_.has_low_threshold) {
        otherwise = iou >= options_.low_threshold ? splat(kIgnored) : otherwise;
      }
      store(objects + v, positive ? load(objects + v) : otherwise);
      positives += __builtin_popcount(lanes_of(positive));
    }
    return positives;
  }

  // Gives object n the prior that it claims; returns by how much the positives grow.
  static int64_t take(int64_t n, const Claim& claim, int32_t* matched) {
    if (!(claim.iou > 0)) return 0;
    const int64_t grown = matched[claim.prior] < 0;
    matched[claim.prior] = static_cast<int32_t>(n);
    return grown;
  }

  // Greedily takes the globally best pair: highest IoU, then lowest prior, then lowest object.
  // An object whose best prior was taken looks again among the free ones.
  int64_t claim_bipartite(const float* boxes, int64_t N, int32_t* matched) {
    taken_.assign(static_cast<size_t>(priors_->blocks()), 0);
    int64_t positives = 0;
    while (true) {
      int64_t winner = -1;
      for (int64_t n = 0; n < N; ++n) {
        if (claims_[n].iou > 0 && (winner < 0 || beats(claims_[n], claims_[winner]))) winner = n;
      }
      if (winner < 0) return positives;
      const int32_t prior = claims_[winner].prior;
      positives += take(winner, claims_[winner], matched);
      taken_[prior / kBlock] |= 1u << (prior % kBlock);
      claims_[winner] = Claim{};
      for (int64_t n = 0; n < N; ++n) {
        if (claims_[n].iou > 0 && claims_[n].prior == prior) {
          claims_[n] = best_free_prior(box_at(boxes, n), claims_[n].iou);
        }
      }
    }
  }

  static bool beats(const Claim& a, const Claim& b) {
    return a.iou > b.iou || (a.iou == b.iou && a.prior < b.prior);
  }

  Claim best_free_prior(const Box& box, float at_most) {
    const float box_area = ssd_fast::area(box);
    return search(box, box_area, 4 * at_most, 0,
                  [&](int64_t block, int64_t v, const Boxes& priors) {
                    Floats iou = iou_with(priors, box, box_area);
                    for (uint32_t taken = taken_[block] >> v; taken != 0; taken &= taken - 1) {
                      const int lane = __builtin_ctz(taken);
                      if (lane < kLanes) iou[lane] = 0;
                    }
                    return iou;
                  });
  }

  const PriorBlocks* priors_ = nullptr;
  MatchOptions options_{};
  float* best_iou_ = nullptr;  // of the touched blocks
  int32_t last_objects_[kBlock] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
  std::vector<uint8_t> touched_;
  std::vector<int32_t> touched_blocks_;
  int64_t touched_count_ = 0;
  std::vector<int32_t> found_, found_groups_;
  int64_t reached_ = 0;
  std::vector<uint32_t> taken_;  // of each block, a bit a prior
  std::vector<Claim> claims_;
};

}  // namespace ssd_fast::SSD_FAST_ISA
