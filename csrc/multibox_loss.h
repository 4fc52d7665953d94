// SPDX-License-Identifier: BSD-3-Clause
// SSD's loss and gradient for one image. Contract: ssd_fast/ops/multibox_loss.py. Torch-free.
//
// What it costs: forward reads every logit once (mining_keys.h), then a few rows an image again,
// the positives and the hard negatives, about P / 50. Backward writes zeros and these rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "box_loss_batch.h"
#include "doubles.h"
#include "exponential_sums.h"
#include "gradient_rows.h"
#include "instruction_set.h"
#include "loss_rows.h"
#include "match.h"
#include "mine.h"
#include "mining_keys.h"
#include "rows.h"
#include "scratch.h"
#include "softmax_row.h"
#include "touched_cells.h"

namespace ssd_fast {

struct ImageLoss {
  double box = 0;
  double classes = 0;
  int64_t positives = 0;
};

struct ForwardJob {
  LossInputs inputs;
  Assignment assignment;
  float ratio;
  int64_t min_negatives;
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
  const Rows& grad_logits;     // the same, or, if `streams`, dense and anything at first
  bool streams;
  const TouchedCells* touched;  // the cells whose rows both consist of, as one image; null for all
};

SSD_FAST_PER_INSTRUCTION_SET(
    // Writes the rough mining keys of cells `begin` to `end` of a level to `keys`, its row 0 first.
    void rough_keys_of_cells(const LossInputs& inputs, size_t level, int64_t image, int64_t begin,
                             int64_t end, float* keys);
    // Decides what the rows of images `begin` to `end` are, and sums their losses.
    void multibox_loss_images(const ForwardJob& job, int64_t begin, int64_t end);
    // Writes the gradients of the selected rows of images `begin` to `end`.
    void multibox_loss_backward_images(const BackwardJob& job, int64_t begin, int64_t end);)

}  // namespace ssd_fast

namespace ssd_fast::SSD_FAST_ISA {

// Forward and backward of one image after another; keeps its scratch memory between them.
class MultiBoxImage {
 public:
  // Decides what each row of `image` is, writes it to `code` (P,), and sums its losses.
  ImageLoss forward(const ForwardJob& job, int64_t image) {
    const LossInputs& inputs = job.inputs;
    int32_t* code = job.code + image * inputs.P;
    float* scratch = scratch_floats(job.assignment.blocks.blocks() * kBlock);
    softmax_.resize(inputs.logits.channels);
    ImageLoss loss;
    loss.positives = assign_rows(inputs, job.assignment, image, matcher_, scratch, code);
    priors_.clear();
    targets_.clear();
    boxes_.clear();
    entropies_.clear();
    const auto prepare = [&](const SelectedRow& selected) {
      prefetch_row(inputs.deltas.levels[selected.level_index], inputs.deltas.dtype, 4, image,
                   selected.row);
    };
    visit_selected(inputs, code, image, prepare, [&](const SelectedRow& selected) {
      priors_.push_back(static_cast<int32_t>(selected.prior));
      targets_.push_back(static_cast<int32_t>(selected.target));
      if (boxes_.add(inputs, image, selected)) loss.box += boxes_.take_losses(inputs.options);
    });
    loss.box += boxes_.take_losses(inputs.options);
    loss.classes += classify_positives(inputs, image);
    loss.classes += mine(job, image, loss.positives, code, scratch);
    loss.classes += entropies_.sum();
    return loss;
  }

  // Writes the gradients of the selected rows, and the zeros of all others if the job streams.
  void backward(const BackwardJob& job, int64_t image) {
    const LossInputs& inputs = job.inputs;
    softmax_.resize(inputs.logits.channels);
    boxes_.clear();
    const int64_t to_image = job.touched ? 0 : image;
    if (job.touched) touched_rows_.open(*job.touched, image);
    gradient_.open(job.grad_logits, to_image, job.streams);
    const auto prepare = [&](const SelectedRow& selected) {
      prefetch(inputs, image, selected);
      if (job.streams || job.touched) return;
      prefetch_row(job.grad_logits.levels[selected.level_index], inputs.logits.dtype,
                   inputs.logits.channels, image, selected.row);
    };
    const int32_t* code = job.code + image * inputs.P;
    visit_selected(inputs, code, image, prepare, [&](const SelectedRow& selected) {
      load_softmax(inputs.logits, image, selected);
      const auto fill = [&](auto* out, int64_t channel_stride) {
        softmax_.write_gradient(out, channel_stride, selected.target, inputs.options.classes,
                                job.class_scales[image]);
      };
      const int64_t to_row =
          job.touched ? touched_rows_.find(*selected.level, selected.level_index, selected.row)
                      : selected.row;
      gradient_.write(selected.level_index, to_row, fill);
      if (selected.object >= 0 && boxes_.add(inputs, image, selected, to_row)) {
        boxes_.take_gradients(inputs.options, to_image, job.box_scales[image], job.grad_deltas);
      }
    });
    gradient_.close();
    boxes_.take_gradients(inputs.options, to_image, job.box_scales[image], job.grad_deltas);
  }

