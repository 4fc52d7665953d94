// SPDX-License-Identifier: BSD-3-Clause
// SSD's loss and gradient for one image. Contract: ssd_fast/ops/multibox_loss.py. Torch-free.
//
// What it costs: forward reads every logit once (mining_keys.h), then a few rows an image again,
// the positives and the hard negatives, about P / 50. Backward writes zeros and these rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "assignment.h"
#include "box.h"
#include "box_losses.h"
#include "instruction_set.h"
#include "match.h"
#include "mine.h"
#include "mining_keys.h"
#include "rows.h"
#include "scratch.h"
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

struct ImageLoss {
  double box = 0;
  double classes = 0;
  int64_t positives = 0;
};

struct ForwardJob {
  LossInputs inputs;
  MatchOptions matching;
  GivenMatches given;                     // used instead of matching, if there are any
  std::optional<float> ignore_threshold;  // of a prior's share in a region to ignore
  float ratio;
  int64_t min_negatives;
  const PriorBlocks& blocks;
  const float* rough_keys;  // (B, P) if they were computed before, else null
  int32_t* code;            // (B, P), out
  ImageLoss* losses;        // (B,), out
};

struct BackwardJob {
  LossInputs inputs;
  const int32_t* code;         // (B, P)
  const double* box_scales;    // (B,)
  const double* class_scales;  // (B,)
  const Rows& grad_deltas;     // zero at first, out
  const Rows& grad_logits;
};

SSD_FAST_PER_INSTRUCTION_SET(
    // Writes the rough mining keys of cells `begin` to `end` of a level to `keys`, its row 0 first.
    void rough_keys_of_cells(const LossInputs& inputs, size_t level, int64_t image, int64_t begin,
                             int64_t end, float* keys);
    // Decides what the rows of images `begin` to `end` are, and sums their losses.
    void multibox_loss_images(const ForwardJob& job, int64_t begin, int64_t end);
    // Writes the gradients of the selected rows of images `begin` to `end`.
    void multibox_loss_backward_images(const BackwardJob& job, int64_t begin, int64_t end);)

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

// Forward and backward of one image after another; keeps its scratch memory between them.
class MultiBoxImage {
 public:
  // Decides what each row of `image` is, writes it to `code` (P,), and sums its losses.
  ImageLoss forward(const ForwardJob& job, int64_t image) {
    const LossInputs& inputs = job.inputs;
    int32_t* code = job.code + image * inputs.P;
    float* scratch = scratch_floats(job.blocks.blocks() * kBlock);
    const RowRange range = image_rows(inputs.objects.offsets, image, inputs.objects.N);
    const int64_t* labels = inputs.objects.labels + range.begin;
    softmax_.resize(inputs.logits.channels);
    matcher_.reset(job.blocks, job.matching, scratch);
    ImageLoss loss;
    const float* boxes = inputs.objects.boxes + 4 * range.begin;
    const auto has_class = [&](int64_t n) {
      return labels[n] >= 0 && labels[n] < inputs.logits.channels &&
             labels[n] != inputs.options.background;
    };
    if (job.given.any()) {
      loss.positives = take_matches(
          job.given, image * inputs.P, inputs.P, range.count,
          [&](int64_t n) { return is_valid(box_at(boxes, n)) && has_class(n); }, code);
    } else {
      loss.positives = matcher_.match(boxes, range.count, has_class, inputs.P, code);
    }
    if (job.ignore_threshold) {
      for (int64_t n = 0; n < range.count; ++n) {
        const Box region = box_at(boxes, n);
        if (labels[n] != kIgnoreLabel || !is_valid(region)) continue;
        ignore_inside(region, job.blocks, *job.ignore_threshold, inputs.P, code);
      }
    }
    const auto prepare = [&](const SelectedRow& selected) { prefetch(inputs, image, selected); };
    visit_selected(inputs, code, image, prepare, [&](const SelectedRow& selected) {
      loss.classes += class_loss(inputs, image, selected);
      loss.box += box_loss(inputs, image, selected);
    });
    loss.classes += mine(job, image, loss.positives, code, scratch);
    return loss;
  }

