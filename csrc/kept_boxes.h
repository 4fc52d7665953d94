// SPDX-License-Identifier: BSD-3-Clause
// Boxes that greedy suppression has kept, and whether one of them suppresses another. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "box.h"
#include "simd.h"

namespace ssd_fast {

// Kept boxes of one class, coordinate by coordinate.
struct alignas(64) KeptBlock {
  static constexpr int kBoxes = 16;
  float x1[kBoxes], y1[kBoxes], x2[kBoxes], y2[kBoxes], area[kBoxes];
  int32_t used = 0;
  int32_t next = -1;  // block of the same class

  KeptBlock() : x1{}, y1{}, x2{}, y2{} {
    // A place not used yet suppresses nothing: its overlap is NaN.
    std::fill(area, area + kBoxes, std::numeric_limits<float>::quiet_NaN());
  }

  void add(const Box& box, float box_area) {
    x1[used] = box.x1;
    y1[used] = box.y1;
    x2[used] = box.x2;
    y2[used] = box.y2;
    area[used++] = box_area;
  }
};

}  // namespace ssd_fast

namespace ssd_fast::SSD_FAST_ISA {

// Whether a box of the block overlaps `box` by more than `threshold`, in the arithmetic of
// torchvision's CPU kernel: inter / (area_a + area_b - inter) > threshold.
inline bool suppresses(const KeptBlock& kept, const Box& box, float box_area, float threshold) {
  static_assert(KeptBlock::kBoxes % kLanes == 0, "a block is whole vectors");
  const Floats zero{}, bx1 = splat(box.x1), by1 = splat(box.y1);
  const Floats bx2 = splat(box.x2), by2 = splat(box.y2);
  for (int i = 0; i < KeptBlock::kBoxes; i += kLanes) {
    const Floats width = max(min(load(kept.x2 + i), bx2) - max(load(kept.x1 + i), bx1), zero);
    const Floats height = max(min(load(kept.y2 + i), by2) - max(load(kept.y1 + i), by1), zero);
    const Floats inter = width * height;
    const Floats area_of_union = load(kept.area + i) + box_area - inter;
    // Spares most divisions: a quotient rounds to above a threshold >= 0 only where the union is
    // not negative and inter > threshold * union, and there, rounding being monotonic, this holds.
    if (threshold >= 0.0f && !any_reaching(inter, area_of_union * threshold)) continue;
    if (any_above(inter / area_of_union, splat(threshold))) return true;
  }
  return false;
}

// The boxes kept so far, a chain of blocks for each class.
class KeptBoxes {
 public:
  void reset(int64_t classes) {
    chains_.assign(static_cast<size_t>(classes), Chain{});
    blocks_.clear();
  }

  // Keeps the box unless one kept before suppresses it; says whether it did.
  bool keep(int64_t label, const Box& box, float threshold) {
    Chain& chain = chains_[label];
    const float box_area = area(box);
    for (int32_t i = chain.first; i >= 0; i = blocks_[i].next) {
      if (suppresses(blocks_[i], box, box_area, threshold)) return false;
    }
    if (chain.last < 0 || blocks_[chain.last].used == KeptBlock::kBoxes) {
      const int32_t fresh = static_cast<int32_t>(blocks_.size());
      blocks_.emplace_back();
      (chain.last < 0 ? chain.first : blocks_[chain.last].next) = fresh;
      chain.last = fresh;
    }
    blocks_[chain.last].add(box, box_area);
    return true;
  }

 private:
  struct Chain {
    int32_t first = -1, last = -1;
  };
  std::vector<Chain> chains_;
  std::vector<KeptBlock> blocks_;
};

}  // namespace ssd_fast::SSD_FAST_ISA
