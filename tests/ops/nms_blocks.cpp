// SPDX-License-Identifier: BSD-3-Clause
// Runs the blocks of the CUDA kernels of NMS one thread after the other, for test_nms_blocks.py.
#include "nms_blocks.h"

#include <vector>

namespace {

using namespace ssd_fast;

// Runs blocks and threads in an order: forwards or backwards, and by an odd stride.
struct Launch {
  int32_t stride;
  int64_t* launches;

  template <typename Work>
  void operator()(const Work& work, int32_t blocks, int32_t threads) const {
    ++*launches;
    static typename Work::Shared shared;  // as on a GPU, with what the last block left in it
    for (int32_t i = 0; i < blocks; ++i) {
      work.run(Block{threads, stride}, stride % 4 == 1 ? i : blocks - 1 - i, shared);
    }
  }
};

}  // namespace

extern "C" {

// Keys to sort by, and the words that suppression starts from: kept and removed, (ceil(n / 64)).
void prepare_keys(const float* boxes, const float* scores, float* keys, uint64_t* kept,
                  uint64_t* removed, int32_t n) {
  int64_t launches = 0;
  const PrepareKeys work{boxes, scores, keys, {kept, removed, nullptr, nullptr, 0}, n};
  Launch{1, &launches}(work, ceil_div(n, kThreads), kThreads);
}

// Returns the number of launches after sorting. `tile` 0: as large as the kernels would have it.
int64_t suppress(const float* boxes, const float* keys, const int64_t* order, const int64_t* ranks,
                 const int64_t* classes, int32_t n, double threshold, int32_t tile, int32_t stride,
                 uint64_t* kept, uint64_t* removed, int64_t* keep, int64_t* count) {
  tile = tile > 0 ? tile : tile_size(n);
  // Filled: what no launch writes must not matter.
  std::vector<uint64_t> overlaps(int64_t{tile} * tile / kWord, ~uint64_t{0});
  std::vector<int32_t> survivors(tile + 1, -1);
  int64_t launches = 0;
  launch_suppression(Launch{stride, &launches},
                     Ranking{boxes, keys, order, ranks, classes, n, round_down(threshold)},
                     Workspace{kept, removed, overlaps.data(), survivors.data(), tile}, keep,
                     count);
  return launches;
}
}
