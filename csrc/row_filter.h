// SPDX-License-Identifier: BSD-3-Clause
// Finds the few rows of a map that can hold a score worth computing. Torch-free.
//
// What it costs: one pass over the logits where they lie, three operations a vector of them, and
// on demand a quick exponential of a dozen.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "rows.h"
#include "simd.h"

namespace ssd_fast::SSD_FAST_ISA {

// e^x within 0.02 % for x from -87 to 87, and of the nearest of these for others.
inline Floats quick_exp(Floats x) {
  const float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Floats t = min(max(x, splat(-87.0f)), splat(87.0f)) * 1.44269504088896341f;
  const Floats rounded = t + kRound;
  const Floats r = t - (rounded - kRound);
  const Floats p = ((r * 0.0558011f + 0.2401397f) * r + 0.6931327f) * r + 1.0f;
  return as_floats(as_ints(p) + (as_ints(rounded) << 23));
}

// Filters one level after another; keeps its scratch memory between them. In what it says of rows
// it may be wrong to one side: a row that is not reported has no score that is asked for.
template <typename T>
class RowFilter {
 public:
  // Prepares for a level, which must outlive the search.
  void reset(const Level& level, int64_t classes, int64_t background) {
    level_ = &level;
    if (classes == classes_ && background == background_) return;
    classes_ = classes;
    background_ = background;
    vectors_ = (classes + kLanes - 1) / kLanes;
    last_start_ = std::max<int64_t>(0, classes - kLanes);
    block_.assign(static_cast<size_t>(kLanes * std::max(classes, kLanes)), 0.0f);
    excess_.clear();
    for (int64_t v = 0; v < vectors_; ++v) {
      const int64_t begin = start(v, vectors_);
      for (int64_t c = begin; c < begin + kLanes; ++c) {
        excess_.push_back(c >= v * kLanes && c < classes && c != background ? 0.0f : kNone);
      }
    }
  }

  // Calls report(row, rows scanned so far) as long as it returns true for the rows of an image of
  // which a class exceeds the background by `margin` or more. Returns what the last call did.
  template <typename Report>
  bool leading(int64_t image, float margin, const Report& report) {
    const T* const data = image_data(image);
    if (level_->has_even_rows()) {
      switch (vectors_) {  // of 21 and 81 classes: loops of known length stay in registers
        case 2:
          return leading_rows<2>(data, margin, report);
        case 6:
          return leading_rows<6>(data, margin, report);
        default:
          return leading_rows<0>(data, margin, report);
      }
    }
    return filter_cells<false>(
        data, [margin](Floats lead, Floats) { return lead >= margin; }, report);
  }

  // The same for the rows that hold a score of at least `floor`, a normal number, as well.
  template <typename Report>
  bool reaching(int64_t image, float margin, float floor, const Report& report) {
    const T* const data = image_data(image);
    const float bound = floor * 0.998f;  // more than the error of both exponentials
    const auto passes = [=](Floats lead, Floats sum) {
      // Exponentials beyond 80 decide nothing.
      return (lead >= margin) & ((quick_exp(lead) >= bound * sum) | (lead > 80.0f));
    };
    if (!level_->has_even_rows()) return filter_cells<true>(data, passes, report);
    switch (vectors_) {
      case 2:
        return filter_rows<2>(data, passes, report);
      case 6:
        return filter_rows<6>(data, passes, report);
      default:
        return filter_rows<0>(data, passes, report);
    }
  }

 private:
  static constexpr float kNone = -std::numeric_limits<float>::infinity();

  const T* image_data(int64_t image) const {
    return static_cast<const T*>(level_->data) + image * level_->batch_stride;
  }

  // Class at which one of `vectors` vectors starts. The last ends with the row: it does not read
  // on, it reads some lanes again.
  int64_t start(int64_t v, int64_t vectors) const {
    return v + 1 < vectors ? v * kLanes : last_start_;
  }

  // The largest of `best` and, class by class, a row's logits less its background's. Minus
  // infinity takes lanes out; a NaN is passed over. Adds exponentials to *sum, if there is one.
  template <int kVectors, typename Element>
  Floats lead(const Element* row, Floats best, Floats* sum) const {
    const int64_t vectors = kVectors ? kVectors : vectors_;
    const Floats reference = splat(to_float(row[background_]));
#pragma GCC unroll 6
    for (int64_t v = 0; v < vectors; ++v) {
      const Floats ahead =
          load_floats(row + start(v, vectors)) - reference + load(&excess_[v * kLanes]);
      best = max(ahead, best);
      if (sum != nullptr) *sum += quick_exp(ahead);
    }
    return best;
  }

