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

#include "blocks.h"
#include "box.h"

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
