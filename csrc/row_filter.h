// SPDX-License-Identifier: BSD-3-Clause
// Finds the few rows of a map that can hold a score worth computing. Torch-free.
//
// What it costs: one pass over the logits where they lie, three operations a vector of them, and
// on demand a quick exponential of a dozen.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "read_ahead.h"
#include "row_loads.h"
#include "rows.h"
#include "scratch.h"
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
class RowFilter {
 public:
  // Prepares for a level, which must outlive the search. Logits count less the background's if
  // `is_relative`, else as they are; the background, or -1 for none, is no class either way.
  void reset(const Level& level, Dtype dtype, int64_t classes, int64_t background,
             bool is_relative) {
    level_ = &level;
    dtype_ = dtype;
    is_relative_ = is_relative;
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
  // which a class reaches `margin`. Returns what the last call did.
  template <typename Report>
  bool leading(int64_t image, float margin, const Report& report) {
    if (level_->has_even_rows()) {
      return with_rows(image, [&](auto vectors, const auto* rows) {
        return leading_rows<vectors>(rows, margin, report);
      });
    }
    return filter_cells<false>(
        image, [margin](Floats lead, Floats) { return lead >= margin; }, report);
  }

  // The same for the rows that hold a softmax of at least `floor`, a normal number, as well.
  template <typename Report>
  bool reaching(int64_t image, float margin, float floor, const Report& report) {
    const float bound = floor * 0.998f;  // more than the error of both exponentials
    const auto passes = [=](Floats lead, Floats sum) {
      // Exponentials beyond 80 decide nothing.
      return (lead >= margin) & ((quick_exp(lead) >= bound * sum) | (lead > 80.0f));
    };
    if (!level_->has_even_rows()) return filter_cells<true>(image, passes, report);
    return with_rows(image, [&](auto vectors, const auto* rows) {
      return filter_rows<vectors>(rows, passes, report);
    });
  }

 private:
  static constexpr float kNone = -std::numeric_limits<float>::infinity();
  // Loops of known length stay in registers.
  static constexpr int kVectorsOf21 = (21 + kLanes - 1) / kLanes;
  static constexpr int kVectorsOf81 = (81 + kLanes - 1) / kLanes;

  // The vectors of a row of about 21 or 81 classes, of whose last one AVX-512 needs a half at most;
  // 0 of others.
  int64_t known_vectors() const {
    const int64_t last = classes_ - (vectors_ - 1) * kLanes;
    return classes_ >= kLanes && (kLanes < 16 || last <= kLanes / 2) ? vectors_ : 0;
  }

  // What search(known_vectors(), even rows of an image) returns.
  template <typename Search>
  bool with_rows(int64_t image, const Search& search) const {
    bool result = true;
    visit_dtype(dtype_, [&](auto* type) {
      const auto* const rows =
          static_cast<decltype(type)>(level_->data) + image * level_->batch_stride;
      switch (known_vectors()) {
        case kVectorsOf21:
          result = search(std::integral_constant<int, kVectorsOf21>(), rows);
          break;
        case kVectorsOf81:
          result = search(std::integral_constant<int, kVectorsOf81>(), rows);
          break;
        default:
          result = search(std::integral_constant<int, 0>(), rows);
      }
    });
    return result;
  }

  // How many of the rows come in blocks of which every vector can be read in place. Others are
  // copied.
  int64_t readable_rows() const { return classes_ >= kLanes ? level_->rows & -kLanes : 0; }

  // Floats between two copied rows.
  int64_t copied_stride() const { return std::max(classes_, kLanes); }

  // Copies `count` even rows to block_.
  template <typename T>
  const float* copied_rows(const T* rows, int64_t count) {
    const int64_t stride = level_->row_stride();
    for (int64_t i = 0; i < count; ++i) {
      load_row_as_floats(rows + i * stride, 1, classes_, &block_[i * copied_stride()]);
    }
    return block_.data();
  }

  // Class at which one of `vectors` vectors starts. The last ends with the row: it does not read
  // on, it reads some lanes again.
  int64_t start(int64_t v, int64_t vectors) const {
    return v + 1 < vectors ? v * kLanes : last_start_;
  }

  // What the logits of a row are compared with.
  template <typename T>
  Floats reference_of(const T* row) const {
    if constexpr (std::is_same_v<T, float>) {  // by address, so that one load fills a vector
      return splat(*(is_relative_ ? row + background_ : &nothing_));
    } else {
      return is_relative_ ? splat_float(row + background_) : splat(nothing_);
    }
  }

  // The largest of `best` and, class by class, what a row's logits count. Minus infinity takes
  // lanes out; a NaN is passed over. Adds exponentials to *sum, if there is one.
  template <int kVectors, typename T>
  Floats lead(const T* row, Floats best, Floats* sum) const {
    const int64_t vectors = kVectors ? kVectors : vectors_;
    const Floats reference = reference_of(row);
#pragma GCC unroll 6
    for (int64_t v = 0; v < vectors; ++v) {
      const Floats ahead =
          load_floats(row + start(v, vectors)) - reference + load(&excess_[v * kLanes]);
      best = max(ahead, best);
      if (sum != nullptr) *sum += quick_exp(ahead);
    }
    return best;
  }

  // The largest lead of kGroup rows, class by class.
  template <int kVectors, typename T>
  SSD_FAST_INLINE Floats lead_of_group(const T* rows, int64_t stride, ReadAhead ahead) const {
    Floats best = splat(kNone);
#if defined(__AVX512F__)
    if constexpr (kVectors != 0) {
      const T* const half = rows + classes_ - kLanes / 2;
      constexpr int64_t kWhole = kVectors - 1;
      Floats most[kWhole];
      __m256 last = _mm256_set1_ps(kNone);
#pragma GCC unroll 4
      for (int64_t r = 0; r < kGroup; ++r) {
        ahead(rows + r * stride, classes_);
        const Floats behind = reference_of(rows + r * stride);
#pragma GCC unroll 6
        for (int64_t v = 0; v < kWhole; ++v) {
          const Floats own = load_floats(rows + r * stride + v * kLanes) - behind;
          most[v] = max(own, r == 0 ? splat(kNone) : most[v]);
        }
        const __m256 own = _mm256_sub_ps(load_eight(half + r * stride),
                                         _mm512_castps512_ps256(reinterpret_cast<__m512>(behind)));
        last = _mm256_max_ps(own, last);
      }
#pragma GCC unroll 6
      for (int64_t v = 0; v < kWhole; ++v) best = max(most[v] + load(&excess_[v * kLanes]), best);
      const Floats end =
          reinterpret_cast<Floats>(_mm512_insertf32x8(_mm512_set1_ps(kNone), last, 1));
      return max(end + load(&excess_[kWhole * kLanes]), best);
    }
#endif
#pragma GCC unroll 4
    for (int64_t r = 0; r < kGroup; ++r) {
      ahead(rows + r * stride, classes_);
      best = lead<kVectors>(rows + r * stride, best, nullptr);
    }
    return best;
  }

  // Even rows.
  template <int kVectors, typename T, typename Report>
  bool leading_rows(const T* rows, float margin, const Report& report) {
    const int64_t stride = level_->row_stride();
    const ReadAhead ahead = read_ahead_.of_rows(stride, classes_);
    int64_t row = 0;
    for (; row < readable_rows(); row += kLanes) {
      const T* const block = rows + row * stride;
      if (!leading_among<kVectors>(block, stride, ahead, row, kLanes, margin, report)) {
        return false;
      }
    }
    for (; row < level_->rows; row += kLanes) {
      const int64_t count = std::min(kLanes, level_->rows - row);
      const float* const block = copied_rows(rows + row * stride, count);
      if (!leading_among<kVectors>(block, copied_stride(), ReadAhead(), row, count, margin,
                                   report)) {
        return false;
      }
    }
    return true;
  }

  // Up to kLanes rows, some at a time: hardly any of them leads.
  template <int kVectors, typename T, typename Report>
  bool leading_among(const T* rows, int64_t stride, ReadAhead ahead, int64_t first, int64_t count,
                     float margin, const Report& report) {
    for (int64_t group = 0; group < count; group += kGroup) {
      const Floats best = lead_of_group<kVectors>(rows + group * stride, stride, ahead);
      if (!any_reaching(best, splat(margin))) continue;
      const int64_t end = std::min(group + kGroup, count);
      for (int64_t r = group; r < end; ++r) {
        const Floats own = lead<kVectors>(rows + r * stride, splat(kNone), nullptr);
        if (any_reaching(own, splat(margin)) && !report(first + r, first + end)) return false;
      }
    }
    return true;
  }

  // Even rows, kLanes at a time.
  template <int kVectors, typename T, typename Passes, typename Report>
  bool filter_rows(const T* rows, const Passes& passes, const Report& report) {
    const int64_t stride = level_->row_stride();
    const ReadAhead ahead = read_ahead_.of_rows(stride, classes_);
    int64_t count = 0;
    for (int64_t row = 0; row < level_->rows; row += count) {
      count = std::min(kLanes, level_->rows - row);
      uint32_t lanes;
      if (row < readable_rows()) {
        lanes = lanes_of(judge<kVectors>(rows + row * stride, stride, ahead, passes));
      } else {
        const float* const block = copied_rows(rows + row * stride, count);
        lanes = lanes_of(judge<kVectors>(block, copied_stride(), ReadAhead(), passes));
        lanes &= (1u << count) - 1;
      }
      for (; lanes != 0; lanes &= lanes - 1) {
        if (!report(row + __builtin_ctz(lanes), row + count)) return false;
      }
    }
    return true;
  }

  template <int kVectors, typename T, typename Passes>
  Ints judge(const T* rows, int64_t stride, ReadAhead ahead, const Passes& passes) const {
    Floats leads[kLanes], sums[kLanes];
    for (int64_t r = 0; r < kLanes; ++r) {
      ahead(rows + r * stride, classes_);
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
  bool filter_cells(int64_t image, const Passes& passes, const Report& report) {
    const int64_t anchors = level_->anchors;
    const int64_t run = level_->has_even_cells() ? level_->cells() : level_->width;
    int64_t count = 0;
    for (int64_t cell = 0; cell < level_->cells(); cell += count) {
      const int64_t x = cell % run;
      count = std::min(kStrip, run - x);
      const int64_t start =
          image * level_->batch_stride + (cell / run) * level_->y_stride + x * level_->x_stride;
      for (int64_t anchor = 0; anchor < anchors; ++anchor) {
        visit_dtype(dtype_, [&](auto* type) {
          const auto* const data = static_cast<decltype(type)>(level_->data);
          reduce_cells<kSums>(data + start + anchor * level_->anchor_stride, count);
        });
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

  template <bool kSums, typename T>
  void reduce_cells(const T* cells, int64_t count) {
    std::fill(leads_, leads_ + count + kLanes, kNone);
    if (kSums) std::fill(sums_, sums_ + count + kLanes, 1.0f);
    const T* const reference = is_relative_ ? cells + background_ * level_->channel_stride : cells;
    for (int64_t c = 0; c < classes_; ++c) {
      if (c == background_) continue;
      const T* const logits = cells + c * level_->channel_stride;
      for (int64_t i = 0; i < count; i += kLanes) {
        const int64_t lanes = std::min(kLanes, count - i);
        read_ahead_(logits + i, kLanes);
        Floats ahead = load_cells(logits, i, lanes);
        if (is_relative_) ahead -= load_cells(reference, i, lanes);
        store(leads_ + i, max(ahead, load(leads_ + i)));
        if constexpr (kSums) store(sums_ + i, load(sums_ + i) + quick_exp(ahead));
      }
    }
  }

  template <typename T>
  Floats load_cells(const T* cells, int64_t i, int64_t count) const {
    const int64_t stride = level_->x_stride;
    if (count == kLanes && stride == 1) return load_floats(cells + i);
    float values[kLanes] = {};
    for (int64_t lane = 0; lane < count; ++lane)
      values[lane] = to_float(cells[(i + lane) * stride]);
    return load(values);
  }

  static constexpr int64_t kGroup = 4;     // rows, of which a copied block has a multiple
  static constexpr int64_t kStrip = 2048;  // so long that the planes of a map are read one by one
  const Level* level_ = nullptr;
  Dtype dtype_ = Dtype::kFloat32;
  int64_t classes_ = -1;
  int64_t background_ = -1;
  bool is_relative_ = true;
  float nothing_ = 0.0f;
  ReadAhead read_ahead_ = ReadAhead::if_worth_it();
  int64_t vectors_ = 0;
  int64_t last_start_ = 0;       // class at which the last vector of a row starts
  AlignedVector<float> excess_;  // 0 in the lanes of each vector that count, else -inf
  AlignedVector<float> block_;   // rows copied
  float leads_[kStrip + kLanes], sums_[kStrip + kLanes];
};

}  // namespace ssd_fast::SSD_FAST_ISA
