// SPDX-License-Identifier: BSD-3-Clause
// What the losses share: their inputs, which object each prior answers for, and the walk over the
// rows that were selected. Contract: ssd_fast/ops/_loss_reference.py. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "assignment.h"
#include "box.h"
#include "box_losses.h"
#include "match.h"
#include "rows.h"
#include "simd.h"
#include "softmax_row.h"

namespace ssd_fast {

enum class Normalizer : int64_t { kPositives = 0, kImage = 1, kNone = 2 };

// What forward and backward need of the options.
struct RowOptions {
  BoxLoss box_loss;
  double beta;
  double variances[4];
  ClassOptions classes;
  int64_t background;
};

// What forward and backward work on.
struct LossInputs {
  const Rows& deltas;
  const Rows& logits;
  const float* priors;  // (P, 4)
  int64_t P;
  Objects objects;
  RowOptions options;
};

// How priors find their objects.
struct Assignment {
  MatchOptions matching;
  GivenMatches given;                     // used instead of matching, if there are any
  std::optional<float> ignore_threshold;  // of a prior's share in a region to ignore
  const PriorBlocks& blocks;
};

// What the rows of an image are multiplied by.
inline double image_weight(Normalizer normalizer, int64_t positives, int64_t batch_positives,
                           int64_t batch) {
  const auto at_least_one = [](int64_t n) { return static_cast<double>(std::max<int64_t>(n, 1)); };
  switch (normalizer) {
    case Normalizer::kPositives:
      return 1 / at_least_one(batch_positives);
    case Normalizer::kImage:
      return 1 / (at_least_one(positives) * at_least_one(batch));
    default:
      return 1;
  }
}

}  // namespace ssd_fast

namespace ssd_fast::SSD_FAST_ISA {

// Writes what each prior of an image answers for, before anything is mined, to `code` (P,); returns
// the positives. `scratch` is for the IoU of all priors in whole blocks.
inline int64_t assign_rows(const LossInputs& inputs, const Assignment& assignment, int64_t image,
                           Matcher& matcher, float* scratch, int32_t* code) {
  const RowRange range = image_rows(inputs.objects.offsets, image, inputs.objects.N);
  const int64_t* labels = inputs.objects.labels + range.begin;
  const float* boxes = inputs.objects.boxes + 4 * range.begin;
  const auto has_class = [&](int64_t n) {
    return labels[n] >= 0 && labels[n] < inputs.logits.channels &&
           labels[n] != inputs.options.background;
  };
  int64_t positives;
  if (assignment.given.any()) {
    positives = take_matches(
        assignment.given, image * inputs.P, inputs.P, range.count,
        [&](int64_t n) { return is_valid(box_at(boxes, n)) && has_class(n); }, code);
  } else {
    matcher.reset(assignment.blocks, assignment.matching, scratch);
    positives = matcher.match(boxes, range.count, has_class, inputs.P, code);
  }
  if (!assignment.ignore_threshold) return positives;
  for (int64_t n = 0; n < range.count; ++n) {
    const Box region = box_at(boxes, n);
    if (labels[n] != kIgnoreLabel || !is_valid(region)) continue;
    ignore_inside(region, assignment.blocks, *assignment.ignore_threshold, inputs.P, code);
  }
  return positives;
}

// A selected row: the object it is matched to, or no object for a mined negative.
struct SelectedRow {
  const Level* level;  // of the logits
  size_t level_index;
  int64_t row;     // in the level
  int64_t prior;   // in all levels
  int64_t object;  // row of boxes and labels; -1 for a mined negative
  int64_t target;  // class
};

// Asks the caches for a row of `level` that lies in one piece.
inline void prefetch_row(const Level& level, Dtype dtype, int64_t channels, int64_t image,
                         int64_t row) {
  if (level.channel_stride != 1) return;
  visit_dtype(dtype, [&](auto* type) {
    const auto* data = static_cast<const std::remove_pointer_t<decltype(type)>*>(level.data);
    prefetch(data + level.offset(image, row), channels);
  });
}

// Calls visit(SelectedRow) for the selected rows of one image, in prior order, and, a few rows
// before, prepare(SelectedRow). A code that fits no object, which only targets changed since can
// give, is passed over.
template <typename Prepare, typename Visit>
void visit_selected(const LossInputs& inputs, const int32_t* code, int64_t image,
                    const Prepare& prepare, const Visit& visit) {
  constexpr int64_t kAhead = 16;
  SelectedRow queue[kAhead];
  int64_t found = 0;
  const RowRange range = image_rows(inputs.objects.offsets, image, inputs.objects.N);
  size_t l = 0;
  int64_t first = 0;
  for (int64_t begin = 0; begin < inputs.P; begin += kLanes) {
    const int64_t count = std::min(kLanes, inputs.P - begin);
    const Ints codes = load_some(code + begin, count, kBackground);
    uint32_t lanes = lanes_of((codes >= 0) | (codes == kHardNegative));
    for (; lanes != 0; lanes &= lanes - 1) {
      const int64_t prior = begin + __builtin_ctz(lanes);
      while (prior - first >= inputs.logits.levels[l].rows) first += inputs.logits.levels[l++].rows;
      SelectedRow selected{&inputs.logits.levels[l], l, prior - first, prior, -1,
                           inputs.options.background};
      const int32_t value = code[prior];
      if (value >= 0) {
        if (value >= range.count) continue;
        selected.object = range.begin + value;
        selected.target = inputs.objects.labels[selected.object];
        if (selected.target < 0 || selected.target >= inputs.logits.channels) continue;
      }
      prepare(selected);
      if (found >= kAhead) visit(queue[found % kAhead]);
      queue[found++ % kAhead] = selected;
    }
  }
  for (int64_t i = std::max<int64_t>(found - kAhead, 0); i < found; ++i) visit(queue[i % kAhead]);
}

}  // namespace ssd_fast::SSD_FAST_ISA
