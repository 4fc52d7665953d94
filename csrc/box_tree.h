// SPDX-License-Identifier: BSD-3-Clause
// Boxes that wait to be kept or suppressed, near ones in one block, so that a box meets few others
// in earnest. Torch-free.
//
// Two comparisons of a coarse grid's bytes lead from a box to those it may suppress: with the cells
// that hold 64 boxes each, 64 such blocks at a time, and with the cells of the boxes of a block.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "box.h"
#include "box_columns.h"
#include "box_lanes.h"
#include "coarse_boxes.h"
#include "simd.h"

namespace ssd_fast::SSD_FAST_ISA {

class BoxTree {
 public:
  // Makes room for `n` boxes whose corners lie within `bounds`.
  void reset(int64_t n, const Box& bounds) {
    bounds_ = bounds;
    grid_ = CoarseGrid(bounds);
    count_ = n;
    if (static_cast<int64_t>(blocks_.size()) < used()) blocks_.resize(static_cast<size_t>(used()));
    tops_.resize(static_cast<size_t>(ceil_div(used(), kBoxes)));
    places_.resize(static_cast<size_t>(n));
  }

  // Takes boxes number `begin` to `end`, which are of one class; reads vectors of boxes, perhaps
  // some behind the last one.
  void add(const float* boxes, int64_t begin, int64_t end) {
    if (end - begin > kFew * kBoxes) {
      arrange(boxes, begin, end);
    } else {
      for (int64_t i = begin; i < end; ++i)
        put(i, static_cast<uint32_t>(i), box_at(boxes, i - begin));
    }
  }

  // Prepares for decisions, once all boxes are there.
  void finish() {
    for (int64_t b = 0; b < used(); ++b) {
      blocks_[b].finish(grid_, std::min<int64_t>(count_ - b * kBoxes, kBoxes));
      tops_[b / kBoxes].set(b % kBoxes, blocks_[b].cells.bounds());
    }
    if (used() % kBoxes != 0) tops_.back().clear_from(used() % kBoxes);
  }

  // Whether box `i` still waits.
  bool is_open(int64_t i) const {
    const uint32_t place = places_[i];
    return (blocks_[place / kBoxes].open >> (place % kBoxes) & 1) != 0;
  }

  // Keeps box `i`: neither it nor those of boxes `begin` to `end`, its class, that it overlaps by
  // more than `threshold` wait any longer.
  void keep(int64_t i, int64_t begin, int64_t end, float threshold) {
    const uint32_t place = places_[i];
    Block& home = blocks_[place / kBoxes];
    home.open &= ~(uint64_t{1} << (place % kBoxes));
    const Box box = home.columns[place % kBoxes / kColumns].box(place % kColumns);
    const Visitor visitor{box,   area(box), threshold, grid_.cells(core(box, area(box), threshold)),
                          begin, end};
    const int64_t first = begin / kBoxes, last = (end - 1) / kBoxes;
    if (last - first < kFew) {
      for (int64_t b = first; b <= last; ++b) blocks_[b].meet(visitor, b);
      return;
    }
    for (int64_t top = first / kBoxes; top <= last / kBoxes; ++top) {
      uint64_t near = visitor.touched(tops_[top]) & bits_between(first, last + 1, top);
      for (; near != 0; near &= near - 1) {
        const int64_t b = top * kBoxes + __builtin_ctzll(near);
        blocks_[b].meet(visitor, b);
      }
    }
  }

 private:
  static constexpr int64_t kBoxes = CoarseBlock::kBoxes;
  static constexpr int64_t kColumns = BoxColumns::kBoxes;
  static constexpr int64_t kFew = 8;  // blocks of a class that are not worth an order

  static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
  int64_t used() const { return ceil_div(count_, kBoxes); }  // of blocks_

  // Of the 64 numbers of group `group` those from `begin` to `end`, as bits.
  static uint64_t bits_between(int64_t begin, int64_t end, int64_t group) {
    const int64_t low = std::max<int64_t>(begin - group * kBoxes, 0);
    const int64_t high = std::max<int64_t>((group + 1) * kBoxes - end, 0);
    return ~uint64_t{0} << low & ~uint64_t{0} >> high;
  }

  // A box that is kept, and what it meets.
  struct Visitor {
    Box box;
    float area;
    float threshold;
    CoarseBox cells;
    int64_t begin, end;

    // Boxes that do not touch have overlap 0, which exceeds what is below 0.
    uint64_t touched(const CoarseBlock& block) const {
      return threshold >= 0.0f ? block.touching(cells) : ~uint64_t{0};
    }
  };

  struct Block {
    CoarseBlock cells;
    BoxColumns columns[kBoxes / kColumns];
    uint64_t open;  // the boxes that wait, as bits

