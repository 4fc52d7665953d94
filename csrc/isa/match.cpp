// SPDX-License-Identifier: BSD-3-Clause
// Matching for one instruction set.
#include "../match.h"

#include "../scratch.h"

namespace ssd_fast::SSD_FAST_ISA {

void bound_blocks(PriorBlocks& priors) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto least = [](Floats a, Floats b) { return min(a, b); };
  const auto greatest = [](Floats a, Floats b) { return max(a, b); };
  Floats bounds[6][kLanes];
  for (int64_t first = 0; first < priors.padded(); first += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      Floats low[3] = {splat(kInfinity), splat(kInfinity), splat(kInfinity)};
      Floats high[3] = {splat(-kInfinity), splat(-kInfinity), splat(-kInfinity)};
      if (first + lane < priors.blocks()) {
        const float* block = priors.boxes(first + lane);
        for (int64_t v = 0; v < kBlock; v += kLanes) {
          const Boxes boxes = load_boxes(block + 4 * v);
          const Floats size = area(boxes);
          // In this order a NaN is passed over.
          low[0] = min(boxes.x1, low[0]);
          low[1] = min(boxes.y1, low[1]);
          low[2] = min(size, low[2]);
          high[0] = max(boxes.x2, high[0]);
          high[1] = max(boxes.y2, high[1]);
          high[2] = max(size, high[2]);
        }
      }
      for (int i = 0; i < 2; ++i) bounds[i][lane] = low[i];
      for (int i = 0; i < 2; ++i) bounds[2 + i][lane] = high[i];
      bounds[4][lane] = low[2];
      bounds[5][lane] = high[2];
    }
    for (int i = 0; i < 6; ++i) {
      const bool is_low = i < 2 || i == 4;
      store(priors.bound(i) + first,
            is_low ? combine_rows(bounds[i], least) : combine_rows(bounds[i], greatest));
    }
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
