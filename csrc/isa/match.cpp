// SPDX-License-Identifier: BSD-3-Clause
// Matching for one instruction set.
#include "../match.h"

#include "../scratch.h"

namespace ssd_fast::SSD_FAST_ISA {

namespace {

// Fills bounds. visit(i, include) calls include(boxes, least areas, greatest areas) for vectors of
// what number i is to bound.
template <typename Visit>
void fill_bounds(Bounds& bounds, const Visit& visit) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto least = [](Floats a, Floats b) { return min(a, b); };
  const auto greatest = [](Floats a, Floats b) { return max(a, b); };
  Floats rows[6][kLanes];
  for (int64_t first = 0; first < bounds.count(); first += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      Floats low[3] = {splat(kInfinity), splat(kInfinity), splat(kInfinity)};
      Floats high[3] = {splat(-kInfinity), splat(-kInfinity), splat(-kInfinity)};
      visit(first + lane, [&](const Boxes& boxes, Floats least_area, Floats greatest_area) {
        // In this order a NaN is passed over.
        low[0] = min(boxes.x1, low[0]);
        low[1] = min(boxes.y1, low[1]);
        low[2] = min(least_area, low[2]);
        high[0] = max(boxes.x2, high[0]);
        high[1] = max(boxes.y2, high[1]);
        high[2] = max(greatest_area, high[2]);
      });
      for (int i = 0; i < 2; ++i) rows[i][lane] = low[i];
      for (int i = 0; i < 2; ++i) rows[2 + i][lane] = high[i];
      rows[4][lane] = low[2];
      rows[5][lane] = high[2];
    }
    for (int i = 0; i < 6; ++i) {
      const bool is_low = i < 2 || i == 4;
      store(bounds[i] + first,
            is_low ? combine_rows(rows[i], least) : combine_rows(rows[i], greatest));
    }
  }
}

}  // namespace

void bound_blocks(PriorBlocks& priors) {
  fill_bounds(priors.block_bounds, [&](int64_t block, const auto& include) {
    if (block >= priors.blocks()) return;
    for (int64_t v = 0; v < kBlock; v += kLanes) {
      const Boxes boxes = load_boxes(priors.boxes(block) + 4 * v);
      const Floats size = area(boxes);
      include(boxes, size, size);
    }
  });
  const Bounds& blocks = priors.block_bounds;
  fill_bounds(priors.group_bounds, [&](int64_t group, const auto& include) {
    if (group * kGroup >= blocks.count()) return;
    for (int64_t block = group * kGroup; block < (group + 1) * kGroup; block += kLanes) {
      const auto bound = [&](int64_t which) { return load(blocks[which] + block); };
      include({bound(0), bound(1), bound(2), bound(3)}, bound(4), bound(5));
    }
  });
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