  // Writes the gradients of the selected rows; all others are zero already.
  void backward(const BackwardJob& job, int64_t image) {
    const LossInputs& inputs = job.inputs;
    softmax_.resize(inputs.logits.channels);
    const auto prepare = [&](const SelectedRow& selected) {
      prefetch(inputs, image, selected);
      prefetch_row(job.grad_logits.levels[selected.level_index], inputs.logits.dtype,
                   inputs.logits.channels, image, selected.row);
    };
    const int32_t* code = job.code + image * inputs.P;
    visit_selected(inputs, code, image, prepare, [&](const SelectedRow& selected) {
      load_softmax(inputs.logits, image, selected);
      const Level& level = job.grad_logits.levels[selected.level_index];
      visit_dtype(inputs.logits.dtype, [&](auto* type) {
        auto* out = static_cast<decltype(type)>(level.data);
        softmax_.write_gradient(out + level.offset(image, selected.row), level.channel_stride,
                                selected.target, inputs.options.classes, job.class_scales[image]);
      });
      if (selected.object >= 0) box_gradient(job, image, selected);
    });
  }

 private:
  // Turns the hardest of the candidates in `code` into hard negatives and returns their loss.
  // `scratch` is for P keys.
  double mine(const ForwardJob& job, int64_t image, int64_t positives, int32_t* code,
              float* scratch) {
    const LossInputs& inputs = job.inputs;
    const int64_t P = inputs.P;
    const int64_t candidates = count_equal(code, P, kBackground);
    const int64_t k = negatives_wanted(job.ratio, positives, job.min_negatives, candidates);
    if (k == 0) return 0;
    const float* keys = job.rough_keys ? job.rough_keys + image * P : scratch;
    if (!job.rough_keys) rough_keys(inputs, image, scratch);
    const auto order_of = [&](int64_t p) {
      const int64_t count = std::min(P - p, kLanes);
      const Ints kind = load_some(code + p, count, kIgnored);
      return kind == kBackground ? as_ints(load_some(keys + p, count, 0.0f)) : splat(kNoOrder);
    };
    const int32_t reached = selector_.bound(P, k, k / 32, order_of);
    const float least =
        reached > 0 ? least_rough_key(bits_to_float(reached), inputs.logits.channels) : 0.0f;
    collect(P, static_cast<int32_t>(float_to_bits(least)), order_of);
    exact_keys_.resize(static_cast<size_t>(rival_count_ + kLanes));
    exact_.compute(inputs.logits, image, inputs.options.background, rivals_.data(), rival_count_,
                   exact_keys_.data());
    const auto exact_order_of = [&](int64_t i) {
      const Ints order = mining_order(load(&exact_keys_[i]));
      return lane_numbers() < static_cast<int32_t>(rival_count_ - i) ? order : splat(kNoOrder);
    };
    double loss = 0;
    selector_.select(rival_count_, k, exact_order_of, [&](int64_t i) {
      code[rivals_[i]] = kHardNegative;
      loss += negative_loss(inputs, image, rivals_[i], exact_keys_[i]);
    });
    return loss;
  }

  // Cross-entropy of a row with the background as its target: log1p of its key.
  double negative_loss(const LossInputs& inputs, int64_t image, int64_t prior, float key) {
    constexpr float kLarge = 1e17f;  // about where the softmax shifts its exponents
    const ClassOptions& options = inputs.options.classes;
    if (key < kLarge && options.smoothing == 0) {
      return options.weight(inputs.options.background) * std::log1p(double{key});
    }
    int64_t row = prior;
    size_t l = 0;
    while (row >= inputs.logits.levels[l].rows) row -= inputs.logits.levels[l++].rows;
    return class_loss(inputs, image,
                      {&inputs.logits.levels[l], l, row, prior, -1, inputs.options.background});
  }