    // Finds the areas and cells of the boxes, the first `count` of which are there.
    void finish(const CoarseGrid& grid, int64_t count) {
      for (int64_t i = 0; i < kBoxes; i += kLanes) {
        BoxColumns& some = columns[i / kColumns];
        const int64_t k = i % kColumns;
        const Floats x1 = load(some.x1 + k), y1 = load(some.y1 + k);
        const Floats x2 = load(some.x2 + k), y2 = load(some.y2 + k);
        store(some.area + k, (x2 - x1) * (y2 - y1));
        store_bytes(cells.x1 + i, grid.cells(x1, 0));
        store_bytes(cells.y1 + i, grid.cells(y1, 1));
        store_bytes(cells.x2 + i, grid.cells(x2, 0));
        store_bytes(cells.y2 + i, grid.cells(y2, 1));
      }
      if (count < kBoxes) cells.clear_from(count);
      open = bits_between(0, count, 0);
    }

    // Closes what the visitor suppresses of this block, number `b`.
    void meet(const Visitor& visitor, int64_t b) {
      const uint64_t candidates = open & bits_between(visitor.begin, visitor.end, b);
      uint64_t near = visitor.touched(cells) & candidates, suppressed = 0;
      while (near != 0) {
        const int64_t group = __builtin_ctzll(near) / kColumns;
        const uint64_t found =
            overlapping(columns[group], visitor.box, visitor.area, visitor.threshold);
        suppressed |= found << (group * kColumns);
        near &= ~(uint64_t{0xffff} << (group * kColumns));
      }
      open &= ~(suppressed & candidates);
    }
  };

  // The part of a box that all boxes touch whose overlap with it exceeds the threshold: such an
  // overlap covers more than that share of its width and of its height. Rounding is less than the
  // slack where nothing is tiny; otherwise the part is the box.
  static Box core(const Box& box, float box_area, float threshold) {
    const float width = box.x2 - box.x1, height = box.y2 - box.y1;
    const bool is_tiny = !(std::min(std::min(width, height), box_area) >= 1e-30f);
    const float share = is_tiny || !(threshold >= 1e-6f) ? 0.0f : threshold * (1 - 1e-5f);
    return {box.x1 + share * width, box.y1 + share * height, box.x2 - share * width,
            box.y2 - share * height};
  }

  void put(int64_t i, uint32_t place, const Box& box) {
    places_[i] = place;
    blocks_[place / kBoxes].columns[place % kBoxes / kColumns].set(place % kColumns, box);
  }

  // Puts the boxes, by their centres, into strips of about as many blocks as there are strips, and
  // within a strip from left to right.
  void arrange(const float* boxes, int64_t begin, int64_t end) {
    const int64_t n = end - begin;
    const float blocks = static_cast<float>(n) / static_cast<float>(kBoxes);
    const int32_t strips = static_cast<int32_t>(std::sqrt(blocks) + 0.5f), columns = 4 * strips;
    const float across = 0.5f * static_cast<float>(columns) / (bounds_.x2 - bounds_.x1);
    const float down = 0.5f * static_cast<float>(strips) / (bounds_.y2 - bounds_.y1);
    const Floats zero{}, last_column = zero + static_cast<float>(columns - 1);
    const Floats last_strip = zero + static_cast<float>(strips - 1);
    if (static_cast<int64_t>(tiles_.size()) < n + kLanes)
      tiles_.resize(static_cast<size_t>(n + kLanes));
    for (int64_t i = 0; i < n; i += kLanes) {
      const Boxes box = load_boxes(boxes + 4 * i);
      // In this order a maximum takes a NaN to zero.
      const Floats x = max((box.x1 + box.x2 - 2 * bounds_.x1) * across, zero);
      const Floats y = max((box.y1 + box.y2 - 2 * bounds_.y1) * down, zero);
      const Ints column = __builtin_convertvector(min(x, last_column), Ints);
      store(&tiles_[i], __builtin_convertvector(min(y, last_strip), Ints) * columns + column);
    }
    ends_.assign(static_cast<size_t>(strips * columns), 0);
    for (int64_t i = 0; i < n; ++i) ++ends_[tiles_[i]];
    uint32_t before = static_cast<uint32_t>(begin);
    for (uint32_t& end_of_tile : ends_) {
      before += end_of_tile;
      end_of_tile = before - end_of_tile;
    }
    for (int64_t i = 0; i < n; ++i) put(begin + i, ends_[tiles_[i]]++, box_at(boxes, i));
  }

  Box bounds_{};
  CoarseGrid grid_;
  int64_t count_ = 0;
  std::vector<Block> blocks_;
  std::vector<CoarseBlock> tops_;  // bounds of the blocks
  std::vector<uint32_t> places_;   // of the boxes
  std::vector<int32_t> tiles_;     // of the boxes of a class
  std::vector<uint32_t> ends_;     // of the tiles, in places
};

}  // namespace ssd_fast::SSD_FAST_ISA
