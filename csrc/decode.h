// SPDX-License-Identifier: BSD-3-Clause
// Offsets between priors and boxes. Torch-free. The definitions, operation by operation:
// encode_boxes and decode_boxes in ssd_fast/boxes.py.
#pragma once

#include <cmath>
#include <limits>
#include <optional>
#include <stdexcept>
#include <vector>

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

// Writes the 4 offsets that lead from a prior to a box, both corners.
inline void encode_box(const float* box, const float* prior, const Variances& variances,
                       float* out) {
  const float pw = prior[2] - prior[0], ph = prior[3] - prior[1];
  out[0] = ((box[0] + box[2]) * 0.5f - (prior[0] + prior[2]) * 0.5f) / (pw * variances.x);
  out[1] = ((box[1] + box[3]) * 0.5f - (prior[1] + prior[3]) * 0.5f) / (ph * variances.y);
  out[2] = std::log((box[2] - box[0]) / pw) / variances.w;
  out[3] = std::log((box[3] - box[1]) / ph) / variances.h;
}

// Writes the corners that 4 offsets lead to from a prior. NaN stays NaN.
inline void decode_box(const float* delta, const float* prior, const Variances& variances,
                       float max_log_scale, float* out) {
  const float pw = prior[2] - prior[0], ph = prior[3] - prior[1];
  const float cx = (delta[0] * variances.x) * pw + (prior[0] + prior[2]) * 0.5f;
  const float cy = (delta[1] * variances.y) * ph + (prior[1] + prior[3]) * 0.5f;
  float log_w = delta[2] * variances.w, log_h = delta[3] * variances.h;
  log_w = log_w > max_log_scale ? max_log_scale : log_w;
  log_h = log_h > max_log_scale ? max_log_scale : log_h;
  const float half_w = std::exp(log_w) * pw * 0.5f, half_h = std::exp(log_h) * ph * 0.5f;
  out[0] = cx - half_w;
  out[1] = cy - half_h;
  out[2] = cx + half_w;
  out[3] = cy + half_h;
}

}  // namespace ssd_fast
