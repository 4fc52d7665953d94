// SPDX-License-Identifier: BSD-3-Clause
// Greedy non-maximum suppression. Torch-free. Contract: ssd_fast/ops/nms.py.
//
// Boxes are visited class by class, best first, and compared with the boxes of the class kept so
// far: 64 of them at a time on a coarse grid, which four comparisons of bytes do; exactly only in
// blocks of 16 of which the grid says that one may touch the core of the box. So most of the cost
// is 1/16 byte a pair of a kept and a visited box, and one division a block that overlaps in
// earnest.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "box.h"
#include "coarse_boxes.h"
#include "instruction_set.h"
#include "kept_boxes.h"
#include "score_order.h"
#include "simd.h"

namespace ssd_fast {

struct NmsJob {
  const float* boxes;   // (n, 4)
  const float* scores;  // (n,)
  const int64_t* idxs;  // (n,), or null where all boxes are of one class
  int64_t n;            // below 2^31
  float threshold;      // rounded down to float32
};

SSD_FAST_PER_INSTRUCTION_SET(
    // Writes the indices of the boxes that are kept, best first, to keep (n,); returns how many.
    int64_t keep_boxes(const NmsJob& job, int64_t* keep);)

// Numbers the classes of `idxs` (any int64) from 0, in `labels`. Returns how many there are.
inline int64_t number_classes(const int64_t* idxs, int64_t n, std::vector<int32_t>* labels) {
  labels->resize(static_cast<size_t>(n));
  if (n == 0) return 0;
  const auto [least, greatest] = std::minmax_element(idxs, idxs + n);
  const uint64_t range = static_cast<uint64_t>(*greatest) - static_cast<uint64_t>(*least);
  if (range < 2 * static_cast<uint64_t>(n) + 1024) {
    for (int64_t i = 0; i < n; ++i) (*labels)[i] = static_cast<int32_t>(idxs[i] - *least);
    return static_cast<int64_t>(range) + 1;
  }
  std::vector<int64_t> distinct(idxs, idxs + n);
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
  for (int64_t i = 0; i < n; ++i) {
    (*labels)[i] = static_cast<int32_t>(
        std::lower_bound(distinct.begin(), distinct.end(), idxs[i]) - distinct.begin());
  }
  return static_cast<int64_t>(distinct.size());
}

}  // namespace ssd_fast

namespace ssd_fast::SSD_FAST_ISA {

// Suppresses in one set of boxes after another; keeps its scratch memory between them.
class Suppressor {
 public:
  // As keep_boxes.
  int64_t keep(const NmsJob& job, int64_t* keep) {
    rank(job);
    const size_t n = keys_.size();
    is_kept_.assign(n, 0);
    if (job.idxs == nullptr) {
      visit(job, n, [](size_t i) { return i; });
    } else {
      visit_classes(job);
    }
    int64_t count = 0;
    for (size_t r = 0; r < n; ++r) {
      keep[count] = static_cast<uint32_t>(keys_[r]);
      count += is_kept_[r];
    }
    return count;
  }

 private:
  // Sorts the boxes that are finite, scores included, and finds their bounds.
  void rank(const NmsJob& job) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    Boxes low{splat(kInfinity), splat(kInfinity), {}, {}};
    Boxes high{{}, {}, splat(-kInfinity), splat(-kInfinity)};
    keys_.clear();
    keys_.reserve(static_cast<size_t>(job.n));
    float rest[4 * kLanes];
    for (int64_t i = 0; i < job.n; i += kLanes) {
      const int64_t count = std::min(kLanes, job.n - i);
      const float* from = job.boxes + 4 * i;
      if (count < kLanes) {
        std::fill(std::copy(from, from + 4 * count, rest), rest + 4 * kLanes, kInfinity);
        from = rest;
      }
      const Boxes box = load_boxes(from);
      const Floats score = load_some(job.scores + i, count, kInfinity);
      const Floats nothing = (box.x1 - box.x1) + (box.y1 - box.y1) + (box.x2 - box.x2) +
                             (box.y2 - box.y2) + (score - score);
      const Ints finite = nothing == Floats{};
      // Corners may be swapped.
      low.x1 = finite ? min(min(box.x1, box.x2), low.x1) : low.x1;
      low.y1 = finite ? min(min(box.y1, box.y2), low.y1) : low.y1;
      high.x2 = finite ? max(max(box.x1, box.x2), high.x2) : high.x2;
      high.y2 = finite ? max(max(box.y1, box.y2), high.y2) : high.y2;
      for (uint32_t lanes = lanes_of(finite); lanes != 0; lanes &= lanes - 1) {
        const int64_t k = i + __builtin_ctz(lanes);
        keys_.push_back(score_key(job.scores[k], static_cast<uint32_t>(k)));
      }
    }
    Box bounds{low.x1[0], low.y1[0], high.x2[0], high.y2[0]};
    for (int lane = 1; lane < kLanes; ++lane) {
      bounds = {std::min(bounds.x1, low.x1[lane]), std::min(bounds.y1, low.y1[lane]),
                std::max(bounds.x2, high.x2[lane]), std::max(bounds.y2, high.y2[lane])};
    }
    grid_ = CoarseGrid(bounds);
    sorter_.sort(keys_);
  }

