// SPDX-License-Identifier: BSD-3-Clause
// Box arithmetic, operation by operation as ssd_fast/boxes.py defines it. Torch-free.
//
// What the CUDA kernels share with the host is marked SSD_FAST_HD: both decide with the same code,
// and the host's tests test it for both.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#ifdef __CUDACC__
#define SSD_FAST_HD __host__ __device__
#else
#define SSD_FAST_HD
#endif

namespace ssd_fast {

struct Box {
  float x1, y1, x2, y2;
};

SSD_FAST_HD inline Box box_at(const float* boxes, int64_t n) {
  return {boxes[4 * n], boxes[4 * n + 1], boxes[4 * n + 2], boxes[4 * n + 3]};
}

SSD_FAST_HD inline float area(const Box& box) { return (box.x2 - box.x1) * (box.y2 - box.y1); }

// Neither infinite nor NaN: only then is the difference with itself a number.
SSD_FAST_HD inline bool is_finite(float value) { return value - value == 0.0f; }

SSD_FAST_HD inline bool is_finite(const Box& box) {
  return is_finite(box.x1) && is_finite(box.y1) && is_finite(box.x2) && is_finite(box.y2);
}

// The largest float32 that is not above `value`. A float32 exceeds one exactly when it exceeds the
// other, so comparing with the result compares with `value` as real numbers.
inline float round_down(double value) {
  const float nearest = static_cast<float>(value);
  if (static_cast<double>(nearest) <= value) return nearest;
  return std::nextafter(nearest, -std::numeric_limits<float>::infinity());
}

// Whether two boxes overlap by more than `threshold`, in the arithmetic of torchvision's CPU
// kernel: inter / (area_a + area_b - inter) > threshold. NaN does not.
SSD_FAST_HD inline bool suppresses(const Box& a, float area_a, const Box& b, float area_b,
                                   float threshold) {
  const float x1 = a.x1 > b.x1 ? a.x1 : b.x1;
  const float y1 = a.y1 > b.y1 ? a.y1 : b.y1;
  const float x2 = a.x2 < b.x2 ? a.x2 : b.x2;
  const float y2 = a.y2 < b.y2 ? a.y2 : b.y2;
  const float width = x2 - x1 > 0.0f ? x2 - x1 : 0.0f;
  const float height = y2 - y1 > 0.0f ? y2 - y1 : 0.0f;
  const float inter = width * height;
  const float area_of_union = area_a + area_b - inter;
  // Spares most divisions: a quotient rounds to above a threshold >= 0 only where the union is not
  // negative and inter > threshold * union, and there, rounding being monotonic, this holds.
  if (threshold >= 0.0f && !(inter >= area_of_union * threshold)) return false;
  return inter / area_of_union > threshold;
}

// An object that may match: its area is positive and finite.
inline bool is_valid(const Box& box) {
  const float value = area(box);
  return value > 0 && value < __builtin_inff();
}

// Rows offsets[image] to offsets[image + 1] of N, clamped: whatever the offsets hold, rows exist.
struct RowRange {
  int64_t begin;
  int64_t count;
};

inline RowRange image_rows(const int64_t* offsets, int64_t image, int64_t N) {
  const auto clamp = [N](int64_t row) { return row < 0 ? 0 : (row > N ? N : row); };
  const int64_t begin = clamp(offsets[image]);
  const int64_t end = clamp(offsets[image + 1]);
  return {begin, end > begin ? end - begin : 0};
}

}  // namespace ssd_fast
