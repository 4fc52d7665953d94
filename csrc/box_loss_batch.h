// SPDX-License-Identifier: BSD-3-Clause
// The box losses of positives and their gradients, many rows at a time. Contract:
// ssd_fast/ops/_loss_reference.py. Torch-free.
#pragma once

#include <cstdint>
#include <type_traits>

#include "box.h"
#include "box_losses.h"
#include "doubles.h"
#include "loss_rows.h"
#include "rows.h"

namespace ssd_fast::SSD_FAST_ISA {

inline Doubles smooth_l1(Doubles residual, double beta) {
  const Doubles size = residual < 0.0 ? -residual : residual;
  return size < beta ? residual * residual * 0.5 / beta : size - 0.5 * beta;
}

inline Doubles smooth_l1_slope(Doubles residual, double beta) {
  const Doubles one = Doubles{} + 1.0;
  if (beta > 0) {
    const Doubles slope = residual / beta;
    return slope > one ? one : (slope < -one ? -one : slope);
  }
  return residual > 0.0 ? one : (residual < 0.0 ? -one : Doubles{});
}

// Collects positives of one image. When `add` says that it is full, what is in it must be taken,
// and once more at the end.
class BoxLossBatch {
 public:
  void clear() { count_ = 0; }

  // Adds a positive row, whose gradient belongs into row `to_row` of the level's gradients; returns
  // whether there is no room for another.
  bool add(const LossInputs& inputs, int64_t image, const SelectedRow& selected) {
    return add(inputs, image, selected, selected.row);
  }
  bool add(const LossInputs& inputs, int64_t image, const SelectedRow& selected, int64_t to_row) {
    float deltas[4];
    const Level& level = inputs.deltas.levels[selected.level_index];
    visit_dtype(inputs.deltas.dtype, [&](auto* type) {
      const auto* data = static_cast<const std::remove_pointer_t<decltype(type)>*>(level.data);
      load_row(data + level.offset(image, selected.row), level.channel_stride, 4, deltas);
    });
    const float* prior = inputs.priors + 4 * selected.prior;
    const float* target = inputs.objects.boxes + 4 * selected.object;
    for (int k = 0; k < 4; ++k) {
      deltas_[k][count_] = deltas[k];
      priors_[k][count_] = prior[k];
      targets_[k][count_] = target[k];
    }
    rows_[count_] = {selected.level_index, to_row};
    return ++count_ == kRoom;
  }

  // Takes the rows out and returns the sum of their losses.
  double take_losses(const RowOptions& options) {
    double losses[kRoom];
    if (options.box_loss == BoxLoss::kSmoothL1) {
      for (int64_t i = 0; i < count_; i += kWide) {
        Doubles residuals[4];
        find_residuals(i, options.variances, residuals);
        Doubles sum{};
        for (const Doubles& residual : residuals) sum += smooth_l1(residual, options.beta);
        store(losses + i, sum);
      }
    } else {
      for (int64_t i = 0; i < count_; ++i) {
        const Row row = row_at(i);
        losses[i] =
            iou_loss(options.box_loss, row.deltas, row.prior, row.target, options.variances);
      }
    }
    double sum = 0;
    for (int64_t i = 0; i < count_; ++i) sum += losses[i];
    count_ = 0;
    return sum;
  }

  // Takes the rows out and writes the gradients of their losses times `scale`, those of an image.
  void take_gradients(const RowOptions& options, int64_t image, double scale,
                      const Rows& grad_deltas) {
    double slopes[4][kRoom];
    if (options.box_loss == BoxLoss::kSmoothL1) {
      for (int64_t i = 0; i < count_; i += kWide) {
        Doubles residuals[4];
        find_residuals(i, options.variances, residuals);
        for (int k = 0; k < 4; ++k) {
          store(slopes[k] + i, smooth_l1_slope(residuals[k], options.beta));
        }
      }
    } else {
      for (int64_t i = 0; i < count_; ++i) {
        const Row row = row_at(i);
        double slope[4];
        iou_loss_slope(options.box_loss, row.deltas, row.prior, row.target, options.variances,
                       slope);
        for (int k = 0; k < 4; ++k) slopes[k][i] = slope[k];
      }
    }
    for (int64_t i = 0; i < count_; ++i) {
      const Level& gradient = grad_deltas.levels[rows_[i].level];
      visit_dtype(grad_deltas.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        T* out = static_cast<T*>(gradient.data) + gradient.offset(image, rows_[i].row);
        for (int k = 0; k < 4; ++k) {
          out[k * gradient.channel_stride] =
              from_float<T>(static_cast<float>(slopes[k][i] * scale));
        }
      });
    }
    count_ = 0;
  }

 private:
  static constexpr int64_t kRoom = 32;  // so many that one vector need not wait for another

  struct Place {
    size_t level;
    int64_t row;  // of the level's gradients
  };

  struct Row {
    float deltas[4];
    Box prior, target;
  };

  // The deltas of rows `i` and on less the offsets that lead from the priors to the boxes, as
  // encode_boxes in ssd_fast/boxes.py.
  void find_residuals(int64_t i, const double* variances, Doubles* out) const {
    const auto prior = [&](int k) { return load(priors_[k] + i); };
    const auto target = [&](int k) { return load(targets_[k] + i); };
    for (int k = 0; k < 2; ++k) {
      const Doubles size = prior(k + 2) - prior(k);
      const Doubles shift = ((target(k) - prior(k)) + (target(k + 2) - prior(k + 2))) * 0.5;
      out[k] = load(deltas_[k] + i) - shift / (size * variances[k]);
      const Doubles growth = (target(k + 2) - target(k)) / size;
      out[k + 2] = load(deltas_[k + 2] + i) - log(growth) / variances[k + 2];
    }
  }

  Row row_at(int64_t i) const {
    const auto box = [i](const double (&from)[4][kRoom]) -> Box {
      return {static_cast<float>(from[0][i]), static_cast<float>(from[1][i]),
              static_cast<float>(from[2][i]), static_cast<float>(from[3][i])};
    };
    Row row{{}, box(priors_), box(targets_)};
    for (int k = 0; k < 4; ++k) row.deltas[k] = static_cast<float>(deltas_[k][i]);
    return row;
  }

  double deltas_[4][kRoom] = {};
  double priors_[4][kRoom] = {};
  double targets_[4][kRoom] = {};
  Place rows_[kRoom];
  int64_t count_ = 0;
};

}  // namespace ssd_fast::SSD_FAST_ISA
