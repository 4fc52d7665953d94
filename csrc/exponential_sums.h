// SPDX-License-Identifier: BSD-3-Clause
// Of single rows of logits the sum over c != target of exp(x_c - x_target): the exact mining key
// where the target is the background, and a cross-entropy but for its logarithm. Torch-free.
//
// What it costs: about twenty operations for one class of kLanes rows. The rows lie scattered, so
// those of the next vector are asked for while one is computed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "exponential.h"
#include "row_loads.h"
#include "rows.h"
#include "simd.h"
#include "transpose.h"

namespace ssd_fast::SSD_FAST_ISA {

// Rows in the lanes: the order in which a row is summed is the same on every machine. It is summed
// in runs, for where terms are alike, as an untrained network's are, each addition to one running
// sum errs the same way: by 2e-5 in all over 1204 classes.
class ExponentialSums {
 public:
  // Sums of rows `priors[0]` to `priors[n - 1]` of an image, in ascending order; `target_of(i)` is
  // the target of the i-th.
  template <typename TargetOf>
  void compute(const Rows& logits, int64_t image, const int32_t* priors, int64_t n,
               const TargetOf& target_of, float* sums) {
    visit_dtype(logits.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      sum_rows<T>(logits, image, priors, n, target_of, sums);
    });
  }

 private:
  template <typename T>
  struct RowsOfLanes {
    const T* data[kLanes];
    int64_t channel_strides[kLanes];
  };

  template <typename T, typename TargetOf>
  void sum_rows(const Rows& logits, int64_t image, const int32_t* priors, int64_t n,
                const TargetOf& target_of, float* sums) {
    if (n == 0) return;
    const int64_t classes = logits.channels;
    block_.resize(static_cast<size_t>(classes * kLanes));
    level_ = 0;
    first_ = 0;
    RowsOfLanes<T> rows = find<T>(logits, image, priors, n);
    for (int64_t i = 0; i < n; i += kLanes) {
      const RowsOfLanes<T> here = rows;
      if (i + kLanes < n) rows = find<T>(logits, image, priors + i + kLanes, n - i - kLanes);
      copy(here, classes);
      const int64_t count = std::min(kLanes, n - i);
      int32_t targets[kLanes];
      float references[kLanes], lanes[kLanes];
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        targets[lane] = target_of(i + std::min(lane, count - 1));
        references[lane] = block_[targets[lane] * kLanes + lane];
      }
      store(lanes, sum_lanes(load(targets), load(references), classes));
      std::copy(lanes, lanes + count, sums + i);
    }
  }

  // Where kLanes rows are, the last of `n` again and again behind it.
  template <typename T>
  RowsOfLanes<T> find(const Rows& logits, int64_t image, const int32_t* priors, int64_t n) {
    RowsOfLanes<T> rows;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t prior = priors[std::min(lane, n - 1)];
      while (prior - first_ >= logits.levels[level_].rows) first_ += logits.levels[level_++].rows;
      const Level& level = logits.levels[level_];
      rows.data[lane] = static_cast<const T*>(level.data) + level.offset(image, prior - first_);
      rows.channel_strides[lane] = level.channel_stride;
      if (level.channel_stride == 1) prefetch(rows.data[lane], logits.channels);
    }
    return rows;
  }

  template <typename T>
  void copy(const RowsOfLanes<T>& rows, int64_t classes) {
    bool are_contiguous = classes >= kLanes;
    for (const int64_t stride : rows.channel_strides) are_contiguous &= stride == 1;
    if (!are_contiguous) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        for (int64_t c = 0; c < classes; ++c) {
          block_[c * kLanes + lane] = to_float(rows.data[lane][c * rows.channel_strides[lane]]);
        }
      }
      return;
    }
    for (int64_t c = 0; c < classes; c += kLanes) {
      const int64_t start = std::min(c, classes - kLanes);  // it does not read behind a row
      Floats square[kLanes];
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        square[lane] = load_floats(rows.data[lane] + start);
      }
      transpose(square);
      for (int64_t k = 0; k < kLanes; ++k) store(&block_[(start + k) * kLanes], square[k]);
    }
  }

  Floats sum_lanes(Ints targets, Floats references, int64_t classes) const {
    constexpr int64_t kRun = 128;
    Floats sum{};
    for (int64_t begin = 0; begin < classes; begin += kRun) {
      const int64_t end = std::min(begin + kRun, classes);
      Floats run{};
      for (int64_t c = begin; c < end; ++c) {
        const Floats term = exp(load(&block_[c * kLanes]) - references);
        run += targets == static_cast<int32_t>(c) ? Floats{} : term;
      }
      sum += run;
    }
    return sum;
  }

  size_t level_ = 0;          // where the next row is looked for
  int64_t first_ = 0;         // row of the batch's list at which that level begins
  std::vector<float> block_;  // (C, kLanes)
};

}  // namespace ssd_fast::SSD_FAST_ISA
