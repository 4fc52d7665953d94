// SPDX-License-Identifier: BSD-3-Clause
// What the losses share: their inputs, which object each prior answers for, and the box loss of a
// positive with its gradient. Contract: ssd_fast/ops/_multibox.py. Torch-free.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>

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

// The offsets that lead from a prior to a box, as encode_boxes in ssd_fast/boxes.py.
inline void encode(const Box& box, const Box& prior, const double* variances, double* out) {
  const double pw = double{prior.x2} - prior.x1, ph = double{prior.y2} - prior.y1;
  out[0] = ((double{box.x1} - prior.x1) + (double{box.x2} - prior.x2)) * 0.5 / (pw * variances[0]);
  out[1] = ((double{box.y1} - prior.y1) + (double{box.y2} - prior.y2)) * 0.5 / (ph * variances[1]);
  out[2] = std::log((double{box.x2} - box.x1) / pw) / variances[2];
  out[3] = std::log((double{box.y2} - box.y1) / ph) / variances[3];
}

inline double smooth_l1(double residual, double beta) {
  const double size = std::fabs(residual);
  return size < beta ? 0.5 * residual * residual / beta : size - 0.5 * beta;
}

inline double smooth_l1_slope(double residual, double beta) {
  if (beta > 0) return std::clamp(residual / beta, -1.0, 1.0);
  return (residual > 0) - (residual < 0);
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
  constexpr int64_t kLine = 64;
  const int64_t size = dtype == Dtype::kFloat32 ? 4 : 2;
  const char* begin = static_cast<const char*>(level.data) + size * level.offset(image, row);
  for (int64_t i = 0; i < size * channels; i += kLine) __builtin_prefetch(begin + i);
  __builtin_prefetch(begin + size * channels - 1);
}

// Calls visit(SelectedRow) for the selected rows of one image, in prior order, and, a few rows
// before, prepare(SelectedRow). A code that fits no object, which only targets changed since can
// give, is passed over.
template <typename Prepare, typename Visit>
void visit_selected(const LossInputs& inputs, const int32_t* code, int64_t image,
                    const Prepare& prepare, const Visit& visit) {
  constexpr int64_t kAhead = 8;
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

// A row's deltas, its prior and the box it is matched to.
struct BoxRow {
  float deltas[4];
  Box prior, target;

  BoxRow(const LossInputs& inputs, int64_t image, const SelectedRow& selected)
      : prior(box_at(inputs.priors, selected.prior)),
        target(box_at(inputs.objects.boxes, selected.object)) {
    const Level& level = inputs.deltas.levels[selected.level_index];
    visit_dtype(inputs.deltas.dtype, [&](auto* type) {
      const auto* data = static_cast<const std::remove_pointer_t<decltype(type)>*>(level.data);
      load_row(data + level.offset(image, selected.row), level.channel_stride, 4, deltas);
    });
  }

  // Difference of the deltas to the encoded box.
  void residuals(const double* variances, double* out) const {
    encode(target, prior, variances, out);
    for (int k = 0; k < 4; ++k) out[k] = deltas[k] - out[k];
  }
};

inline double box_loss(const LossInputs& inputs, int64_t image, const SelectedRow& selected) {
  const BoxRow row(inputs, image, selected);
  const RowOptions& options = inputs.options;
  if (options.box_loss != BoxLoss::kSmoothL1) {
    return iou_loss(options.box_loss, row.deltas, row.prior, row.target, options.variances);
  }
  double residual[4];
  row.residuals(options.variances, residual);
  double sum = 0;
  for (double r : residual) sum += smooth_l1(r, options.beta);
  return sum;
}

inline void box_gradient(const LossInputs& inputs, int64_t image, const SelectedRow& selected,
                         double scale, const Rows& grad_deltas) {
  const BoxRow row(inputs, image, selected);
  const RowOptions& options = inputs.options;
  double slope[4];
  if (options.box_loss != BoxLoss::kSmoothL1) {
    iou_loss_slope(options.box_loss, row.deltas, row.prior, row.target, options.variances, slope);
  } else {
    row.residuals(options.variances, slope);
    for (double& r : slope) r = smooth_l1_slope(r, options.beta);
  }
  const Level& gradient = grad_deltas.levels[selected.level_index];
  visit_dtype(inputs.deltas.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    T* out = static_cast<T*>(gradient.data) + gradient.offset(image, selected.row);
    for (int k = 0; k < 4; ++k) {
      out[k * gradient.channel_stride] = from_float<T>(static_cast<float>(slope[k] * scale));
    }
  });
}

}  // namespace ssd_fast::SSD_FAST_ISA