  // Even rows, some at a time: hardly any of them leads.
  template <int kVectors, typename Report>
  bool leading_rows(const T* data, float margin, const Report& report) {
    constexpr int64_t kGroup = 4;
    const int64_t stride = level_->row_stride(), rows = level_->rows;
    // A vector may read over the end of a short row, but not of the last ones.
    const int64_t last = std::max<int64_t>(0, kLanes - classes_);
    const int64_t safe =
        last == 0 ? rows : rows - (last + stride - 1) / std::max<int64_t>(stride, 1);
    const auto is_leading = [&](const auto* row) {
      return any_reaching(lead<kVectors>(row, splat(kNone), nullptr), splat(margin));
    };
    int64_t row = 0;
    for (; stride > 0 && row + kGroup <= safe; row += kGroup) {
      Floats best = splat(kNone);
#pragma GCC unroll 4
      for (int64_t r = 0; r < kGroup; ++r) {
        best = lead<kVectors>(data + (row + r) * stride, best, nullptr);
      }
      if (!any_reaching(best, splat(margin))) continue;
      for (int64_t r = row; r < row + kGroup; ++r) {
        if (is_leading(data + r * stride) && !report(r, row + kGroup)) return false;
      }
    }
    for (; row < rows; ++row) {
      load_row(data + row * stride, 1, classes_, block_.data());
      if (is_leading(block_.data()) && !report(row, row + 1)) return false;
    }
    return true;
  }

  // Even rows, kLanes at a time.
  template <int kVectors, typename Passes, typename Report>
  bool filter_rows(const T* data, const Passes& passes, const Report& report) {
    const int64_t stride = level_->row_stride(), rows = level_->rows;
    const int64_t copied = std::max(classes_, kLanes);
    for (int64_t row = 0; row < rows; row += kLanes) {
      const int64_t count = std::min(kLanes, rows - row);
      uint32_t lanes;
      if (count == kLanes && classes_ >= kLanes) {
        lanes = lanes_of(judge<kVectors>(data + row * stride, stride, passes));
      } else {
        for (int64_t i = 0; i < count; ++i) {
          load_row(data + (row + i) * stride, 1, classes_, &block_[i * copied]);
        }
        lanes = lanes_of(judge<kVectors>(block_.data(), copied, passes)) & ((1u << count) - 1);
      }
      for (; lanes != 0; lanes &= lanes - 1) {
        if (!report(row + __builtin_ctz(lanes), row + count)) return false;
      }
    }
    return true;
  }

  template <int kVectors, typename Element, typename Passes>
  Ints judge(const Element* rows, int64_t stride, const Passes& passes) const {
    Floats leads[kLanes], sums[kLanes];
    for (int64_t r = 0; r < kLanes; ++r) {
      Floats sum{};
      leads[r] = lead<kVectors>(rows + r * stride, splat(kNone), &sum);
      sums[r] = sum;
    }
    return passes(combine_rows(leads, [](Floats a, Floats b) { return max(a, b); }),
                  combine_rows(sums, [](Floats a, Floats b) { return a + b; }) + 1.0f);
  }

  // For any strides: class by class along the cells of a map, which lie side by side in a
  // contiguous map.
  template <bool kSums, typename Passes, typename Report>
  bool filter_cells(const T* data, const Passes& passes, const Report& report) {
    const int64_t anchors = level_->anchors;
    const int64_t run = level_->has_even_cells() ? level_->cells() : level_->width;
    int64_t count = 0;
    for (int64_t cell = 0; cell < level_->cells(); cell += count) {
      const int64_t x = cell % run;
      count = std::min(kStrip, run - x);
      const T* const start = data + (cell / run) * level_->y_stride + x * level_->x_stride;
      for (int64_t anchor = 0; anchor < anchors; ++anchor) {
        reduce_cells<kSums>(start + anchor * level_->anchor_stride, count);
        for (int64_t i = 0; i < count; i += kLanes) {
          uint32_t lanes = lanes_of(passes(load(leads_ + i), load(sums_ + i)));
          if (count - i < kLanes) lanes &= (1u << (count - i)) - 1;
          for (; lanes != 0; lanes &= lanes - 1) {
            const int64_t row = (cell + i + __builtin_ctz(lanes)) * anchors + anchor;
            if (!report(row, cell * anchors + count * anchor + i)) return false;
          }
        }
      }
    }
    return true;
  }

  template <bool kSums>
  void reduce_cells(const T* cells, int64_t count) {
    std::fill(leads_, leads_ + count + kLanes, kNone);
    if (kSums) std::fill(sums_, sums_ + count + kLanes, 1.0f);
    const T* const reference = cells + background_ * level_->channel_stride;
    for (int64_t c = 0; c < classes_; ++c) {
      if (c == background_) continue;
      const T* const logits = cells + c * level_->channel_stride;
      for (int64_t i = 0; i < count; i += kLanes) {
        const int64_t lanes = std::min(kLanes, count - i);
        const Floats ahead = load_cells(logits, i, lanes) - load_cells(reference, i, lanes);
        store(leads_ + i, max(ahead, load(leads_ + i)));
        if constexpr (kSums) store(sums_ + i, load(sums_ + i) + quick_exp(ahead));
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
  int64_t last_start_ = 0;     // class at which the last vector of a row starts
  std::vector<float> excess_;  // 0 in the lanes of each vector that count, else -inf
  std::vector<float> block_;   // rows copied
  float leads_[kStrip + kLanes], sums_[kStrip + kLanes];
};

}  // namespace ssd_fast::SSD_FAST_ISA
