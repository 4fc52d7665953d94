// SPDX-License-Identifier: BSD-3-Clause
// The gradient of an image's logits, of which few rows are not zero, row by row. Torch-free.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "rows.h"
#include "zero_stream.h"

namespace ssd_fast::SSD_FAST_ISA {

class GradientRows {
 public:
  // Begins an image. `streams` says that the memory of the dense `gradient` holds anything, and
  // that the zeros are to be written too; else it is zero.
  void open(const Rows& gradient, int64_t image, bool streams) {
    gradient_ = &gradient;
    image_ = image;
    streams_ = streams;
    row_.resize(static_cast<size_t>(gradient.channels * gradient.element_size()));
    if (streams) open_level(0);
  }

  // Calls fill(out, channel_stride) for the numbers of a row, all of which it writes. Rows come in
  // order.
  template <typename Fill>
  void write(size_t level_index, int64_t row, const Fill& fill) {
    const Level& level = gradient_->levels[level_index];
    visit_dtype(gradient_->dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      if (!streams_) {
        fill(static_cast<T*>(level.data) + level.offset(image_, row), level.channel_stride);
        return;
      }
      fill(reinterpret_cast<T*>(row_.data()), int64_t{1});
    });
    if (!streams_) return;
    while (open_level_ < level_index) open_level(open_level_ + 1);
    const auto size = static_cast<int64_t>(row_.size());
    stream_.write(row * size, row_.data(), size);
  }

  void close() {
    if (!streams_) return;
    while (open_level_ + 1 < gradient_->levels.size()) open_level(open_level_ + 1);
    stream_.close();
    ZeroStream::fence();
  }

 private:
  // Closes the level before, if there is one.
  void open_level(size_t index) {
    if (index > 0) stream_.close();
    const Level& level = gradient_->levels[index];
    const int64_t bytes = level.rows * static_cast<int64_t>(row_.size());
    stream_.open(static_cast<char*>(level.data) + image_ * bytes, bytes);
    open_level_ = index;
  }

  const Rows* gradient_ = nullptr;
  int64_t image_ = 0;
  bool streams_ = false;
  size_t open_level_ = 0;
  std::vector<char> row_;  // which is streamed next
  ZeroStream stream_;
};

}  // namespace ssd_fast::SSD_FAST_ISA
