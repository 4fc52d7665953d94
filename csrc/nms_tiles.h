// SPDX-License-Identifier: BSD-3-Clause
// Suppression of the segments that are swept in tiles, for nms_blocks.h. Torch-free.
#pragma once

#include <cstdint>

#include "box.h"
#include "nms_ranking.h"
#include "nms_segments.h"
#include "thread_blocks.h"

namespace ssd_fast {

// First launch of a tile: overlaps within it, suppression by what the tile before kept, and with
// the first tile all segments that are not swept in tiles.
struct CompareTile {
  Ranking ranking;
  Workspace workspace;
  int32_t start;  // of the tile

  struct Boxes {
    Box boxes[kThreads];
    float areas[kThreads];

    // A box that nothing suppresses and that suppresses nothing: its overlaps are NaN.
    SSD_FAST_BLOCK void set(int32_t t, const Ranking& ranking, int32_t p, bool there) {
      boxes[t] = there ? ranking.box(p) : Box{0, 0, 0, 0};
      areas[t] = there ? area(boxes[t]) : __builtin_nanf("");
    }
  };
  struct Tile {
    Boxes columns;
    Boxes rows;
    int64_t classes[kThreads];
    uint8_t state[kThreads];
  };
  union Shared {
    Tile tile;
    SuppressSegments::Shared segments;
  };

  SSD_FAST_HD int32_t blocks() const { return for_segments() + for_overlaps() + for_survivors(); }

  SSD_FAST_BLOCK void run(const Block& block, int32_t index, Shared& s) const {
    const int32_t segments = for_segments(), overlaps = for_overlaps();
    if (index < segments) {
      SuppressSegments{ranking, workspace, false}.run(block, index, s.segments);
    } else if (index < segments + overlaps) {
      const int32_t groups = workspace.tile / kThreads, i = index - segments;
      compare(block, i / groups, i % groups, s.tile);
    } else {
      const int32_t i = index - segments - overlaps;
      suppress(block, start + i / row_groups() * kThreads, i % row_groups() * kRows, s.tile);
    }
  }

 private:
  static constexpr int32_t kRows = 1024;  // survivors that a block compares
  enum State : uint8_t { kDecided, kOpen, kSuppressed };

  // Blocks of each kind, in this order.
  SSD_FAST_HD int32_t for_segments() const {
    return start == 0 && ranking.classes != nullptr ? ceil_div(ranking.n, kRange) : 0;
  }
  SSD_FAST_HD int32_t for_overlaps() const {
    return workspace.tile / kWord * (workspace.tile / kThreads);
  }
  SSD_FAST_HD int32_t for_survivors() const {
    return start == 0 ? 0 : ceil_div(ranking.n - start, kThreads) * row_groups();
  }
  SSD_FAST_HD int32_t row_groups() const { return ceil_div(workspace.tile, kRows); }

  // 64 rows of the tile with 256 columns: a word each thread.
  SSD_FAST_BLOCK void compare(const Block& block, int32_t chunk, int32_t group, Tile& s) const {
    const int32_t row = start + chunk * kWord, column = start + group * kThreads;
    const int32_t n = ranking.n, words = workspace.tile / kWord;
    constexpr int32_t kWords = kThreads / kWord;
    if (row >= n || column >= n || (group + 1) * kWords <= chunk) return;
    const int32_t last_row = row + kWord < n ? row + kWord - 1 : n - 1;
    if (!ranking.in_tiles(row) && !ranking.in_tiles(last_row)) return;
    const bool by_class = ranking.classes != nullptr;
    const bool apart = by_class && ranking.classes[last_row] < ranking.classes[column];
    block.step([&](int32_t t) {
      const int32_t p = column + t;
      s.columns.set(t, ranking, p, !apart && p < n);
      if (by_class && p < n) s.classes[t] = ranking.classes[p];
    });
    block.step([&](int32_t t) {
      const int32_t r = row + t / kWords, word = t % kWords;
      if (r >= n || group * kWords + word < chunk) return;
      uint64_t found = 0;
      const Box box = ranking.box(r);
      const float box_area = area(box);
      for (int32_t i = 0; i < kWord && !apart; ++i) {
        // The four words of a row are read at different places: banks of shared memory.
        const int32_t c = word * kWord + (i + 8 * word) % kWord;
        if (column + c == r || column + c >= n) continue;
        if (by_class && s.classes[c] != ranking.classes[r]) continue;
        if (suppresses(s.columns.boxes[c], s.columns.areas[c], box, box_area, ranking.threshold)) {
          found |= bit(c % kWord);
        }
      }
      workspace.overlaps[int64_t{r - start} * words + group * kWords + word] = found;
    });
  }

