// SPDX-License-Identifier: BSD-3-Clause
// What else decides which prior answers for which object: matches that were made elsewhere, and
// regions to ignore. Contract: ssd_fast/assignment.py. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "box.h"
#include "box_lanes.h"
#include "match.h"
#include "simd.h"

namespace ssd_fast {

constexpr int64_t kIgnoreLabel = -1;

// Matches of a batch, (B, P) of one of two types; both null where there are none.
struct GivenMatches {
  const int32_t* ints;
  const int64_t* longs;

  bool any() const { return ints != nullptr || longs != nullptr; }
  int64_t at(int64_t i) const { return ints ? ints[i] : longs[i]; }
};

// Writes the given matches of one image to `matched` (P,), its first one at `first`; a number that
// fits none of its N objects, or one that is no candidate, is ignored. Returns the positives.
template <typename IsCandidate>
int64_t take_matches(const GivenMatches& given, int64_t first, int64_t P, int64_t N,
                     const IsCandidate& is_candidate, int32_t* matched) {
  int64_t positives = 0;
  for (int64_t p = 0; p < P; ++p) {
    const int64_t n = given.at(first + p);
    const bool fits = n >= 0 && n < N && is_candidate(n);
    matched[p] = fits ? static_cast<int32_t>(n) : (n == kBackground ? kBackground : kIgnored);
    positives += fits;
  }
  return positives;
}

}  // namespace ssd_fast

namespace ssd_fast::SSD_FAST_ISA {

// Turns background priors of which at least `threshold` lies in `region` into ignored ones.
inline void ignore_inside(const Box& region, const PriorBlocks& priors, float threshold, int64_t P,
                          int32_t* matched) {
  for (int64_t p = 0; p < P; p += kLanes) {
    const Boxes boxes = load_boxes(priors.boxes(p / kBlock) + 4 * (p % kBlock));
    const Floats width = min(boxes.x2, splat(region.x2)) - max(boxes.x1, splat(region.x1));
    const Floats height = min(boxes.y2, splat(region.y2)) - max(boxes.y1, splat(region.y1));
    const Floats inter = width * height;
    const Floats size = area(boxes);
    // A NaN coordinate of a prior makes its size NaN: nothing of it lies anywhere.
    const Ints overlap = (width > 0.0f) & (height > 0.0f) & (inter > 0.0f) & (size > 0.0f);
    const Floats share = overlap ? inter / size : Floats{};
    const Ints codes = load_some(matched + p, std::min(P - p, kLanes), kIgnored);
    uint32_t lanes = lanes_of((share >= threshold) & (codes == kBackground));
    for (; lanes != 0; lanes &= lanes - 1) matched[p + __builtin_ctz(lanes)] = kIgnored;
  }
}

}  // namespace ssd_fast::SSD_FAST_ISA
