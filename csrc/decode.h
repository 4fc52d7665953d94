// SPDX-License-Identifier: BSD-3-Clause
// Offsets between priors and boxes. Torch-free. The definitions, operation by operation:
// encode_boxes and decode_boxes in ssd_fast/boxes.py.
#pragma once

#include <cmath>
#include <limits>
#include <optional>
#include <stdexcept>
#include <vector>

#include "box.h"

namespace ssd_fast {

struct Variances {
  float x, y, w, h;
};

// From 2 numbers (center, size) or 4 (x, y, w, h).
inline Variances variances_of(const std::vector<double>& v) {
  if (v.size() != 2 && v.size() != 4) throw std::invalid_argument("variances: expected 2 or 4");
  const bool four = v.size() == 4;
  return {static_cast<float>(v[0]), static_cast<float>(v[four ? 1 : 0]),
          static_cast<float>(v[four ? 2 : 1]), static_cast<float>(v[four ? 3 : 1])};
}

// No clamp is a clamp at infinity.
inline float scale_limit(const std::optional<double>& max_log_scale) {
  return max_log_scale ? static_cast<float>(*max_log_scale)
                       : std::numeric_limits<float>::infinity();
}

// Writes the 4 offsets that lead from a prior to a box.
inline void encode_box(const Box& box, const Box& prior, const Variances& variances, float* out) {
  const float pw = prior.x2 - prior.x1, ph = prior.y2 - prior.y1;
  out[0] = ((box.x1 - prior.x1) + (box.x2 - prior.x2)) * 0.5f / (pw * variances.x);
  out[1] = ((box.y1 - prior.y1) + (box.y2 - prior.y2)) * 0.5f / (ph * variances.y);
  out[2] = std::log((box.x2 - box.x1) / pw) / variances.w;
  out[3] = std::log((box.y2 - box.y1) / ph) / variances.h;
}

// The box that 4 offsets lead to from a prior. NaN stays NaN.
inline Box decode_box(const float* delta, const Box& prior, const Variances& variances,
                      float max_log_scale) {
  const float pw = prior.x2 - prior.x1, ph = prior.y2 - prior.y1;
  const float cx = (delta[0] * variances.x) * pw + (prior.x1 + prior.x2) * 0.5f;
  const float cy = (delta[1] * variances.y) * ph + (prior.y1 + prior.y2) * 0.5f;
  float log_w = delta[2] * variances.w, log_h = delta[3] * variances.h;
  log_w = log_w > max_log_scale ? max_log_scale : log_w;
  log_h = log_h > max_log_scale ? max_log_scale : log_h;
  const float half_w = std::exp(log_w) * pw * 0.5f, half_h = std::exp(log_h) * ph * 0.5f;
  return {cx - half_w, cy - half_h, cx + half_w, cy + half_h};
}

}  // namespace ssd_fast
