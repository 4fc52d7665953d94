// SPDX-License-Identifier: BSD-3-Clause
// Matching for one instruction set.
#include "../match.h"

#include "../scratch.h"

namespace ssd_fast::SSD_FAST_ISA {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline Floats least(Floats a, Floats b) { return min(a, b); }

// The bounds of some boxes, a vector each, in the order of Bounds. What is a greatest is negated
// here: of two extents the least of each value bounds both.
struct Extents {
  Floats values[6];

  void store_to(Bounds& to, int64_t first) const {
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) {
      const bool is_negated = i == 2 || i == 3 || i == 5;
      store(to[i] + first, is_negated ? -values[i] : values[i]);
    }
  }
};

// Some boxes (x1, y1, x2, y2) with their second corners negated.
SSD_FAST_INLINE Floats negate_second_corners(Floats boxes) {
  Ints signs;
  for (int lane = 0; lane < kLanes; ++lane) {
    signs[lane] = lane % 4 < 2 ? 0 : std::numeric_limits<int32_t>::min();
  }
  return as_floats(as_ints(boxes) ^ signs);
}

// Includes a block in bounds, in any order of its boxes and in this order of arguments: a NaN is
// passed over.
SSD_FAST_INLINE void include_block(const float* block, Floats& corners, Floats& least_area,
                                   Floats& greatest_area) {
  for (int64_t i = 0; i < 4 * kBlock; i += 4 * kLanes) {
    const Floats a = load(block + i), b = load(block + i + kLanes);
    const Floats c = load(block + i + 2 * kLanes), d = load(block + i + 3 * kLanes);
    corners = min(negate_second_corners(a), corners);
    corners = min(negate_second_corners(b), corners);
    corners = min(negate_second_corners(c), corners);
    corners = min(negate_second_corners(d), corners);
    const Floats sides = shuffle<0xee>(a, b) - shuffle<0x44>(a, b);  // width, height, width, ...
    const Floats more_sides = shuffle<0xee>(c, d) - shuffle<0x44>(c, d);
    const Floats areas = shuffle<0x88>(sides, more_sides) * shuffle<0xdd>(sides, more_sides);
    least_area = min(areas, least_area);
    greatest_area = max(areas, greatest_area);
  }
}

// The bounds of as many blocks as there are lanes, from `blocks` on. Four blocks share those of
// their areas: nearly as tight, for a quarter of the work.
SSD_FAST_INLINE Extents bound_lanes(const float* blocks) {
  float corners[4 * kLanes];
  Floats least_areas[kLanes / 4], negated_areas[kLanes / 4];
#pragma GCC unroll 4
  for (int64_t four = 0; four < kLanes / 4; ++four) {
    Floats rows[4], least_area = splat(kInfinity), greatest_area = splat(-kInfinity);
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i) {
      rows[i] = splat(kInfinity);
      include_block(blocks + 4 * kBlock * (4 * four + i), rows[i], least_area, greatest_area);
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; i += kLanes / 4) {
      store(corners + 16 * four + 4 * i, combine_fours(rows + i, least));
    }
    least_areas[four] = least_area;
    negated_areas[four] = -greatest_area;
  }
  const Boxes boxes = load_boxes(corners);
  return {{boxes.x1, boxes.y1, boxes.x2, boxes.y2,
           fold_fours(combine_fours(least_areas, least), least),
           fold_fours(combine_fours(negated_areas, least), least)}};
}

}  // namespace

void bound_blocks(PriorBlocks& priors) {
  const int64_t groups = priors.block_bounds.count() / kGroup;
  for (int64_t first = 0; first < priors.group_bounds.count(); first += kLanes) {
    Floats rows[6][kLanes];
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      for (int i = 0; i < 6; ++i) rows[i][lane] = splat(kInfinity);
      const int64_t group = first + lane;
      for (int64_t block = 0; block < kGroup && group < groups; block += kLanes) {
        const Extents extents = bound_lanes(priors.group_boxes(group) + 4 * kBlock * block);
        extents.store_to(priors.block_bounds, kGroup * group + block);
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) rows[i][lane] = min(extents.values[i], rows[i][lane]);
      }
    }
    Extents extents;
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) extents.values[i] = combine_rows(rows[i], least);
    extents.store_to(priors.group_bounds, first);
  }
}

void match_images(const MatchJob& job, int64_t begin, int64_t end) {
  Matcher& matcher = of_this_thread<Matcher>();
  matcher.reset(job.priors, job.options, scratch_floats(job.priors.blocks() * kBlock));
  for (int64_t image = begin; image < end; ++image) {
    const RowRange range = image_rows(job.objects.offsets, image, job.objects.N);
    matcher.match(
        job.objects.boxes + 4 * range.begin, range.count, [](int64_t) { return true; }, job.P,
        job.matched + image * job.P);
  }
}

}  // namespace ssd_fast::SSD_FAST_ISA