  // 256 positions from `column` on with 1024 boxes that the tile before kept.
  SSD_FAST_BLOCK void suppress(const Block& block, int32_t column, int32_t first, Tile& s) const {
    const int32_t survivors = workspace.survivors[0];
    // Of the classes of that tile only the last one can go on.
    if (first >= survivors || !ranking.same_class(start - 1, column)) return;
    block.step([&](int32_t t) {
      const int32_t p = column + t;
      const bool open = p < ranking.n && ranking.same_class(start - 1, p) &&
                        ranking.is_candidate(p) &&
                        !has_bit(workspace.removed[p / kWord], p % kWord);
      s.columns.set(t, ranking, p, open);
      s.state[t] = open ? kOpen : kDecided;
    });
    const int32_t end = first + kRows < survivors ? first + kRows : survivors;
    for (int32_t begin = first; begin < end; begin += kThreads) {
      const int32_t count = end - begin < kThreads ? end - begin : kThreads;
      block.step([&](int32_t t) {
        if (t >= count) return;
        const int32_t p = workspace.survivors[1 + begin + t];
        s.rows.set(t, ranking, p, ranking.same_class(start - 1, p));
      });
      block.step([&](int32_t t) {
        if (s.state[t] != kOpen) return;
        const Box box = s.columns.boxes[t];
        const float box_area = s.columns.areas[t];
        for (int32_t i = 0; i < count; ++i) {
          if (suppresses(s.rows.boxes[i], s.rows.areas[i], box, box_area, ranking.threshold)) {
            s.state[t] = kSuppressed;
            return;
          }
        }
      });
    }
    block.step([&](int32_t t) {
      if (s.state[t] != kSuppressed) return;
      atomic_or(workspace.removed + (column + t) / kWord, bit((column + t) % kWord));
    });
  }
};

// Second launch of a tile, of one block: decides 64 positions after 64.
struct SweepTile {
  Ranking ranking;
  Workspace workspace;
  int32_t start;

  static constexpr int32_t kMostWords = 16384 / kWord;
  struct Shared {
    Settling settling;
    uint64_t removed[kMostWords];
    uint64_t before[2][kWord];  // of 64 positions and the next 64, in turn
    bool open[2][kWord];
  };

  SSD_FAST_BLOCK void run(const Block& block, int32_t, Shared& s) const {
    const int32_t n = ranking.n, tile = workspace.tile;
    const int32_t end = n - start < tile ? n : start + tile;
    const int32_t chunks = ranking.any_in_tiles(start, end) ? ceil_div(end - start, kWord) : 0;
    int32_t survivors = 0;
    block.step([&](int32_t t) {
      for (int32_t w = t; w < chunks; w += block.threads()) {
        s.removed[w] = workspace.removed[start / kWord + w];
      }
      load(t, 0, s);
    });
    for (int32_t c = 0; c < chunks; ++c) {
      const int32_t now = c % 2;
      block.vote(s.settling.ballots[0],
                 [&](int32_t t) { return s.open[now][t] && !has_bit(s.removed[c], t) ? 2 : 0; });
      const uint64_t kept = s.settling.settle(block, s.before[now]);
      block.step([&](int32_t t) {
        load(t, c + 1, s);
        if (kept == 0) return;
        record(t, c, kept, survivors);
        spread(block, t, c, chunks, kept, s);
      });
      survivors += count_bits(kept);
    }
    block.step([&](int32_t t) {
      if (t == 0) workspace.survivors[0] = survivors;
    });
  }

 private:
  // What deciding the 64 positions of chunk c takes.
  SSD_FAST_BLOCK void load(int32_t t, int32_t c, Shared& s) const {
    const int32_t row = c * kWord + t, p = start + row, words = workspace.tile / kWord;
    if (t >= kWord) return;
    const bool here = row < workspace.tile && p < ranking.n && ranking.in_tiles(p);
    s.open[c % 2][t] = here && ranking.is_candidate(p);
    s.before[c % 2][t] =
        here ? workspace.overlaps[int64_t{row} * words + c] & (bit(t) - 1) : uint64_t{0};
  }

  // Writes down what is kept.
  SSD_FAST_BLOCK void record(int32_t t, int32_t c, uint64_t kept, int32_t survivors) const {
    const int32_t p = start + c * kWord + t;
    if (ranking.ranks == nullptr && t == 0) workspace.kept[p / kWord] = kept;
    if (t >= kWord || !has_bit(kept, t)) return;
    workspace.survivors[1 + survivors + count_bits(kept & (bit(t) - 1))] = p;
    if (ranking.ranks == nullptr) return;
    const int64_t rank = ranking.ranks[p];
    atomic_or(workspace.kept + rank / kWord, bit(static_cast<int32_t>(rank % kWord)));
  }

  // Removes what kept boxes of chunk c overlap in later chunks: neighbouring threads read
  // neighbouring words of eight rows.
  SSD_FAST_BLOCK void spread(const Block& block, int32_t t, int32_t c, int32_t chunks,
                             uint64_t kept, Shared& s) const {
    constexpr int32_t kRows = 8;
    const int32_t words = workspace.tile / kWord, later = chunks - c - 1;
    for (int32_t i = t; i < later * (kWord / kRows); i += block.threads()) {
      const int32_t word = c + 1 + i % later, first = i / later * kRows;
      const uint64_t* const rows = workspace.overlaps + int64_t{c * kWord + first} * words + word;
      uint64_t found = 0;
      for (int32_t k = 0; k < kRows; ++k) {
        if (has_bit(kept, first + k)) found |= rows[int64_t{k} * words];
      }
      if (found != 0) atomic_or(&s.removed[word], found);
    }
  }
};

}  // namespace ssd_fast
