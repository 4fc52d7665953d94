// SPDX-License-Identifier: BSD-3-Clause
// Greedy non-maximum suppression. Torch-free. Contract: ssd_fast/ops/nms.py.
//
// Class by class, boxes are visited best first. One that no better box has suppressed is kept and
// suppresses what it overlaps among the boxes that are left. Near boxes lie in one block, so that a
// visit is one bit, and a box that is kept costs 1/64 byte a box and a division a block of 16 that
// it overlaps in earnest.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "box.h"
#include "box_lanes.h"
#include "box_tree.h"
#include "instruction_set.h"
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
  if (range < std::min(2 * static_cast<uint64_t>(n) + 1024, uint64_t{1} << 31)) {
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
    return job.idxs == nullptr ? keep_all(job, keep) : keep_classes(job, keep);
  }

 private:
  // Sorts the boxes that are finite, scores included, and finds their bounds.
  void rank(const NmsJob& job) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    Boxes low{splat(kInfinity), splat(kInfinity), {}, {}};
    Boxes high{{}, {}, splat(-kInfinity), splat(-kInfinity)};
    keys_.resize(static_cast<size_t>(job.n));
    uint64_t* key = keys_.data();
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
      uint32_t lanes = lanes_of(finite);
      if (lanes == (1u << kLanes) - 1) {
        for (int64_t k = i; k < i + kLanes; ++k) {
          *key++ = score_key(job.scores[k], static_cast<uint32_t>(k));
        }
        continue;
      }
      for (; lanes != 0; lanes &= lanes - 1) {
        const int64_t k = i + __builtin_ctz(lanes);
        *key++ = score_key(job.scores[k], static_cast<uint32_t>(k));
      }
    }
    keys_.resize(static_cast<size_t>(key - keys_.data()));
    bounds_ = {low.x1[0], low.y1[0], high.x2[0], high.y2[0]};
    for (int lane = 1; lane < kLanes; ++lane) {
      bounds_ = {std::min(bounds_.x1, low.x1[lane]), std::min(bounds_.y1, low.y1[lane]),
                 std::max(bounds_.x2, high.x2[lane]), std::max(bounds_.y2, high.y2[lane])};
    }
    sorter_.sort(keys_);
  }

  int64_t keep_all(const NmsJob& job, int64_t* keep) {
    const int64_t n = static_cast<int64_t>(keys_.size());
    tree_.reset(n, bounds_);
    add(job, 0, n, [](int64_t i) { return i; });
    tree_.finish();
    int64_t count = 0;
    visit(job, 0, n, [&](int64_t i) { keep[count++] = static_cast<uint32_t>(keys_[i]); });
    return count;
  }

  int64_t keep_classes(const NmsJob& job, int64_t* keep) {
    const int64_t n = static_cast<int64_t>(keys_.size());
    const int64_t classes = number_classes(job.idxs, job.n, &labels_);
    ends_.assign(static_cast<size_t>(classes) + 1, 0);
    for (const uint64_t key : keys_) ++ends_[labels_[static_cast<uint32_t>(key)] + 1];
    for (int64_t label = 0; label < classes; ++label) ends_[label + 1] += ends_[label];
    ranks_.resize(static_cast<size_t>(n));
    for (int64_t r = 0; r < n; ++r) {
      ranks_[ends_[labels_[static_cast<uint32_t>(keys_[r])]]++] = static_cast<uint32_t>(r);
    }
    tree_.reset(n, bounds_);
    for_classes(classes, [&](int64_t begin, int64_t end) {
      add(job, begin, end, [this](int64_t i) { return ranks_[i]; });
    });
    tree_.finish();
    is_kept_.assign(static_cast<size_t>(n), 0);
    for_classes(classes, [&](int64_t begin, int64_t end) {
      visit(job, begin, end, [this](int64_t i) { is_kept_[ranks_[i]] = 1; });
    });
    int64_t count = 0;
    for (int64_t r = 0; r < n; ++r) {
      keep[count] = static_cast<uint32_t>(keys_[r]);
      count += is_kept_[r];
    }
    return count;
  }

  // Calls call(begin, end) with the numbers of the boxes of each class.
  template <typename Call>
  void for_classes(int64_t classes, const Call& call) const {
    int64_t begin = 0;
    for (int64_t label = 0; label < classes; ++label) {
      call(begin, int64_t{ends_[label]});
      begin = ends_[label];
    }
  }

  // Adds boxes number `begin` to `end`, a class, to the tree, best first.
  template <typename RankOf>
  void add(const NmsJob& job, int64_t begin, int64_t end, const RankOf& rank_of) {
    const size_t room = static_cast<size_t>(4 * (end - begin + kLanes));
    if (boxes_.size() < room) boxes_.resize(room);
    for (int64_t i = begin; i < end; ++i) {
      const float* const box = job.boxes + 4 * size_t{static_cast<uint32_t>(keys_[rank_of(i)])};
      std::copy(box, box + 4, &boxes_[4 * (i - begin)]);
    }
    tree_.add(boxes_.data(), begin, end);
  }

  // Visits boxes number `begin` to `end`, a class; calls report(number) of those that are kept.
  template <typename Report>
  void visit(const NmsJob& job, int64_t begin, int64_t end, const Report& report) {
    for (int64_t i = begin; i < end; ++i) {
      if (!tree_.is_open(i)) continue;
      report(i);
      tree_.keep(i, begin, end, job.threshold);
    }
  }

  std::vector<uint64_t> keys_;  // best first
  KeySorter sorter_;
  Box bounds_{};                  // of all boxes
  std::vector<float> boxes_;      // of a class, best first, and room for a vector more
  BoxTree tree_;                  // boxes have numbers there: by class, and then best first
  std::vector<int32_t> labels_;   // by index
  std::vector<uint32_t> ends_;    // of the classes, in numbers
  std::vector<uint32_t> ranks_;   // by number
  std::vector<uint8_t> is_kept_;  // by rank
};

}  // namespace ssd_fast::SSD_FAST_ISA
