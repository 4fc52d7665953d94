// SPDX-License-Identifier: BSD-3-Clause
// Selection of hard negatives for one instruction set.
#include "../mine.h"

#include "../scratch.h"

namespace ssd_fast::SSD_FAST_ISA {
namespace {

// Positives and candidates of one image.
struct Counts {
  int64_t positives = 0;
  int64_t candidates = 0;
};

Counts count_matches(const int32_t* match, int64_t P) {
  Counts counts;
  for (int64_t p = 0; p < P; ++p) {
    counts.positives += match[p] >= 0;
    counts.candidates += match[p] == kBackground;
  }
  return counts;
}

}  // namespace

void mine_images(const MineJob& job, int64_t begin, int64_t end) {
  Selector& selector = of_this_thread<Selector>();
  const int64_t P = job.P;
  for (int64_t image = begin; image < end; ++image) {
    const float* loss = job.loss + image * P;
    const int32_t* match = job.match + image * P;
    bool* selected = job.selected + image * P;
    const Counts counts = count_matches(match, P);
    const int64_t k =
        negatives_wanted(job.ratio, counts.positives, job.min_negatives, counts.candidates);
    const auto order_of = [match, loss](int64_t p, int64_t count) {
      const Ints kind = load_some(match + p, count, kIgnored);
      const Ints order = mining_order(load_some(loss + p, count, 0.0f));
      return kind == kBackground ? order : splat(kNoOrder);
    };
    selector.select(P, k, order_of, [selected](int64_t p) { selected[p] = true; });
  }
}

}  // namespace ssd_fast::SSD_FAST_ISA
