// SPDX-License-Identifier: BSD-3-Clause
// Greedy non-maximum suppression by blocks of threads. Torch-free. Contract: ssd_fast/ops/nms.py.
//
// Boxes have a rank, by falling score, and a position, by class and then by rank; boxes of a class
// are a segment. A box is kept if no kept box before it in its segment overlaps it, which is
// decided for 64 positions at a time, in parallel (`settle`), before those suppress later ones.
//
// Up to 4096 boxes in all, with classes: one launch, a block for all segments that begin in its
// range. More boxes, or boxes without classes: tiles of thousands of positions, two launches each.
// In the first all blocks compare the boxes of the tile with each other, and what the tile before
// kept with all that is to come. In the second one block sweeps over the tile. Segments that do not
// hold two neighbouring multiples of 2048 stay out of the tiles: blocks decide them, as above, in
// the first launch of the first tile.
#pragma once

#include <cstdint>

#include "box.h"
#include "nms_ranking.h"
#include "nms_segments.h"
#include "nms_tiles.h"
#include "thread_blocks.h"

namespace ssd_fast {

// First launch: what the scores are sorted by, and empty words.
struct PrepareKeys {
  const float* boxes;   // (n, 4)
  const float* scores;  // (n)
  float* keys;          // (n) out, by box; -0.0 becomes 0.0, so that they are equal to any sort
  Workspace workspace;
  int32_t n;

  struct Shared {};

  SSD_FAST_BLOCK void run(const Block& block, int32_t index, Shared&) const {
    block.step([&](int32_t t) {
      const int32_t i = index * kThreads + t;
      if (i >= n) return;
      const bool finite = is_finite(scores[i]) && is_finite(box_at(boxes, i));
      keys[i] = finite ? scores[i] + 0.0f : -__builtin_inff();
      if (i < ceil_div(n, kWord)) workspace.kept[i] = workspace.removed[i] = 0;
    });
  }
};

// Last launch: the boxes that are kept, by rank, then -1.
struct CollectKept {
  Ranking ranking;
  Workspace workspace;
  int64_t* keep;   // (n) out
  int64_t* count;  // () out

  static constexpr int32_t kRanks = 4096;  // of a block
  static constexpr int32_t kWords = kRanks / kWord;
  struct Shared {
    int32_t sums[2][kThreads];  // bits of words before the block's, and of all
    int32_t partial[2][16];
    uint64_t words[kWords];
    int32_t before[kWords];
  };

  SSD_FAST_BLOCK void run(const Block& block, int32_t index, Shared& s) const {
    const int32_t n = ranking.n, words = ceil_div(n, kWord), first = index * kWords;
    block.step([&](int32_t t) {
      int32_t before = 0, all = 0;
      for (int32_t w = t; w < words; w += kThreads) {
        const int32_t bits = count_bits(workspace.kept[w]);
        before += w < first ? bits : 0;
        all += bits;
      }
      s.sums[0][t] = before;
      s.sums[1][t] = all;
      if (t < kWords) s.words[t] = first + t < words ? workspace.kept[first + t] : 0;
    });
    block.step([&](int32_t t) {
      if (t >= 32) return;
      int32_t sum = 0;
      for (int32_t i = 0; i < kThreads / 16; ++i) sum += s.sums[t / 16][t % 16 * 16 + i];
      s.partial[t / 16][t % 16] = sum;
    });
    block.step([&](int32_t t) {
      if (t >= kWords) return;
      int32_t before = 0;
      for (int32_t i = 0; i < 16; ++i) before += s.partial[0][i];
      for (int32_t w = 0; w < t; ++w) before += count_bits(s.words[w]);
      s.before[t] = before;
    });
    block.step([&](int32_t t) {
      int32_t all = 0;
      for (int32_t i = 0; i < 16; ++i) all += s.partial[1][i];
      if (index == 0 && t == 0) *count = all;
      for (int32_t i = t; i < kRanks && first * kWord + i < n; i += kThreads) {
        const uint64_t word = s.words[i / kWord];
        const int32_t rank = first * kWord + i, lower = i % kWord;
        if (rank >= all) keep[rank] = -1;
        if (has_bit(word, lower)) {
          keep[s.before[i / kWord] + count_bits(word & (bit(lower) - 1))] = ranking.order[rank];
        }
      }
    });
  }
};

// The launches after sorting. `launch(work, blocks, threads)` runs `work.run` in each block; blocks
// see what earlier launches wrote.
template <typename Launch>
void launch_suppression(const Launch& launch, const Ranking& ranking, const Workspace& workspace,
                        int64_t* keep, int64_t* count) {
  const int32_t n = ranking.n;
  if (ranking.classes != nullptr && n <= kSegmentLimit) {
    launch(SuppressSegments{ranking, workspace, true}, ceil_div(n, kRange), kManyThreads);
  } else {
    for (int32_t i = 0; i < ceil_div(n, workspace.tile); ++i) {
      const CompareTile compare{ranking, workspace, i * workspace.tile};
      launch(compare, compare.blocks(), kThreads);
      launch(SweepTile{ranking, workspace, i * workspace.tile}, 1, kManyThreads);
    }
  }
  launch(CollectKept{ranking, workspace, keep, count}, ceil_div(n, CollectKept::kRanks), kThreads);
}

}  // namespace ssd_fast