  // Visits the boxes of each class by themselves.
  void visit_classes(const NmsJob& job) {
    const int64_t classes = number_classes(job.idxs, job.n, &labels_);
    const size_t n = keys_.size();
    ends_.assign(static_cast<size_t>(classes) + 1, 0);
    for (const uint64_t key : keys_) ++ends_[labels_[static_cast<uint32_t>(key)] + 1];
    for (int64_t label = 0; label < classes; ++label) ends_[label + 1] += ends_[label];
    ranks_.resize(n);
    for (size_t r = 0; r < n; ++r) {
      ranks_[ends_[labels_[static_cast<uint32_t>(keys_[r])]]++] = static_cast<uint32_t>(r);
    }
    uint32_t begin = 0;
    for (int64_t label = 0; label < classes; ++label) {
      const uint32_t* const of_class = ranks_.data() + begin;
      visit(job, ends_[label] - begin, [of_class](size_t i) { return of_class[i]; });
      begin = ends_[label];
    }
  }

  // Visits `n` boxes of one class, those of ranks rank_of(0), rank_of(1), ...
  template <typename RankOf>
  void visit(const NmsJob& job, size_t n, const RankOf& rank_of) {
    blocks_.clear();
    coarse_.clear();
    kept_ = 0;
    for (size_t i = 0; i < n; ++i) {
      const size_t r = rank_of(i);
      const Box box = box_at(job.boxes, static_cast<uint32_t>(keys_[r]));
      const CoarseBox cells = grid_.cells(box);
      const float box_area = area(box);
      if (is_suppressed(box, box_area, grid_.cells(core(box, box_area, job.threshold)),
                        job.threshold)) {
        continue;
      }
      if (kept_ % KeptBlock::kBoxes == 0) blocks_.emplace_back();
      if (kept_ % CoarseBlock::kBoxes == 0) coarse_.emplace_back();
      blocks_.back().add(box, box_area);
      coarse_.back().set(kept_++ % CoarseBlock::kBoxes, cells);
      is_kept_[r] = 1;
    }
  }

  // The part of a box that all boxes touch whose overlap with it exceeds the threshold: such an
  // overlap covers more than that share of its width and of its height. Rounding is less than the
  // slack where nothing is tiny; otherwise the part is the box.
  static Box core(const Box& box, float box_area, float threshold) {
    const float width = box.x2 - box.x1, height = box.y2 - box.y1;
    const bool is_tiny = !(std::min(std::min(width, height), box_area) >= 1e-30f);
    const float share = is_tiny || !(threshold >= 1e-6f) ? 0.0f : threshold * (1 - 1e-5f);
    return {box.x1 + share * width, box.y1 + share * height, box.x2 - share * width,
            box.y2 - share * height};
  }

  bool is_suppressed(const Box& box, float box_area, const CoarseBox& cells,
                     float threshold) const {
    constexpr int kRatio = CoarseBlock::kBoxes / KeptBlock::kBoxes;
    // Boxes that do not touch have overlap 0, which exceeds what is below 0.
    const uint64_t all = threshold >= 0.0f ? 0 : ~uint64_t{0};
    for (size_t c = 0; c < coarse_.size(); ++c) {
      uint64_t near = coarse_[c].touching(cells) | all;
      while (near != 0) {
        const int block = __builtin_ctzll(near) / KeptBlock::kBoxes;
        const size_t b = c * kRatio + static_cast<size_t>(block);
        if (b < blocks_.size() && suppresses(blocks_[b], box, box_area, threshold)) return true;
        near &= ~(uint64_t{0xffff} << (KeptBlock::kBoxes * block));
      }
    }
    return false;
  }

  std::vector<uint64_t> keys_;  // best first
  KeySorter sorter_;
  CoarseGrid grid_;
  std::vector<uint8_t> is_kept_;  // by rank
  std::vector<KeptBlock> blocks_;
  std::vector<CoarseBlock> coarse_;
  int64_t kept_ = 0;             // of the class
  std::vector<int32_t> labels_;  // by index
  std::vector<uint32_t> ends_;   // in ranks_, of each class
  std::vector<uint32_t> ranks_;  // class by class
};

}  // namespace ssd_fast::SSD_FAST_ISA