  double class_loss(const LossInputs& inputs, int64_t image, const SelectedRow& selected) {
    load_softmax(inputs.logits, image, selected);
    const ClassOptions& options = inputs.options.classes;
    double loss = options.weight(selected.target) * softmax_.cross_entropy();
    if (options.smoothing == 0) return loss;
    const Level& level = *selected.level;
    visit_dtype(inputs.logits.dtype, [&](auto* type) {
      const auto* data = static_cast<const std::remove_pointer_t<decltype(type)>*>(level.data);
      loss = softmax_.smoothed(loss, data + level.offset(image, selected.row), level.channel_stride,
                               selected.target, options);
    });
    return loss;
  }

  static void rough_keys(const LossInputs& inputs, int64_t image, float* keys) {
    for (size_t l = 0; l < inputs.logits.levels.size(); ++l) {
      const Level& level = inputs.logits.levels[l];
      rough_keys_of_cells(inputs, l, image, 0, level.cells(), keys);
      keys += level.rows;
    }
  }

  // The candidates whose rough key reaches `least` or is doubtful.
  template <typename OrderOf>
  void collect(int64_t P, int32_t least, const OrderOf& order_of) {
    rival_count_ = 0;
    Ints prior = lane_numbers();
    for (int64_t p = 0; p < P; p += kLanes, prior += static_cast<int32_t>(kLanes)) {
      const Ints order = order_of(p);
      const Ints rival = (order >= least) | ((order < 0) & (order != kNoOrder));
      make_room(rivals_, rival_count_);
      rival_count_ += compress(rival, prior, rivals_.data() + rival_count_);
    }
  }

  static int64_t count_equal(const int32_t* code, int64_t P, int32_t value) {
    Ints count{};
    for (int64_t p = 0; p < P; p += kLanes) {
      count -= load_some(code + p, P - p, ~value) == value;
    }
    return sum_of_lanes(count);
  }

  static void prefetch(const LossInputs& inputs, int64_t image, const SelectedRow& selected) {
    prefetch_row(*selected.level, inputs.logits.dtype, inputs.logits.channels, image, selected.row);
    if (selected.object < 0) return;
    prefetch_row(inputs.deltas.levels[selected.level_index], inputs.deltas.dtype, 4, image,
                 selected.row);
  }

  void load_softmax(const Rows& logits, int64_t image, const SelectedRow& selected) {
    const Level& level = *selected.level;
    visit_dtype(logits.dtype, [&](auto* type) {
      const auto* data = static_cast<const std::remove_pointer_t<decltype(type)>*>(level.data);
      softmax_.load_logits(data + level.offset(image, selected.row), level.channel_stride,
                           selected.target);
    });
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

  static double box_loss(const LossInputs& inputs, int64_t image, const SelectedRow& selected) {
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

  static void box_gradient(const BackwardJob& job, int64_t image, const SelectedRow& selected) {
    const BoxRow row(job.inputs, image, selected);
    const RowOptions& options = job.inputs.options;
    double slope[4];
    if (options.box_loss != BoxLoss::kSmoothL1) {
      iou_loss_slope(options.box_loss, row.deltas, row.prior, row.target, options.variances, slope);
    } else {
      row.residuals(options.variances, slope);
      for (double& r : slope) r = smooth_l1_slope(r, options.beta);
    }
    const Level& gradient = job.grad_deltas.levels[selected.level_index];
    visit_dtype(job.inputs.deltas.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      T* out = static_cast<T*>(gradient.data) + gradient.offset(image, selected.row);
      for (int k = 0; k < 4; ++k) {
        out[k * gradient.channel_stride] =
            from_float<T>(static_cast<float>(slope[k] * job.box_scales[image]));
      }
    });
  }

  Matcher matcher_;
  Selector selector_;
  SoftmaxRow softmax_;
  ExactKeys exact_;
  std::vector<int32_t> rivals_;  // priors that may be hard negatives, and room behind them
  std::vector<float> exact_keys_;
  int64_t rival_count_ = 0;
};

}  // namespace ssd_fast::SSD_FAST_ISA
