// SPDX-License-Identifier: BSD-3-Clause
// How the rows of the heads' outputs lie in memory. Torch-free.
//
// A head writes deltas and logits level by level, each level as (B, P, K) or as the raw map
// (B, A * K, H, W) in any memory format. Row p of a level, in (y, x, anchor) order, is K numbers
// `channel_stride` apart. Kernels read and write rows where they are: nothing is permuted or
// copied.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace ssd_fast {

enum class Dtype { kFloat32, kFloat16, kBFloat16 };

// The bits of a float16 or bfloat16.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float to_float(float value) { return value; }

inline float to_float(BFloat16 value) { return bits_to_float(uint32_t{value.bits} << 16); }

inline float to_float(Half value) {
  const uint32_t sign = (uint32_t{value.bits} & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  // Shifted into place, the exponent is short by 127 - 15: one exact product mends it, subnormals
  // too. Infinity and NaN keep their mantissa. Without a branch, so that loops become vectors.
  const float scaled = bits_to_float(magnitude << 13) * bits_to_float(0x77800000u);
  const uint32_t infinite = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return bits_to_float(sign | infinite | float_to_bits(scaled));
}

template <typename T>
T from_float(float value);

template <>
inline float from_float<float>(float value) {
  return value;
}

// Rounds to nearest, ties to even, as PyTorch does.
template <>
inline BFloat16 from_float<BFloat16>(float value) {
  const uint32_t bits = float_to_bits(value);
  if (value != value) return {0x7fc0u};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <>
inline Half from_float<Half>(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};
  uint32_t rounded;
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 aligns the last bit of a half with the last bit of the sum.
    rounded = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    rounded = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return {static_cast<uint16_t>(sign | rounded)};
}

// One level of deltas or logits. Strides count elements.
struct Level {
  void* data;
  int64_t rows;     // priors of this level
  int64_t anchors;  // boxes of a cell; 1 for (B, P, K)
  int64_t width;    // cells of a map row; P for (B, P, K)
  int64_t batch_stride;
  int64_t y_stride;
  int64_t x_stride;
  int64_t anchor_stride;
  int64_t channel_stride;

  // Elements from `data` to the first channel of row `row` of image `image`.
  int64_t offset(int64_t image, int64_t row) const {
    if (anchors == 1 && row < width) return image * batch_stride + row * x_stride;  // undivided
    const int64_t cell = row / anchors;
    return image * batch_stride + (cell / width) * y_stride + (cell % width) * x_stride +
           (row % anchors) * anchor_stride;
  }

  int64_t cells() const { return rows / anchors; }

  // Whether all cells lie x_stride apart, map rows or not.
  bool has_even_cells() const { return width >= cells() || y_stride == width * x_stride; }

  // Whether rows are contiguous, and equally far apart: (B, P, K) and channels_last maps, of which
  // one of a single cell may have any x_stride.
  bool has_even_rows() const {
    return channel_stride == 1 && has_even_cells() &&
           (anchors == 1 || cells() <= 1 || x_stride == anchors * anchor_stride);
  }

  // Elements between two rows where they are even.
  int64_t row_stride() const { return anchors == 1 ? x_stride : anchor_stride; }
};

// Walks the rows of a level in order without a division a row.
class RowCursor {
 public:
  RowCursor(const Level& level, int64_t image)
      : level_(level), row_(image * level.batch_stride), cell_(row_), offset_(row_) {}

  // Elements from `data` to the first channel of the current row; then moves to the next row.
  int64_t next() {
    const int64_t here = offset_;
    offset_ += level_.anchor_stride;
    if (++anchor_ == level_.anchors) {
      anchor_ = 0;
      cell_ += level_.x_stride;
      if (++x_ == level_.width) {
        x_ = 0;
        row_ += level_.y_stride;
        cell_ = row_;
      }
      offset_ = cell_;
    }
    return here;
  }

 private:
  const Level& level_;
  int64_t row_, cell_, offset_;
  int64_t anchor_ = 0;
  int64_t x_ = 0;
};

// All levels of deltas or logits of a batch: rows 0..P in (level, y, x, anchor) order.
struct Rows {
  std::vector<Level> levels;
  int64_t channels;  // K: 4 for deltas, C for logits
  Dtype dtype;

  int64_t element_size() const { return dtype == Dtype::kFloat32 ? 4 : 2; }

  // Whether the rows of each level lie in order and without gaps, image after image.
  bool are_dense() const {
    for (const Level& level : levels) {
      if (!level.has_even_rows() || level.row_stride() != channels ||
          level.batch_stride != level.rows * channels) {
        return false;
      }
    }
    return true;
  }
};

// Asks the caches for `count` elements, at least one.
template <typename T>
inline void prefetch(const T* data, int64_t count) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(data + i);
  __builtin_prefetch(data + count - 1);
}

// Copies a row into `out` as float32.
template <typename T>
inline void load_row(const T* row, int64_t channel_stride, int64_t channels, float* out) {
  for (int64_t k = 0; k < channels; ++k) out[k] = to_float(row[k * channel_stride]);
}

// Calls `visit` with a pointer of the element type that `dtype` names.
template <typename Visitor>
inline void visit_dtype(Dtype dtype, const Visitor& visit) {
  switch (dtype) {
    case Dtype::kFloat32:
      return visit(static_cast<float*>(nullptr));
    case Dtype::kFloat16:
      return visit(static_cast<Half*>(nullptr));
    case Dtype::kBFloat16:
      return visit(static_cast<BFloat16*>(nullptr));
  }
}

}  // namespace ssd_fast
