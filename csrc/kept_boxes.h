// SPDX-License-Identifier: BSD-3-Clause
// Boxes that suppression has kept, whether one of them suppresses another, and how far a score
// falls by them. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "box.h"
#include "box_columns.h"
#include "exponential.h"
#include "simd.h"

namespace ssd_fast {

// Kept boxes of one class, coordinate by coordinate.
struct alignas(64) KeptBlock : BoxColumns {
  int32_t used = 0;
  int32_t next = -1;  // block of the same class

  KeptBlock() : BoxColumns{} {
    // A place not used yet suppresses nothing: its overlap is NaN.
    std::fill(area, area + kBoxes, std::numeric_limits<float>::quiet_NaN());
  }

  void add(const Box& box, float box_area) {
    set(used, box);
    area[used++] = box_area;
  }
};

}  // namespace ssd_fast

namespace ssd_fast::SSD_FAST_ISA {

// Whether a box of the block overlaps `box` by more than `threshold`.
inline bool suppresses(const KeptBlock& kept, const Box& box, float box_area, float threshold) {
  return overlapping(kept, box, box_area, threshold) != 0;
}

// As `suppresses`, but an overlap counts less by the squared distance of the centres over the
// squared diagonal of the box around both: Distance-IoU (Zheng et al., 2020, arXiv:1911.08287).
inline bool suppresses_nearby(const KeptBlock& kept, const Box& box, float box_area,
                              float threshold) {
  const Floats zero{}, bx1 = splat(box.x1), by1 = splat(box.y1);
  const Floats bx2 = splat(box.x2), by2 = splat(box.y2);
  for (int i = 0; i < BoxColumns::kBoxes; i += kLanes) {
    const Floats x1 = load(kept.x1 + i), y1 = load(kept.y1 + i);
    const Floats x2 = load(kept.x2 + i), y2 = load(kept.y2 + i);
    const Floats width = max(min(x2, bx2) - max(x1, bx1), zero);
    const Floats height = max(min(y2, by2) - max(y1, by1), zero);
    const Floats inter = width * height;
    const Floats area_of_union = load(kept.area + i) + box_area - inter;
    // The distance only takes from the overlap, so the bound of `suppresses` holds here too.
    if (threshold >= 0.0f && !any_reaching(inter, area_of_union * threshold)) continue;
    const Floats dx = (x1 + x2) * 0.5f - (bx1 + bx2) * 0.5f;
    const Floats dy = (y1 + y2) * 0.5f - (by1 + by2) * 0.5f;
    const Floats across = max(x2, bx2) - min(x1, bx1), down = max(y2, by2) - min(y1, by1);
    const Floats diagonal = across * across + down * down;
    const Floats distance = dx * dx + dy * dy;
    const Floats penalty = diagonal == zero ? zero : distance / diagonal;
    if (any_above(inter / area_of_union - penalty, splat(threshold))) return true;
  }
  return false;
}

// What the scores of others are multiplied by once a box is kept: Soft-NMS (Bodla et al., 2017,
// arXiv:1704.04503). 1 - IoU where that exceeds the threshold, or exp(-IoU^2 / sigma).
struct Decay {
  bool is_gaussian;
  float iou_threshold;
  float sigma;
};

// The score of `box` after the boxes of the block from number `first` on, one after the other.
inline float decayed(const KeptBlock& kept, int first, const Box& box, float box_area, float score,
                     const Decay& decay) {
  const Floats zero{}, one = splat(1.0f), bx1 = splat(box.x1), by1 = splat(box.y1);
  const Floats bx2 = splat(box.x2), by2 = splat(box.y2);
  for (int i = first / kLanes * kLanes; i < kept.used; i += kLanes) {
    const Floats width = max(min(load(kept.x2 + i), bx2) - max(load(kept.x1 + i), bx1), zero);
    const Floats height = max(min(load(kept.y2 + i), by2) - max(load(kept.y1 + i), by1), zero);
    const Floats inter = width * height;
    if (!any_above(inter, zero)) continue;  // an IoU of 0 or NaN leaves the score as it is
    const Floats iou = inter / (load(kept.area + i) + box_area - inter);
    uint32_t lanes;
    Floats factor;
    if (decay.is_gaussian) {
      lanes = lanes_of(iou > zero);
      factor = exp(zero - iou * iou / decay.sigma);
    } else {
      lanes = lanes_of(iou > splat(decay.iou_threshold));
      factor = max(one - iou, zero);  // an IoU may round to above 1
    }
    if (i < first) lanes &= ~uint32_t{0} << (first - i);
    for (; lanes != 0; lanes &= lanes - 1) score *= factor[__builtin_ctz(lanes)];
  }
  return score;
}

// The boxes kept so far, a chain of blocks for each class.
class KeptBoxes {
 public:
  void reset(int64_t classes) {
    chains_.assign(static_cast<size_t>(classes), Chain{});
    blocks_.clear();
  }

  // Keeps the box unless one kept before suppresses it, which `test` says of a block; says whether
  // it did.
  template <typename Test>
  bool keep(int64_t label, const Box& box, float threshold, const Test& test) {
    const float box_area = area(box);
    for (int32_t i = chains_[label].first; i >= 0; i = blocks_[i].next) {
      if (test(blocks_[i], box, box_area, threshold)) return false;
    }
    add(label, box, box_area);
    return true;
  }

  // The score of a box after the boxes of its class that were kept since the first `met`; counts
  // on.
  float decay(int64_t label, const Box& box, float score, const Decay& decay, int32_t* met) const {
    const float box_area = area(box);
    int32_t before = 0;
    for (int32_t i = chains_[label].first; i >= 0; i = blocks_[i].next) {
      const KeptBlock& block = blocks_[i];
      if (*met < before + block.used) {
        score = decayed(block, *met - before, box, box_area, score, decay);
        *met = before + block.used;
      }
      before += KeptBlock::kBoxes;
    }
    return score;
  }

  void add(int64_t label, const Box& box, float box_area) {
    Chain& chain = chains_[label];
    if (chain.last < 0 || blocks_[chain.last].used == KeptBlock::kBoxes) {
      const int32_t fresh = static_cast<int32_t>(blocks_.size());
      blocks_.emplace_back();
      (chain.last < 0 ? chain.first : blocks_[chain.last].next) = fresh;
      chain.last = fresh;
    }
    blocks_[chain.last].add(box, box_area);
  }

 private:
  struct Chain {
    int32_t first = -1, last = -1;
  };
  std::vector<Chain> chains_;
  std::vector<KeptBlock> blocks_;
};

}  // namespace ssd_fast::SSD_FAST_ISA
