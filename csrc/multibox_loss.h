// SPDX-License-Identifier: BSD-3-Clause
// SSD's loss and gradient for one image. Contract: ssd_fast/ops/multibox_loss.py. Torch-free.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "box.h"
#include "match.h"
#include "mine.h"
#include "rows.h"
#include "simd.h"

namespace ssd_fast {

enum class Normalizer : int64_t { kPositives = 0, kImage = 1, kNone = 2 };

// The objects of a batch; image i owns rows offsets[i] to offsets[i + 1].
struct Objects {
  const float* boxes;      // (N, 4)
  const int64_t* labels;   // (N,)
  const int64_t* offsets;  // (B + 1,)
  int64_t N;
};

// What forward and backward need of the options.
struct RowOptions {
  double beta;
  double variances[4];
  int64_t background;
};

struct ForwardOptions {
  MatchOptions matching;
  float ratio;
  int64_t min_negatives;
  RowOptions rows;
};

struct ImageLoss {
  double box = 0;
  double classes = 0;
  int64_t positives = 0;
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

// The mining key of each row of a level: the sum over c != background of exp(x_c - x_background).
// Sixteen rows fill the lanes, so the sum of a row is sequential on every machine.
template <typename T>
void background_keys(const Level& level, int64_t image, int64_t classes, int64_t background,
                     float* keys) {
  const T* data = static_cast<const T*>(level.data);
  std::vector<float> block(static_cast<size_t>(classes * kLanes));
  RowCursor cursor(level, image);
  for (int64_t row = 0; row < level.rows; row += kLanes) {
    const int64_t count = std::min(kLanes, level.rows - row);
    for (int64_t lane = 0; lane < count; ++lane) {
      const T* logits = data + cursor.next();
      for (int64_t c = 0; c < classes; ++c) {
        block[c * kLanes + lane] = to_float(logits[c * level.channel_stride]);
      }
    }
    const Floats reference = load(&block[background * kLanes]);
    Floats sum{};
    for (int64_t c = 0; c < classes; ++c) {
      if (c != background) sum += exp(load(&block[c * kLanes]) - reference);
    }
    float sums[kLanes];
    store(sums, sum);
    std::copy(sums, sums + count, keys + row);
  }
}

// Exponentials of one row relative to its target: ratios[c] = exp(x_c - x_target - shift), 0 for
// the target itself. The shift is 0 as long as nothing overflows: small losses keep their digits.
class SoftmaxRow {
 public:
  explicit SoftmaxRow(int64_t classes)
      : classes_(classes), ratios_(static_cast<size_t>((classes + kLanes - 1) / kLanes * kLanes)) {}

  template <typename T>
  void load_logits(const T* logits, int64_t channel_stride, int64_t target) {
    constexpr float kLarge = 80.0f;
    constexpr float kNothing = -std::numeric_limits<float>::infinity();
    const float reference = to_float(logits[target * channel_stride]);
    float largest = 0;
    for (int64_t c = 0; c < classes_; ++c) {
      const float difference = to_float(logits[c * channel_stride]) - reference;
      ratios_[c] = c == target ? kNothing : difference;
      if (c != target && difference > largest) largest = difference;
    }
    std::fill(ratios_.begin() + classes_, ratios_.end(), kNothing);
    shift_ = largest > kLarge ? largest : 0;
    others_ = 0;
    for (size_t c = 0; c < ratios_.size(); c += kLanes) {
      store(&ratios_[c], exp(load(&ratios_[c]) - static_cast<float>(shift_)));
    }
    for (int64_t c = 0; c < classes_; ++c) others_ += ratios_[c];
  }

  double cross_entropy() const {
    if (shift_ == 0) return std::log1p(others_);
    if (std::isinf(shift_)) return shift_;
    return shift_ + std::log(others_ + std::exp(-shift_));
  }

  // softmax - one_hot, times `scale`. The target's entry comes from the others: 1 - p would cancel.
  template <typename T>
  void write_gradient(T* gradient, int64_t channel_stride, int64_t target, double scale) const {
    const double factor = scale / (others_ + std::exp(-shift_));
    for (int64_t c = 0; c < classes_; ++c) {
      const double value = c == target ? -others_ : static_cast<double>(ratios_[c]);
      gradient[c * channel_stride] = from_float<T>(static_cast<float>(value * factor));
    }
  }

 private:
  int64_t classes_;
  std::vector<float> ratios_;
  double shift_ = 0;
  double others_ = 0;
};

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

// A selected row: the object it is matched to, or no object for a mined negative.
struct SelectedRow {
  int64_t prior;
  int64_t object;  // row of boxes and labels; -1 for a mined negative
  int64_t target;  // class
};

// Calls visit(level index, row in the level, SelectedRow) for the selected rows of one image, in
// prior order. A code that fits no object, which only targets changed since can give, is passed
// over.
template <typename Visit>
void visit_selected(const int32_t* code, const Rows& rows, const Objects& objects, int64_t image,
                    const RowOptions& options, const Visit& visit) {
  const RowRange range = image_rows(objects.offsets, image, objects.N);
  int64_t first = 0;
  for (size_t l = 0; l < rows.levels.size(); ++l) {
    const int64_t count = rows.levels[l].rows;
    for (int64_t row = 0; row < count; ++row) {
      const int32_t value = code[first + row];
      if (value == kHardNegative) {
        visit(l, row, SelectedRow{first + row, -1, options.background});
      } else if (value >= 0 && value < range.count) {
        const int64_t object = range.begin + value;
        const int64_t target = objects.labels[object];
        if (target >= 0 && target < rows.channels) {
          visit(l, row, SelectedRow{first + row, object, target});
        }
      }
    }
    first += count;
  }
}

inline int64_t count_rows(const Rows& rows) {
  int64_t total = 0;
  for (const Level& level : rows.levels) total += level.rows;
  return total;
}

// Forward and backward of one image after another; keeps its scratch memory between them.
class MultiBoxImage {
 public:
  MultiBoxImage(const Rows& deltas, const Rows& logits, const float* priors, const Objects& objects,
                const RowOptions& options)
      : deltas_(deltas),
        logits_(logits),
        priors_(priors),
        objects_(objects),
        options_(options),
        softmax_(logits.channels) {}

