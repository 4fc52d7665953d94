// SPDX-License-Identifier: BSD-3-Clause
// Offsets between priors and boxes, a vector of rows at a time. Torch-free. The definitions,
// operation by operation: encode_boxes and decode_boxes in ssd_fast/boxes.py.
//
// What it costs: 48 bytes a row, and two exponentials of twenty operations a vector, or two
// logarithms, in doubles, of twice thirty.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <vector>

#include "box_lanes.h"
#include "doubles.h"
#include "exponential.h"
#include "instruction_set.h"
#include "rows.h"
#include "simd.h"

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

// Rows of four numbers in (image, prior) order: row r answers to prior r % P.
struct DecodeJob {
  const void* from;  // offsets to decode, or float32 boxes to encode
  Dtype dtype;       // of them
  const float* priors;
  int64_t P;
  Variances variances;
  float max_log_scale;  // of decoding
  float* to;            // boxes, or offsets
};

SSD_FAST_PER_INSTRUCTION_SET(
    // Decodes rows `begin` to `end`.
    void decode_rows(const DecodeJob& job, int64_t begin, int64_t end);
    // Encodes rows `begin` to `end`.
    void encode_rows(const DecodeJob& job, int64_t begin, int64_t end);)

}  // namespace ssd_fast

namespace ssd_fast::SSD_FAST_ISA {

// What leads from priors to boxes.
struct Offsets {
  Floats x, y, w, h;
};

// The boxes that offsets lead to. NaN stays NaN.
inline Boxes decode_boxes(const Offsets& offsets, const Boxes& priors, const Variances& variances,
                          float max_log_scale) {
  const auto half_size = [=](Floats offset, float variance, Floats prior_size) {
    return exp(min(splat(max_log_scale), offset * variance)) * prior_size * 0.5f;
  };
  const Floats width = priors.x2 - priors.x1, height = priors.y2 - priors.y1;
  const Floats x = (offsets.x * variances.x) * width + (priors.x1 + priors.x2) * 0.5f;
  const Floats y = (offsets.y * variances.y) * height + (priors.y1 + priors.y2) * 0.5f;
  const Floats half_width = half_size(offsets.w, variances.w, width);
  const Floats half_height = half_size(offsets.h, variances.h, height);
  return {x - half_width, y - half_height, x + half_width, y + half_height};
}

// The offsets that lead from priors to boxes.
inline Offsets encode_boxes(const Boxes& boxes, const Boxes& priors, const Variances& variances) {
  const Floats width = priors.x2 - priors.x1, height = priors.y2 - priors.y1;
  return {((boxes.x1 - priors.x1) + (boxes.x2 - priors.x2)) * 0.5f / (width * variances.x),
          ((boxes.y1 - priors.y1) + (boxes.y2 - priors.y2)) * 0.5f / (height * variances.y),
          log((boxes.x2 - boxes.x1) / width) / variances.w,
          log((boxes.y2 - boxes.y1) / height) / variances.h};
}

}  // namespace ssd_fast::SSD_FAST_ISA
