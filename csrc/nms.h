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

#include "rows.h"

namespace ssd_fast {

// The largest float32 that is not above `value`. A float32 exceeds one exactly when it exceeds the
// other, so comparing with the result compares with `value` as real numbers.
inline float round_down(double value) {
  const float nearest = static_cast<float>(value);
  if (static_cast<double>(nearest) <= value) return nearest;
  return std::nextafter(nearest, -std::numeric_limits<float>::infinity());
}

inline bool is_finite_box(const float* box) {
  return std::isfinite(box[0]) && std::isfinite(box[1]) && std::isfinite(box[2]) &&
         std::isfinite(box[3]);
}

inline float area_of(const float* box) { return (box[2] - box[0]) * (box[3] - box[1]); }

// Sorting these in ascending order sorts by score, best first, then by index. -0.0 equals 0.0.
inline uint64_t score_key(float score, uint32_t index) {
  const uint32_t bits = float_to_bits(score + 0.0f);
  const uint32_t ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return uint64_t{~ascending} << 32 | index;
}

// Kept boxes of one class, coordinate by coordinate.
struct KeptBlock {
  static constexpr int kBoxes = 16;
  float x1[kBoxes], y1[kBoxes], x2[kBoxes], y2[kBoxes], area[kBoxes];
  int32_t next;  // block of the same class, or -1
  int32_t used;

  KeptBlock() : x1{}, y1{}, x2{}, y2{}, next(-1), used(0) {
    // An unused place suppresses nothing: its overlap is NaN.
    std::fill(area, area + kBoxes, std::numeric_limits<float>::quiet_NaN());
  }
};

// Whether a box of the block overlaps `box` by more than `threshold`, by the arithmetic of
// torchvision's CPU kernel: inter / (area_a + area_b - inter) > threshold.
inline bool block_suppresses(const KeptBlock& kept, const float* box, float area,
                             float threshold) {
  float inter[KeptBlock::kBoxes], area_of_union[KeptBlock::kBoxes];
  uint32_t near = 0;
  for (int i = 0; i < KeptBlock::kBoxes; ++i) {
    const float x1 = kept.x1[i] > box[0] ? kept.x1[i] : box[0];
    const float y1 = kept.y1[i] > box[1] ? kept.y1[i] : box[1];
    const float x2 = kept.x2[i] < box[2] ? kept.x2[i] : box[2];
    const float y2 = kept.y2[i] < box[3] ? kept.y2[i] : box[3];
    float width = x2 - x1, height = y2 - y1;
    width = width > 0.0f ? width : 0.0f;
    height = height > 0.0f ? height : 0.0f;
    inter[i] = width * height;
    area_of_union[i] = kept.area[i] + area - inter[i];
    // Spares the division: a quotient rounds above a threshold >= 0 only where the union is not
    // negative and inter > threshold * union, thus, rounding being monotonic, only where this holds.
    near |= static_cast<uint32_t>(inter[i] >= threshold * area_of_union[i]);
  }
  if (near == 0 && threshold >= 0.0f) return false;
  uint32_t over = 0;
  for (int i = 0; i < KeptBlock::kBoxes; ++i) {
    over |= static_cast<uint32_t>(inter[i] / area_of_union[i] > threshold);
  }
  return over != 0;
}

// The boxes kept so far, a chain of blocks for each class.
class KeptBoxes {
 public:
  explicit KeptBoxes(int64_t classes) : chains_(classes) {}

  bool suppress(int64_t label, const float* box, float area, float threshold) const {
    for (int32_t i = chains_[label].first; i >= 0; i = blocks_[i].next) {
      if (block_suppresses(blocks_[i], box, area, threshold)) return true;
    }
    return false;
  }

  void add(int64_t label, const float* box, float area) {
    Chain& chain = chains_[label];
    if (chain.last < 0 || blocks_[chain.last].used == KeptBlock::kBoxes) {
      const int32_t fresh = static_cast<int32_t>(blocks_.size());
      blocks_.emplace_back();
      (chain.last < 0 ? chain.first : blocks_[chain.last].next) = fresh;
      chain.last = fresh;
    }
    KeptBlock& block = blocks_[chain.last];
    block.x1[block.used] = box[0];
    block.y1[block.used] = box[1];
    block.x2[block.used] = box[2];
    block.y2[block.used] = box[3];
    block.area[block.used++] = area;
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
    (*labels)[i] =
        std::lower_bound(distinct.begin(), distinct.end(), idxs[i]) - distinct.begin();
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
    if (std::isfinite(scores[i]) && is_finite_box(boxes + 4 * i)) {
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
    const float* box = boxes + 4 * i;
    const float area = area_of(box);
    const int64_t label = idxs == nullptr ? 0 : labels[i];
    if (kept.suppress(label, box, area, threshold)) continue;
    kept.add(label, box, area);
    keep.push_back(i);
  }
  return keep;
}

}  // namespace ssd_fast
