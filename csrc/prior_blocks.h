// SPDX-License-Identifier: BSD-3-Clause
// Priors in blocks, and blocks in groups, with the bounds by which matching passes most of them
// over. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>
#include <vector>

namespace ssd_fast {

constexpr int64_t kBlock = 16;  // priors
constexpr int64_t kGroup = 16;  // blocks

// Bounds of boxes: least x1, least y1, greatest x2, greatest y2, least area, greatest area, each in
// a vector of its own.
class Bounds {
 public:
  void resize(int64_t count) {
    count_ = count;
    values_.resize(static_cast<size_t>(6 * count));
  }

  int64_t count() const { return count_; }
  const float* operator[](int64_t which) const { return values_.data() + which * count_; }
  float* operator[](int64_t which) { return values_.data() + which * count_; }

 private:
  int64_t count_ = 0;
  std::vector<float> values_;
};

// Priors in blocks of sixteen, and these in groups of sixteen, each with the bounds of what is in
// it.
class PriorBlocks {
 public:
  // Takes (P, 4) priors, which must outlive the object; `bound_blocks` fills the bounds.
  void reset(const float* priors, int64_t P) {
    priors_ = priors;
    blocks_ = (P + kBlock - 1) / kBlock;
    const int64_t groups = (blocks_ + kGroup - 1) / kGroup;
    block_bounds.resize(groups * kGroup);
    group_bounds.resize((groups + kGroup - 1) / kGroup * kGroup);
    last_group_ = std::max<int64_t>(groups - 1, 0);
    // Boxes of NaN overlap nothing and bound nothing.
    std::fill(std::copy(priors + kGroupFloats * last_group_, priors + 4 * P, last_boxes_),
              std::end(last_boxes_), std::numeric_limits<float>::quiet_NaN());
  }

  int64_t blocks() const { return blocks_; }

  // The sixteen boxes of a block. Only the last one is taken from the copy, so that this branch is
  // easy to predict.
  const float* boxes(int64_t block) const {
    return block + 1 < blocks_ ? priors_ + 4 * kBlock * block
                               : last_boxes_ + 4 * kBlock * (block % kGroup);
  }

  // The boxes of a group, block after block.
  const float* group_boxes(int64_t group) const {
    return group < last_group_ ? priors_ + kGroupFloats * group : last_boxes_;
  }

  // Of each block and of each group, both padded to whole groups by bounds of nothing.
  Bounds block_bounds, group_bounds;

 private:
  static constexpr int64_t kGroupFloats = 4 * kBlock * kGroup;

  const float* priors_ = nullptr;
  int64_t blocks_ = 0;
  int64_t last_group_ = 0;
  float last_boxes_[kGroupFloats];  // of the last group, and NaN behind them
};

}  // namespace ssd_fast
