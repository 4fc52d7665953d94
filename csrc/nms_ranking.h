// SPDX-License-Identifier: BSD-3-Clause
// What the blocks of nms_blocks.h share: the order of the boxes, the memory between launches, and
// how 64 positions are decided. Torch-free.
#pragma once

#include <cstdint>

#include "box.h"
#include "thread_blocks.h"

namespace ssd_fast {

constexpr int32_t kSegmentLimit = 4096;
constexpr int32_t kPace = kSegmentLimit / 2;  // see Ranking::in_tiles
constexpr int32_t kRange = 256;               // positions whose segments are one block's
constexpr int32_t kThreads = 256;
constexpr int32_t kManyThreads = 1024;

SSD_FAST_HD inline int32_t ceil_div(int32_t a, int32_t b) { return a / b + (a % b != 0); }

// What is suppressed, in order.
struct Ranking {
  const float* boxes;      // (n, 4)
  const float* keys;       // (n) by rank: the score, -inf where it or the box is not finite
  const int64_t* order;    // (n) by rank: the box
  const int64_t* ranks;    // (n) by position: the rank; null: position and rank are the same
  const int64_t* classes;  // (n) by position, ascending; null: one class
  int32_t n;
  float threshold;

  SSD_FAST_BLOCK int64_t rank(int32_t p) const { return ranks == nullptr ? p : ranks[p]; }
  SSD_FAST_BLOCK Box box(int32_t p) const { return box_at(boxes, order[rank(p)]); }
  SSD_FAST_BLOCK bool is_candidate(int32_t p) const { return is_finite(keys[rank(p)]); }
  SSD_FAST_BLOCK bool same_class(int32_t p, int32_t q) const {
    return classes == nullptr || classes[p] == classes[q];
  }
  SSD_FAST_BLOCK bool begins_segment(int32_t p) const { return p == 0 || !same_class(p - 1, p); }

  // Whether the segment of position p is swept in tiles, as those are that hold two neighbouring
  // multiples of kPace: all beyond the limit do, and nobody needs to know where they begin.
  SSD_FAST_BLOCK bool in_tiles(int32_t p) const {
    if (classes == nullptr) return true;
    const int32_t before = p - p % kPace;
    return spans(before, p) || spans(before - kPace, p) || spans(before + kPace, p);
  }

  // Whether any segment that meets positions begin to end is swept in tiles.
  SSD_FAST_BLOCK bool any_in_tiles(int32_t begin, int32_t end) const {
    if (classes == nullptr) return true;
    for (int32_t m = begin - begin % kPace - kPace; m < end + kPace; m += kPace) {
      if (m >= 0 && m < n && spans(m, m)) return true;
    }
    return false;
  }

 private:
  SSD_FAST_BLOCK bool spans(int32_t multiple, int32_t p) const {
    return multiple >= 0 && multiple < n - kPace && same_class(multiple, p) &&
           same_class(multiple + kPace, p);
  }
};

// Memory of the launches between them. The words are zero at first.
struct Workspace {
  uint64_t* kept;      // (ceil(n / 64)) by rank: what is kept
  uint64_t* removed;   // (ceil(n / 64)) by position: what an earlier tile suppresses
  uint64_t* overlaps;  // (tile, tile / 64) bits of the tile's boxes, row by row
  int32_t* survivors;  // (tile + 1) how many positions of the last tile are kept, and which
  int32_t tile;        // positions, a multiple of kThreads
};

// Positions of a tile. Large sets take large ones: the launches of a tile are an overhead.
inline int32_t tile_size(int32_t n) {
  const int32_t most = n <= 1 << 17 ? 8192 : 16384;
  return n < most ? ceil_div(n, kThreads) * kThreads : most;
}

// Which of 64 boxes are kept, when box t is suppressed by those of before[t] that are.
struct Settling {
  uint64_t ballots[2][2];  // of two rounds in turn: kept, undecided

  // `ballots[0]` holds no kept boxes and the candidates. A round decides every candidate of whose
  // predecessors all are decided, so that boxes in a chain take a round each, and others few.
  SSD_FAST_BLOCK uint64_t settle(const Block& block, const uint64_t* before) {
    int32_t now = 0;
    while (ballots[now][1] != 0) {
      const uint64_t kept = ballots[now][0], undecided = ballots[now][1];
      block.vote(ballots[1 - now], [=](int32_t t) {
        if (has_bit(kept, t)) return 1;
        if (!has_bit(undecided, t) || (before[t] & kept) != 0) return 0;
        return (before[t] & undecided) != 0 ? 2 : 1;
      });
      now = 1 - now;
    }
    return ballots[now][0];
  }
};

}  // namespace ssd_fast
