// SPDX-License-Identifier: BSD-3-Clause
// Sixteen boxes, coordinate by coordinate, and which of them overlap another. Torch-free.
#pragma once

#include <cstdint>

#include "box.h"
#include "simd.h"

namespace ssd_fast {

struct alignas(64) BoxColumns {
  static constexpr int kBoxes = 16;
  float x1[kBoxes], y1[kBoxes], x2[kBoxes], y2[kBoxes], area[kBoxes];

  Box box(int64_t i) const { return {x1[i], y1[i], x2[i], y2[i]}; }

  void set(int64_t i, const Box& box) {
    x1[i] = box.x1;
    y1[i] = box.y1;
    x2[i] = box.x2;
    y2[i] = box.y2;
  }
};

}  // namespace ssd_fast

namespace ssd_fast::SSD_FAST_ISA {

// The boxes that overlap `box` by more than `threshold`, as bits, in the arithmetic of
// torchvision's CPU kernel: inter / (area_a + area_b - inter) > threshold.
inline uint32_t overlapping(const BoxColumns& boxes, const Box& box, float box_area,
                            float threshold) {
  static_assert(BoxColumns::kBoxes % kLanes == 0, "whole vectors");
  const Floats zero{}, bx1 = splat(box.x1), by1 = splat(box.y1);
  const Floats bx2 = splat(box.x2), by2 = splat(box.y2);
  uint32_t found = 0;
  for (int i = 0; i < BoxColumns::kBoxes; i += kLanes) {
    const Floats width = max(min(load(boxes.x2 + i), bx2) - max(load(boxes.x1 + i), bx1), zero);
    const Floats height = max(min(load(boxes.y2 + i), by2) - max(load(boxes.y1 + i), by1), zero);
    const Floats inter = width * height;
    const Floats area_of_union = load(boxes.area + i) + box_area - inter;
    // Spares most divisions: a quotient rounds to above a threshold >= 0 only where the union is
    // not negative and inter > threshold * union, and there, rounding being monotonic, this holds.
    if (threshold >= 0.0f && !any_reaching(inter, area_of_union * threshold)) continue;
    found |= lanes_above(inter / area_of_union, splat(threshold)) << i;
  }
  return found;
}

}  // namespace ssd_fast::SSD_FAST_ISA
