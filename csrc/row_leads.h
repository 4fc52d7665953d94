// SPDX-License-Identifier: BSD-3-Clause
// How far the best class of a row leads the background, for all rows of a map. Torch-free.
//
// What it costs: one pass over the logits where they lie, a difference and a maximum for a vector
// of them; on demand also an exponential.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "rows.h"
#include "simd.h"

namespace ssd_fast::SSD_FAST_ISA {

// Scans one level after another; keeps its scratch memory between them.
template <typename T>
class RowLeads {
 public:
  // Prepares for a level, which must outlive the scan.
  void reset(const Level& level, int64_t classes, int64_t background) {
    level_ = &level;
    if (classes == classes_ && background == background_) return;
    classes_ = classes;
    background_ = background;
    vectors_ = (classes + kLanes - 1) / kLanes;
    block_.resize(static_cast<size_t>(kLanes * std::max(classes, kLanes)));
    starts_.clear();
    excess_.clear();
    // The last vector of a row ends with the row: it does not read on, it reads some lanes again.
    for (int64_t v = 0; v < vectors_; ++v) {
      const int64_t start = std::max<int64_t>(0, std::min(v * kLanes, classes - kLanes));
      starts_.push_back(start);
      for (int64_t c = start; c < start + kLanes; ++c) {
        excess_.push_back(c >= v * kLanes && c < classes && c != background ? 0.0f : kNone);
      }
    }
  }

  // Calls report(row, lead, sum) for kLanes rows of an image at a time, some of which may not
  // exist: row(lane) is the number in the level of the row in a lane, below 0 for none. `lead` is
  // the largest logit of a class less the background's, -inf if that is NaN; `sum`, if kSums, the
  // sum of exp(logit - background's) over all classes.
  template <bool kSums, typename Report>
  bool scan(int64_t image, const Report& report) {
    const T* data = static_cast<const T*>(level_->data) + image * level_->batch_stride;
    if (level_->has_even_rows() && classes_ >= kLanes) return even_rows<kSums>(data, report);
    return cells<kSums>(data, report);
  }

 private:
  static constexpr float kNone = -std::numeric_limits<float>::infinity();

  template <bool kSums, typename Report>
  bool even_rows(const T* data, const Report& report) {
    const int64_t stride = level_->row_stride(), rows = level_->rows;
    int64_t row = 0;
    const auto number = [&row, rows](int lane) { return row + lane < rows ? row + lane : -1; };
    for (; row + kLanes <= rows; row += kLanes) {
      if (!block<kSums>(data + row * stride, stride, number, report)) return false;
    }
    if (row == rows) return true;
    const int64_t copied = std::max(classes_, kLanes);
    for (int64_t i = 0; row + i < rows; ++i) {
      load_row(data + (row + i) * stride, 1, classes_, &block_[i * copied]);
    }
    return block<kSums>(block_.data(), copied, number, report);
  }

  // kLanes contiguous rows.
  template <bool kSums, typename Element, typename Number, typename Report>
  bool block(const Element* rows, int64_t stride, const Number& number,
             const Report& report) const {
    Floats lead, sum;
    switch (vectors_) {  // of 21 and 81 classes: loops of known length stay in registers
      case 2:
        reduce<kSums, 2>(rows, stride, &lead, &sum);
        break;
      case 3:
        reduce<kSums, 3>(rows, stride, &lead, &sum);
        break;
      case 6:
        reduce<kSums, 6>(rows, stride, &lead, &sum);
        break;
      default:
        reduce<kSums, 0>(rows, stride, &lead, &sum);
    }
    return report(number, lead, sum);
  }

  template <bool kSums, int kVectors, typename Element>
  void reduce(const Element* rows, int64_t stride, Floats* lead, Floats* sum) const {
    const int64_t vectors = kVectors ? kVectors : vectors_;
    Floats leads[kLanes], sums[kLanes];
    for (int64_t r = 0; r < kLanes; ++r) {
      const Element* row = rows + r * stride;
      const Floats reference = splat(to_float(row[background_]));
      Floats best = splat(kNone), total{};
      for (int64_t v = 0; v < vectors; ++v) {
        // Minus infinity takes lanes out; where that makes NaN, max passes it over.
        const Floats ahead = load_floats(row + starts_[v]) - reference + load(&excess_[v * kLanes]);
        best = max(ahead, best);
        if constexpr (kSums) total += exp(ahead);
      }
      leads[r] = best;
      if constexpr (kSums) sums[r] = total;
    }
    *lead = combine_rows(leads, [](Floats a, Floats b) { return max(a, b); });
    if constexpr (kSums) {
      *sum = combine_rows(sums, [](Floats a, Floats b) { return a + b; }) + 1.0f;
    }
  }

  // For any strides: class by class along the cells of a map, which lie side by side in a
  // contiguous map.
  template <bool kSums, typename Report>
  bool cells(const T* data, const Report& report) {
    const int64_t run = level_->has_even_cells() ? level_->cells() : level_->width;
    for (int64_t cell = 0; cell < level_->cells();) {
      const int64_t x = cell % run;
      const int64_t count = std::min(kStrip, run - x);
      const T* const start = data + (cell / run) * level_->y_stride + x * level_->x_stride;
      for (int64_t anchor = 0; anchor < level_->anchors; ++anchor) {
        reduce_cells<kSums>(start + anchor * level_->anchor_stride, count);
        for (int64_t i = 0; i < count; i += kLanes) {
          const int64_t first = cell + i, anchors = level_->anchors;
          const auto number = [=](int lane) {
            return i + lane < count ? (first + lane) * anchors + anchor : -1;
          };
          if (!report(number, load(leads_ + i), kSums ? load(sums_ + i) + 1.0f : Floats{})) {
            return false;
          }
        }
      }
      cell += count;
    }
    return true;
  }

  template <bool kSums>
  void reduce_cells(const T* cells, int64_t count) {
    std::fill(leads_, leads_ + count + kLanes, kNone);
    if (kSums) std::fill(sums_, sums_ + count + kLanes, 0.0f);
    const T* const reference = cells + background_ * level_->channel_stride;
    for (int64_t c = 0; c < classes_; ++c) {
      if (c == background_) continue;
      const T* const logits = cells + c * level_->channel_stride;
      for (int64_t i = 0; i < count; i += kLanes) {
        const int64_t lanes = std::min(kLanes, count - i);
        const Floats ahead = load_cells(logits, i, lanes) - load_cells(reference, i, lanes);
        store(leads_ + i, max(ahead, load(leads_ + i)));
        if constexpr (kSums) store(sums_ + i, load(sums_ + i) + exp(ahead));
      }
    }
  }

  Floats load_cells(const T* cells, int64_t i, int64_t count) const {
    const int64_t stride = level_->x_stride;
    if (count == kLanes && stride == 1) return load_floats(cells + i);
    float values[kLanes] = {};
    for (int64_t lane = 0; lane < count; ++lane)
      values[lane] = to_float(cells[(i + lane) * stride]);
    return load(values);
  }

  static constexpr int64_t kStrip = 2048;  // so long that the planes of a map are read one by one
  const Level* level_ = nullptr;
  int64_t classes_ = -1;
  int64_t background_ = -1;
  int64_t vectors_ = 0;
  std::vector<int64_t> starts_;  // of each vector of a row
  std::vector<float> excess_;    // 0 in the lanes of each vector that count, else -inf
  std::vector<float> block_;
  float leads_[kStrip + kLanes], sums_[kStrip + kLanes];
};

}  // namespace ssd_fast::SSD_FAST_ISA