  // Decides what each row of `image` is, writes it to `code` (P,), and sums its losses.
  ImageLoss forward(int64_t image, const ForwardOptions& options, Matcher& matcher, int32_t* code) {
    ImageLoss loss;
    const RowRange range = image_rows(objects_.offsets, image, objects_.N);
    const int64_t* labels = objects_.labels + range.begin;
    loss.positives = matcher.match(
        objects_.boxes + 4 * range.begin, range.count,
        [&](int64_t n) {
          return labels[n] >= 0 && labels[n] < logits_.channels && labels[n] != options_.background;
        },
        code);
    mine(image, options, loss.positives, code);
    visit_selected(code, logits_, objects_, image, options_,
                   [&](size_t l, int64_t row, const SelectedRow& selected) {
                     load_softmax(l, image, row, selected.target);
                     loss.classes += softmax_.cross_entropy();
                     if (selected.object >= 0) loss.box += box_loss(l, image, row, selected);
                   });
    return loss;
  }

  // Writes the gradients of the selected rows; all others are zero already.
  void backward(int64_t image, const int32_t* code, double box_scale, double class_scale,
                const Rows& grad_deltas, const Rows& grad_logits) {
    visit_selected(code, logits_, objects_, image, options_,
                   [&](size_t l, int64_t row, const SelectedRow& selected) {
                     load_softmax(l, image, row, selected.target);
                     const Level& level = grad_logits.levels[l];
                     visit_dtype(logits_.dtype, [&](auto* type) {
                       auto* out = static_cast<decltype(type)>(level.data);
                       softmax_.write_gradient(out + level.offset(image, row), level.channel_stride,
                                               selected.target, class_scale);
                     });
                     if (selected.object >= 0) {
                       box_gradient(l, image, row, selected, box_scale, grad_deltas.levels[l]);
                     }
                   });
  }

 private:
  void mine(int64_t image, const ForwardOptions& options, int64_t positives, int32_t* code) {
    const int64_t P = count_rows(logits_);
    const int64_t candidates = std::count(code, code + P, kBackground);
    const int64_t k = negatives_wanted(options.ratio, positives, options.min_negatives, candidates);
    if (k == 0) return;
    keys_.resize(static_cast<size_t>(P));
    float* keys = keys_.data();
    for (const Level& level : logits_.levels) {
      visit_dtype(logits_.dtype, [&](auto* type) {
        background_keys<std::remove_pointer_t<decltype(type)>>(level, image, logits_.channels,
                                                               options_.background, keys);
      });
      keys += level.rows;
    }
    miner_.select(keys_.data(), code, P, k, [code](int64_t p) { code[p] = kHardNegative; });
  }

  void load_softmax(size_t l, int64_t image, int64_t row, int64_t target) {
    const Level& level = logits_.levels[l];
    visit_dtype(logits_.dtype, [&](auto* type) {
      const auto* data = static_cast<const std::remove_pointer_t<decltype(type)>*>(level.data);
      softmax_.load_logits(data + level.offset(image, row), level.channel_stride, target);
    });
  }

  // Difference of a row's deltas to the box it is matched to.
  void residuals(size_t l, int64_t image, int64_t row, const SelectedRow& selected,
                 double* out) const {
    const Level& level = deltas_.levels[l];
    float deltas[4];
    visit_dtype(deltas_.dtype, [&](auto* type) {
      const auto* data = static_cast<const std::remove_pointer_t<decltype(type)>*>(level.data);
      load_row(data + level.offset(image, row), level.channel_stride, 4, deltas);
    });
    encode(box_at(objects_.boxes, selected.object), box_at(priors_, selected.prior),
           options_.variances, out);
    for (int k = 0; k < 4; ++k) out[k] = deltas[k] - out[k];
  }

  double box_loss(size_t l, int64_t image, int64_t row, const SelectedRow& selected) const {
    double residual[4];
    residuals(l, image, row, selected, residual);
    double sum = 0;
    for (double r : residual) sum += smooth_l1(r, options_.beta);
    return sum;
  }

  void box_gradient(size_t l, int64_t image, int64_t row, const SelectedRow& selected, double scale,
                    const Level& gradient) const {
    double residual[4];
    residuals(l, image, row, selected, residual);
    visit_dtype(deltas_.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      T* out = static_cast<T*>(gradient.data) + gradient.offset(image, row);
      for (int k = 0; k < 4; ++k) {
        const double slope = smooth_l1_slope(residual[k], options_.beta);
        out[k * gradient.channel_stride] = from_float<T>(static_cast<float>(slope * scale));
      }
    });
  }

  const Rows& deltas_;
  const Rows& logits_;
  const float* priors_;
  const Objects objects_;
  const RowOptions options_;
  SoftmaxRow softmax_;
  Miner miner_;
  std::vector<float> keys_;
};

}  // namespace ssd_fast
