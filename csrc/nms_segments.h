// SPDX-License-Identifier: BSD-3-Clause
// Suppression of the segments that one block decides, for nms_blocks.h. Torch-free.
#pragma once

#include <cstdint>

#include "box.h"
#include "nms_ranking.h"
#include "thread_blocks.h"

namespace ssd_fast {

// The segments that begin in a range of kRange positions, but for those swept in tiles.
struct SuppressSegments {
  Ranking ranking;
  Workspace workspace;
  bool all;  // no tiles follow: n is at most kSegmentLimit

  struct Shared {
    Settling settling;
    uint64_t before[kWord];
    Box boxes[kWord];
    float areas[kWord];
    int64_t classes[kWord];
    uint16_t quarters[kWord][4];  // of `before`, as they are found
    uint8_t removed[kRange + kSegmentLimit];
    int32_t begin;
    int32_t end[2];
  };

  SSD_FAST_BLOCK void run(const Block& block, int32_t index, Shared& s) const {
    const int32_t first = index * kRange, n = ranking.n;
    const int32_t last = first + kRange < n ? first + kRange : n;
    const int32_t end = find(block, first, last, s);
    const int32_t begin = s.begin;
    block.step([&](int32_t t) {
      for (int32_t i = t; i < end - begin; i += block.threads()) s.removed[i] = 0;
    });
    for (int32_t p = begin; p < end; p += kWord) suppress(block, begin, p, end, s);
  }

 private:
  // Sets s.begin to the first segment of the block and returns where its last one ends.
  SSD_FAST_BLOCK int32_t find(const Block& block, int32_t first, int32_t last, Shared& s) const {
    const bool last_in_tiles = !all && ranking.in_tiles(last - 1);
    block.step([&](int32_t t) {
      if (t == 0) s.begin = s.end[0] = s.end[1] = ranking.n;
    });
    block.step([&](int32_t t) {
      for (int32_t p = first + t; p < last; p += block.threads()) {
        if (ranking.begins_segment(p)) atomic_min(&s.begin, p);
        if (last_in_tiles && ranking.same_class(p, last - 1)) atomic_min(&s.end[0], p);
      }
    });
    if (last_in_tiles || s.begin >= last) return s.end[0];
    for (int32_t round = 0, p = last;; ++round, p += block.threads()) {
      // The slots take turns: one is written while slower threads still read the other.
      int32_t& end = s.end[round % 2];
      block.step([&](int32_t t) {
        if (p + t < ranking.n && ranking.begins_segment(p + t)) atomic_min(&end, p + t);
      });
      if (end < ranking.n || p >= ranking.n - block.threads()) return end;
    }
  }

  // Decides the 64 positions from p on, and suppresses later ones.
  SSD_FAST_BLOCK void suppress(const Block& block, int32_t begin, int32_t p, int32_t end,
                               Shared& s) const {
    const int32_t count = end - p < kWord ? end - p : kWord;
    block.vote(s.settling.ballots[0], [&](int32_t t) {
      if (t >= count) return 0;
      s.boxes[t] = ranking.box(p + t);
      s.areas[t] = area(s.boxes[t]);
      s.classes[t] = ranking.classes[p + t];
      return s.removed[p + t - begin] == 0 && ranking.is_candidate(p + t) ? 2 : 0;
    });
    block.step([&](int32_t t) {
      for (int32_t i = t; i < 4 * count; i += block.threads()) compare(i / 4, i % 4, s);
    });
    block.step([&](int32_t t) {
      if (t >= count) return;
      const uint16_t* const quarter = s.quarters[t];
      s.before[t] = uint64_t{quarter[0]} | uint64_t{quarter[1]} << 16 | uint64_t{quarter[2]} << 32 |
                    uint64_t{quarter[3]} << 48;
    });
    const uint64_t kept = s.settling.settle(block, s.before);
    block.step([&](int32_t t) {
      if (t < kWord && has_bit(kept, t)) {
        const int64_t rank = ranking.rank(p + t);
        atomic_or(workspace.kept + rank / kWord, bit(static_cast<int32_t>(rank % kWord)));
      }
      if (kept == 0) return;
      for (int32_t q = p + kWord + t; q < end; q += block.threads()) {
        if (!ranking.same_class(q, p + kWord - 1)) break;  // nor is any after it
        if (s.removed[q - begin] == 0 && is_suppressed(q, kept, s)) s.removed[q - begin] = 1;
      }
    });
  }

  // A quarter of the predecessors that overlap box t.
  SSD_FAST_BLOCK void compare(int32_t t, int32_t quarter, Shared& s) const {
    uint32_t found = 0;
    for (int32_t i = 0; i < 16; ++i) {
      const int32_t u = 16 * quarter + i;
      if (u >= t) break;
      if (s.classes[u] == s.classes[t] &&
          suppresses(s.boxes[u], s.areas[u], s.boxes[t], s.areas[t], ranking.threshold)) {
        found |= 1u << i;
      }
    }
    s.quarters[t][quarter] = static_cast<uint16_t>(found);
  }

  SSD_FAST_BLOCK bool is_suppressed(int32_t q, uint64_t kept, const Shared& s) const {
    const Box box = ranking.box(q);
    const float box_area = area(box);
    for (; kept != 0;) {
      const int32_t u = highest_bit(kept);
      if (s.classes[u] != s.classes[kWord - 1]) return false;
      if (suppresses(s.boxes[u], s.areas[u], box, box_area, ranking.threshold)) return true;
      kept ^= bit(u);
    }
    return false;
  }
};

}  // namespace ssd_fast
