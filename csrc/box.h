// SPDX-License-Identifier: BSD-3-Clause
// Box arithmetic, operation by operation as ssd_fast/boxes.py defines it. Torch-free.
#pragma once

#include <cmath>
#include <cstdint>

namespace ssd_fast {

struct Box {
  float x1, y1, x2, y2;
};

inline Box box_at(const float* boxes, int64_t n) {
  return {boxes[4 * n], boxes[4 * n + 1], boxes[4 * n + 2], boxes[4 * n + 3]};
}

inline float area(const Box& box) { return (box.x2 - box.x1) * (box.y2 - box.y1); }

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
