// SPDX-License-Identifier: BSD-3-Clause
// Greedy non-maximum suppression. Torch-free. Contract: ssd_fast/ops/nms.py.
//
// Boxes are visited best first and compared with the boxes kept so far, a block of them at a time.
// What is kept of a class is a chain of blocks, so that classes never meet.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "box.h"
#include "rows.h"

namespace ssd_fast {

// Sorting these in ascending order sorts by score, best first, then by index. -0.0 equals 0.0.
inline uint64_t score_key(float score, uint32_t index) {
  const uint32_t bits = float_to_bits(score + 0.0f);
  const uint32_t ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return uint64_t{~ascending} << 32 | index;
}

inline float score_of(uint64_t key) {
  const uint32_t ascending = ~static_cast<uint32_t>(key >> 32);
  return bits_to_float(ascending & 0x80000000u ? ascending & 0x7fffffffu : ~ascending);
}

// Kept boxes of one class, coordinate by coordinate.
struct KeptBlock {
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

// Whether a box of the block overlaps `box` by more than `threshold`, in the arithmetic of
// torchvision's CPU kernel: inter / (area_a + area_b - inter) > threshold.
inline bool suppresses(const KeptBlock& kept, const Box& box, float box_area, float threshold) {
  float inter[KeptBlock::kBoxes], area_of_union[KeptBlock::kBoxes];
  int32_t near = 0;
  for (int i = 0; i < KeptBlock::kBoxes; ++i) {
    const float x1 = kept.x1[i] > box.x1 ? kept.x1[i] : box.x1;
    const float y1 = kept.y1[i] > box.y1 ? kept.y1[i] : box.y1;
    const float x2 = kept.x2[i] < box.x2 ? kept.x2[i] : box.x2;
    const float y2 = kept.y2[i] < box.y2 ? kept.y2[i] : box.y2;
    const float width = x2 - x1 > 0.0f ? x2 - x1 : 0.0f;
    const float height = y2 - y1 > 0.0f ? y2 - y1 : 0.0f;
    inter[i] = width * height;
    area_of_union[i] = kept.area[i] + box_area - inter[i];
    // Spares most divisions: a quotient rounds to above a threshold >= 0 only where the union is
    // not negative and inter > threshold * union, and there, rounding being monotonic, this holds.
    near |= inter[i] >= area_of_union[i] * threshold;
  }
  if (threshold >= 0.0f && near == 0) return false;
  int32_t over = 0;
  for (int i = 0; i < KeptBlock::kBoxes; ++i) over |= inter[i] / area_of_union[i] > threshold;
  return over != 0;
}

// The boxes kept so far, a chain of blocks for each class.
class KeptBoxes {
 public:
  explicit KeptBoxes(int64_t classes) : chains_(classes) {}

  void clear() {
    std::fill(chains_.begin(), chains_.end(), Chain{});
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

// Numbers the classes of `idxs` (any int64) from 0, in `labels`. Returns how many there are.
inline int64_t number_classes(const int64_t* idxs, int64_t n, std::vector<int64_t>* labels) {
  std::vector<int64_t> distinct(idxs, idxs + n);
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  labels->resize(n);
  for (int64_t i = 0; i < n; ++i) {
    (*labels)[i] = std::lower_bound(distinct.begin(), distinct.end(), idxs[i]) - distinct.begin();
  }
  return static_cast<int64_t>(distinct.size());
}

// Indices of the boxes that are kept, best first. `boxes` (n, 4), `scores` (n), `idxs` (n) or
// null where all boxes are of one class; n < 2^31.
inline std::vector<int64_t> nms(const float* boxes, const float* scores, const int64_t* idxs,
                                int64_t n, double iou_threshold) {
  std::vector<uint64_t> order;
  order.reserve(n);
  for (int64_t i = 0; i < n; ++i) {
    if (is_finite(scores[i]) && is_finite(box_at(boxes, i))) {
      order.push_back(score_key(scores[i], static_cast<uint32_t>(i)));
    }
  }
  std::sort(order.begin(), order.end());
  std::vector<int64_t> labels;
  KeptBoxes kept(idxs == nullptr ? 1 : number_classes(idxs, n, &labels));
  const float threshold = round_down(iou_threshold);
  std::vector<int64_t> keep;
  for (const uint64_t key : order) {
    const int64_t i = static_cast<uint32_t>(key);
    if (kept.keep(idxs == nullptr ? 0 : labels[i], box_at(boxes, i), threshold)) keep.push_back(i);
  }
  return keep;
}

}  // namespace ssd_fast
