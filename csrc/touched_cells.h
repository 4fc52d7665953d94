// SPDX-License-Identifier: BSD-3-Clause
// The cells of the heads' maps in which a row is selected, and where the rows of such a cell are in
// a list of these cells alone. Contract: ssd_fast/ops/_touched_cells.py. Torch-free.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "instruction_set.h"
#include "rows.h"

namespace ssd_fast {

// Of each level, the touched cells of a batch, rising: image * (cells of the level) + cell.
class TouchedCells {
 public:
  TouchedCells(size_t levels, int64_t batch)
      : cells_(levels), starts_(levels, std::vector<int64_t>(static_cast<size_t>(batch))) {}

  // Begins with an image, the next one.
  void open(int64_t image) {
    for (size_t l = 0; l < cells_.size(); ++l) {
      starts_[l][image] = static_cast<int64_t>(cells_[l].size());
    }
  }

  // Adds a cell, not before the last one.
  void add(size_t level, int64_t cell) {
    std::vector<int64_t>& cells = cells_[level];
    if (cells.empty() || cells.back() != cell) cells.push_back(cell);
  }

  const std::vector<int64_t>& of_level(size_t level) const { return cells_[level]; }
  int64_t start(size_t level, int64_t image) const { return starts_[level][image]; }

 private:
  std::vector<std::vector<int64_t>> cells_;
  std::vector<std::vector<int64_t>> starts_;  // of each image in the lists of the levels
};

// Finds the rows of one image in the lists; asked in order, it goes through them once.
class TouchedRows {
 public:
  void open(const TouchedCells& touched, int64_t image) {
    touched_ = &touched;
    image_ = image;
    level_ = 0;
    at_ = touched.start(0, image);
  }

  // The number that a row of the level has among the rows of its touched cells, of which it is one.
  int64_t find(const Level& level, size_t level_index, int64_t row) {
    if (level_index != level_) {
      level_ = level_index;
      at_ = touched_->start(level_index, image_);
    }
    const int64_t cell = image_ * level.cells() + row / level.anchors;
    while (touched_->of_level(level_)[at_] < cell) ++at_;
    return at_ * level.anchors + row % level.anchors;
  }

 private:
  const TouchedCells* touched_ = nullptr;
  int64_t image_ = 0;
  size_t level_ = 0;
  int64_t at_ = 0;
};

SSD_FAST_PER_INSTRUCTION_SET(
    // Lists the cells of the images whose codes (batch, P) select a row in them.
    TouchedCells touched_cells(const Rows& rows, const int32_t* code, int64_t batch, int64_t P);)

}  // namespace ssd_fast
