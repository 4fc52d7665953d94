// SPDX-License-Identifier: BSD-3-Clause
// Losses of a decoded box against its object's, and their gradient. Contract:
// ssd_fast/box_losses.py. Torch-free.
//
// One formula serves both: with numbers it gives the loss, with dual numbers the loss and its
// derivatives by the four offsets. Only positives come here, a few dozen an image: float64.
#pragma once

#include <cmath>
#include <cstdint>

#include "box.h"

namespace ssd_fast {

constexpr double kMaxLogScale = 4.135166556742356;  // log(1000 / 16)

enum class BoxLoss : int64_t { kSmoothL1 = 0, kGiou = 1, kDiou = 2, kCiou = 3 };

// A number and its derivatives by the four offsets of a row.
struct Dual {
  double value;
  double slope[4];

  Dual(double constant) : value(constant), slope{} {}  // NOLINT: a constant is a number
  Dual(double variable, int which) : value(variable), slope{} { slope[which] = 1; }
};

inline double value_of(double x) { return x; }
inline double value_of(const Dual& x) { return x.value; }

// f(x) by the chain rule, where f has the value `value` and the derivative `slope`.
inline Dual chain(const Dual& x, double value, double slope) {
  Dual result(value);
  for (int k = 0; k < 4; ++k) result.slope[k] = slope * x.slope[k];
  return result;
}

inline Dual combine(const Dual& a, double by_a, const Dual& b, double by_b, double value) {
  Dual result(value);
  for (int k = 0; k < 4; ++k) result.slope[k] = by_a * a.slope[k] + by_b * b.slope[k];
  return result;
}

inline Dual operator+(const Dual& a, const Dual& b) {
  return combine(a, 1, b, 1, a.value + b.value);
}
inline Dual operator-(const Dual& a, const Dual& b) {
  return combine(a, 1, b, -1, a.value - b.value);
}
inline Dual operator*(const Dual& a, const Dual& b) {
  return combine(a, b.value, b, a.value, a.value * b.value);
}
inline Dual operator/(const Dual& a, const Dual& b) {
  const double quotient = a.value / b.value;
  return combine(a, 1 / b.value, b, -quotient / b.value, quotient);
}

// x times a constant, which has no slope: as a product of duals an infinite x would make it NaN.
inline double scaled(double x, double factor) { return x * factor; }
inline Dual scaled(const Dual& x, double factor) { return chain(x, x.value * factor, factor); }

inline Dual exp(const Dual& x) {
  const double value = std::exp(x.value);
  return chain(x, value, value);
}
inline Dual atan(const Dual& x) {
  return chain(x, std::atan(x.value), 1 / (1 + x.value * x.value));
}

// Of equals the mean, so that each has half of the slope, as in PyTorch; NaN stays NaN.
template <typename Number>
Number greater(const Number& a, const Number& b) {
  if (value_of(a) > value_of(b)) return a;
  if (value_of(b) > value_of(a)) return b;
  return (a + b) * Number(0.5);
}

template <typename Number>
Number lesser(const Number& a, const Number& b) {
  if (value_of(a) < value_of(b)) return a;
  if (value_of(b) < value_of(a)) return b;
  return (a + b) * Number(0.5);
}

// Corners.
template <typename Number>
struct Corners {
  Number x1, y1, x2, y2;
};

// decode_boxes in ssd_fast/boxes.py: the scale is clamped, with no slope where it is.
template <typename Number>
Corners<Number> decoded(const Number* deltas, const Box& prior, const double* variances) {
  const double width = double{prior.x2} - prior.x1, height = double{prior.y2} - prior.y1;
  const Number cx = deltas[0] * Number(variances[0]) * Number(width) +
                    Number((double{prior.x1} + prior.x2) * 0.5);
  const Number cy = deltas[1] * Number(variances[1]) * Number(height) +
                    Number((double{prior.y1} + prior.y2) * 0.5);
  const auto half = [&](const Number& delta, double variance, double side) {
    const Number scale = scaled(delta, variance);
    const Number bounded = value_of(scale) > kMaxLogScale ? Number(kMaxLogScale) : scale;
    using std::exp;
    return exp(bounded) * Number(side * 0.5);
  };
  const Number half_width = half(deltas[2], variances[2], width);
  const Number half_height = half(deltas[3], variances[3], height);
  return {cx - half_width, cy - half_height, cx + half_width, cy + half_height};
}

// 4 / pi^2 times the squared difference of the angles of the diagonals.
template <typename Number>
Number aspect_difference(const Number& width, const Number& height, const Box& target) {
  constexpr double kFourOverPiSquared = 0.4052847345693511;
  const double angle = std::atan((double{target.x2} - target.x1) / (double{target.y2} - target.y1));
  using std::atan;
  const Number difference = Number(angle) - atan(width / height);
  return Number(kFourOverPiSquared) * difference * difference;
}

// The loss of a decoded box; `kind` is none of the offsets' own.
template <typename Number>
Number iou_loss(BoxLoss kind, const Corners<Number>& box, const Box& target) {
  const Number epsilon(1e-7), one(1);
  const Number x1(target.x1), y1(target.y1), x2(target.x2), y2(target.y2);
  const Number width = box.x2 - box.x1, height = box.y2 - box.y1;
  const Number shared_width = lesser(box.x2, x2) - greater(box.x1, x1);
  const Number shared_height = lesser(box.y2, y2) - greater(box.y1, y1);
  const bool overlap = value_of(shared_width) > 0 && value_of(shared_height) > 0;
  const Number inter = overlap ? shared_width * shared_height : Number(0);
  const Number area_of_union = width * height + (x2 - x1) * (y2 - y1) - inter;
  const Number iou = inter / (area_of_union + epsilon);
  // The smallest box around both.
  const Number outer_width = greater(box.x2, x2) - lesser(box.x1, x1);
  const Number outer_height = greater(box.y2, y2) - lesser(box.y1, y1);
  if (kind == BoxLoss::kGiou) {
    const Number outer = outer_width * outer_height;
    return one - (iou - (outer - area_of_union) / (outer + epsilon));
  }
  const Number dx = (box.x1 + box.x2 - x1 - x2) * Number(0.5);
  const Number dy = (box.y1 + box.y2 - y1 - y2) * Number(0.5);
  const Number diagonal = outer_width * outer_width + outer_height * outer_height + epsilon;
  const Number distance = one - iou + (dx * dx + dy * dy) / diagonal;
  if (kind == BoxLoss::kDiou) return distance;
  const Number aspect = aspect_difference(width, height, target);
  // The trade-off carries no slope.
  const double v = value_of(aspect);
  return distance + Number(v / (1 - value_of(iou) + v + 1e-7)) * aspect;
}

inline double iou_loss(BoxLoss kind, const float* deltas, const Box& prior, const Box& target,
                       const double* variances) {
  const double offsets[4] = {deltas[0], deltas[1], deltas[2], deltas[3]};
  return iou_loss(kind, decoded(offsets, prior, variances), target);
}

// Writes the derivatives by the deltas. None passes the clamp of a scale where it clamps or is NaN,
// as in PyTorch; a product with the rest's NaN or infinity would.
inline void iou_loss_slope(BoxLoss kind, const float* deltas, const Box& prior, const Box& target,
                           const double* variances, double* slope) {
  const Dual offsets[4] = {{deltas[0], 0}, {deltas[1], 1}, {deltas[2], 2}, {deltas[3], 3}};
  const Dual loss = iou_loss(kind, decoded(offsets, prior, variances), target);
  for (int k = 0; k < 4; ++k) {
    const bool passes = k < 2 || deltas[k] * variances[k] <= kMaxLogScale;
    slope[k] = passes ? loss.slope[k] : 0;
  }
}

}  // namespace ssd_fast