 private:
  // Returns the loss of the classes of `priors_` but for what goes to `entropies_`.
  double classify_positives(const LossInputs& inputs, int64_t image) {
    const auto count = static_cast<int64_t>(priors_.size());
    sums_.resize(priors_.size());
    exponentials_.compute(
        inputs.logits, image, priors_.data(), count, [&](int64_t i) { return targets_[i]; },
        sums_.data());
    double loss = 0;
    for (int64_t i = 0; i < count; ++i) {
      loss += class_loss(inputs, image, priors_[i], targets_[i], sums_[i]);
    }
    return loss;
  }

  // Turns the hardest of the candidates in `code` into hard negatives and returns their loss but
  // for what goes to `entropies_`. `scratch` is for P keys.
  double mine(const ForwardJob& job, int64_t image, int64_t positives, int32_t* code,
              float* scratch) {
    const LossInputs& inputs = job.inputs;
    const int64_t P = inputs.P;
    const int64_t candidates = count_equal(code, P, kBackground);
    const int64_t k = negatives_wanted(job.ratio, positives, job.min_negatives, candidates);
    if (k == 0) return 0;
    const float* keys = job.rough_keys ? job.rough_keys + image * P : scratch;
    if (!job.rough_keys) rough_keys(inputs, image, scratch);
    list_rivals(P, k, code, keys, inputs.logits.channels);
    const int32_t* rivals = rivals_.places();
    const int64_t count = rivals_.count();
    const auto background = static_cast<int32_t>(inputs.options.background);
    sums_.resize(static_cast<size_t>(count + kLanes));
    exponentials_.compute(
        inputs.logits, image, rivals, count, [&](int64_t) { return background; }, sums_.data());
    double loss = 0;
    rivals_.select_listed(k, sums_.data(), [&](int64_t i) {
      code[rivals[i]] = kHardNegative;
      loss += class_loss(inputs, image, rivals[i], background, sums_[i]);
    });
    return loss;
  }

  // Lists the candidates that can be among the k hardest by their rough keys, or whose rough key is
  // doubtful.
  void list_rivals(int64_t P, int64_t k, const int32_t* code, const float* keys, int64_t classes) {
    const auto order_of = [code, keys](int64_t p, int64_t count) {
      const Ints kind = load_some(code + p, count, kIgnored);
      return kind == kBackground ? as_ints(load_some(keys + p, count, 0.0f)) : splat(kNoOrder);
    };
    const auto doubtful = [](Ints order) { return (order < 0) & (order != kNoOrder); };
    const int32_t reached = rivals_.bound(P, k, k / 32, order_of, doubtful);
    const float least = reached > 0 ? least_rough_key(bits_to_float(reached), classes) : 0.0f;
    rivals_.list_reaching(P, static_cast<int32_t>(float_to_bits(least)), order_of, doubtful);
  }

  // The loss of a row's class, whose cross-entropy is log1p of `sum` where that has its digits:
  // then it goes to `entropies_`, and 0 is returned.
  double class_loss(const LossInputs& inputs, int64_t image, int64_t prior, int64_t target,
                    float sum) {
    constexpr float kLarge = 1e17f;  // about where the softmax shifts its exponents
    const ClassOptions& options = inputs.options.classes;
    if (sum < kLarge && options.smoothing == 0) {
      entropies_.add(options.weight(target), sum);
      return 0;
    }
    const SelectedRow selected = selected_row(inputs.logits, prior, target);
    load_softmax(inputs.logits, image, selected);
    double loss = options.weight(target) * softmax_.cross_entropy();
    if (options.smoothing == 0) return loss;
    const Level& level = *selected.level;
    visit_dtype(inputs.logits.dtype, [&](auto* type) {
      const auto* data = static_cast<const std::remove_pointer_t<decltype(type)>*>(level.data);
      loss = softmax_.smoothed(loss, data + level.offset(image, selected.row), level.channel_stride,
                               target, options);
    });
    return loss;
  }

  static SelectedRow selected_row(const Rows& logits, int64_t prior, int64_t target) {
    int64_t row = prior;
    size_t l = 0;
    while (row >= logits.levels[l].rows) row -= logits.levels[l++].rows;
    return {&logits.levels[l], l, row, prior, -1, target};
  }

  static void rough_keys(const LossInputs& inputs, int64_t image, float* keys) {
    for (size_t l = 0; l < inputs.logits.levels.size(); ++l) {
      const Level& level = inputs.logits.levels[l];
      rough_keys_of_cells(inputs, l, image, 0, level.cells(), keys);
      keys += level.rows;
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

  Matcher matcher_;
  Selector rivals_;  // by rough keys, then by exact ones
  SoftmaxRow softmax_;
  GradientRows gradient_;
  TouchedRows touched_rows_;
  ExponentialSums exponentials_;
  Log1pSum entropies_;
  BoxLossBatch boxes_;
  std::vector<int32_t> priors_, targets_;  // of the positives
  std::vector<float> sums_;                // of the positives, then of the rivals
};

}  // namespace ssd_fast::SSD_FAST_ISA
