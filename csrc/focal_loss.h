// SPDX-License-Identifier: BSD-3-Clause
// The sigmoid focal loss of a batch and its gradient. Contract: ssd_fast/ops/focal_loss.py.
// Torch-free.
//
// Every logit counts, so the pass over them is all the cost: they are read once, in blocks that
// stay in the nearest cache, and a block is one loop over its numbers whatever its rows are. Rows
// that are ignored and the columns of positives are minus infinity in it, whose loss and gradient
// are zero; the positives' are computed apart.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "box_loss_batch.h"
#include "exponential.h"
#include "instruction_set.h"
#include "loss_rows.h"
#include "match.h"
#include "row_loads.h"
#include "rows.h"
#include "scratch.h"
#include "simd.h"

namespace ssd_fast {

struct FocalOptions {
  double positive;  // weights of the targets that are 1, and of those that are 0
  double negative;
  double gamma;
};

struct ImageBoxes {
  double loss = 0;
  int64_t positives = 0;
};

struct FocalForwardJob {
  LossInputs inputs;
  FocalOptions focal;
  Assignment assignment;
  int32_t* code;      // (B, P), out
  ImageBoxes* boxes;  // (B,), out
};

struct FocalBackwardJob {
  LossInputs inputs;
  FocalOptions focal;
  const int32_t* code;         // (B, P)
  const double* box_scales;    // (B,)
  const double* class_scales;  // (B,)
  const Rows& grad_deltas;     // zero at first, out
  const Rows& grad_logits;     // out
};

// Cells `begin` to `end` of a level of an image.
struct FocalChunk {
  size_t level;
  int64_t image;
  int64_t begin, end;
  int64_t prior;  // of the level's row 0
};

SSD_FAST_PER_INSTRUCTION_SET(
    // Decides what the rows of images `begin` to `end` are, and sums the losses of their boxes.
    void focal_assign_images(const FocalForwardJob& job, int64_t begin, int64_t end);
    // The class loss of a chunk.
    double focal_loss_chunk(const FocalForwardJob& job, const FocalChunk& chunk);
    // Writes the gradients of the deltas of the positives of images `begin` to `end`.
    void focal_boxes_backward(const FocalBackwardJob& job, int64_t begin, int64_t end);
    // Writes the gradients of all logits of a chunk.
    void focal_loss_chunk_backward(const FocalBackwardJob& job, const FocalChunk& chunk);)

// The loss of a target of 1 before its weight, and its derivative by the logit.
struct PositiveTerm {
  double loss;
  double slope;
};

inline PositiveTerm positive_term(double logit, double gamma) {
  const double small = std::exp(-std::fabs(logit));
  const double cross_entropy = std::max(-logit, 0.0) + std::log1p(small);
  const double surprise = (logit > 0 ? small : 1) / (1 + small);  // 1 - p
  const double p = (logit > 0 ? 1 : small) / (1 + small);
  const double power = gamma == 0 ? 1 : std::pow(surprise, gamma);
  const double rest = std::isinf(cross_entropy) ? 0 : p * cross_entropy;
  return {logit != logit ? logit : power * cross_entropy, -power * (gamma * rest + surprise)};
}

}  // namespace ssd_fast

namespace ssd_fast::SSD_FAST_ISA {

// Of logits y whose target is 0, kGamma a small whole number, or kAnyGamma.
constexpr int kAnyGamma = -1;

template <int kGamma>
struct NegativeTerms {
  Floats loss;
  Floats slope;

  NegativeTerms(Floats y, float gamma) {
    const Floats zero{}, one = splat(1.0f);
    const Floats small = exp(zero - max(y, zero - y));
    // One division for both quotients: small / (2 + small) and 1 / (1 + small).
    const Floats inverse = one / ((small + 1.0f) * (small + 2.0f));
    const Floats z = small * (small + 1.0f) * inverse, larger = (small + 2.0f) * inverse;
    // log1p(small) = 2 atanh(z), z <= 1/3: the first term left out is below 2e-8 of it.
    const Floats square = z * z;
    Floats series = splat(1.0f / 13);
    series = series * square + 1.0f / 11;
    series = series * square + 1.0f / 9;
    series = series * square + 1.0f / 7;
    series = series * square + 1.0f / 5;
    series = series * square + 1.0f / 3;
    const Floats log = (series * square + 1.0f) * z * 2.0f;
    const Ints is_likely = y >= zero;
    const Floats cross_entropy = max(y, zero) + log;
    const Floats p = is_likely ? larger : small * larger;
    const Floats rest = is_likely ? small * larger : larger;
    const Floats power = power_of(p, y, log, gamma);
    loss = power * cross_entropy;
    const Ints is_finite = cross_entropy < splat(std::numeric_limits<float>::infinity());
    slope = power * ((is_finite ? rest * cross_entropy : zero) * gamma + p);
  }

 private:
  // p^gamma.
  static Floats power_of(Floats p, Floats y, Floats log, float gamma) {
    if constexpr (kGamma == 0) return splat(1.0f);
    if constexpr (kGamma == 1) return p;
    if constexpr (kGamma == 2) return p * p;
    const Floats zero{};
    return exp((zero - max(zero - y, zero) - log) * gamma);
  }
};

// Some rows of a level in a buffer, row by row or channel by channel as they lie in memory.
class FocalBlock {
 public:
  static constexpr int64_t kFloats = 4096;  // 16 KiB
  static constexpr int64_t kPartial = 16;

  // Whether cells of one channel lie side by side, and channels apart.
  static bool is_planar(const Level& level) {
    return level.channel_stride != 1 && level.x_stride == 1 && level.has_even_cells();
  }

  // Calls visit() for block after block of a chunk.
  template <typename Visit>
  void each(const LossInputs& inputs, const FocalChunk& chunk, const Visit& visit) {
    level_ = &inputs.logits.levels[chunk.level];
    dtype_ = inputs.logits.dtype;
    channels_ = inputs.logits.channels;
    image_ = chunk.image;
    const int64_t anchors = level_->anchors;
    const int64_t most = std::max<int64_t>(kFloats / std::max<int64_t>(channels_, 1), 16);
    is_planar_ = is_planar(*level_);
    if (is_planar_) {
      for (int64_t cell = chunk.begin; cell < chunk.end; cell += most) {
        for (int64_t anchor = 0; anchor < anchors; ++anchor) {
          begin_block(cell * anchors + anchor, anchors, std::min(most, chunk.end - cell));
          row_step_ = 1;
          channel_step_ = count_;
          visit();
        }
      }
      return;
    }
    const int64_t end = chunk.end * anchors;
    for (int64_t row = chunk.begin * anchors; row < end; row += most) {
      begin_block(row, 1, std::min(most, end - row));
      row_step_ = channels_;
      channel_step_ = 1;
      visit();
    }
  }

  // Reads the block's logits, padded with minus infinity, and takes out what is no target of 0.
  // Calls positive(place in the buffer, logit) for the others that count.
  template <typename Positive>
  void read(const LossInputs& inputs, const int32_t* code, const Positive& positive) {
    constexpr float kNothing = -std::numeric_limits<float>::infinity();
    visit_dtype(dtype_, [&](auto* type) { gather(static_cast<decltype(type)>(level_->data)); });
    std::fill(buffer_.begin() + size_, buffer_.begin() + padded_, kNothing);
    const RowRange range = image_rows(inputs.objects.offsets, image_, inputs.objects.N);
    for (int64_t i = 0; i < count_; ++i) {
      const int32_t value = code[row_ + i * stride_];
      if (value == kBackground) continue;
      float* const row = buffer_.data() + i * row_step_;
      if (value >= 0 && value < range.count) {
        const int64_t target = inputs.objects.labels[range.begin + value];
        if (target >= 0 && target < channels_) {
          float* const place = row + target * channel_step_;
          positive(place, std::exchange(*place, kNothing));
          continue;
        }
      }
      for (int64_t c = 0; c < channels_; ++c) row[c * channel_step_] = kNothing;
    }
  }

  // The loss of what is left. Sixteen partial sums in double make it equal on every machine.
  template <int kGamma>
  double loss(float gamma) const {
    typedef double Partial __attribute__((vector_size(kLanes * sizeof(double))));
    Partial partial[kPartial / kLanes] = {};
    for (int64_t i = 0; i < padded_; i += kPartial) {
#pragma GCC unroll 4
      for (int64_t k = 0; k < kPartial / kLanes; ++k) {
        const NegativeTerms<kGamma> terms(load(&buffer_[i + k * kLanes]), gamma);
        partial[k] += __builtin_convertvector(terms.loss, Partial);
      }
    }
    double sum = 0;
    for (const Partial& part : partial) {
      for (int64_t lane = 0; lane < kLanes; ++lane) sum += part[lane];
    }
    return sum;
  }

  // Turns the logits into their gradients.
  template <int kGamma>
  void differentiate(float gamma, float scale) {
    for (int64_t i = 0; i < padded_; i += kLanes) {
      store(&buffer_[i], NegativeTerms<kGamma>(load(&buffer_[i]), gamma).slope * scale);
    }
  }

  // Writes the buffer to the same rows of another level.
  void write(const Level& level) const {
    visit_dtype(dtype_,
                [&](auto* type) { scatter(level, static_cast<decltype(type)>(level.data)); });
  }

 private:
  void begin_block(int64_t row, int64_t stride, int64_t count) {
    row_ = row;
    stride_ = stride;
    count_ = count;
    size_ = count * channels_;
    padded_ = (size_ + kPartial - 1) / kPartial * kPartial;
    if (static_cast<int64_t>(buffer_.size()) < padded_)
      buffer_.resize(static_cast<size_t>(padded_));
  }

  template <typename T>
  void gather(const T* data) {
    float* out = buffer_.data();
    if (is_planar_) {
      const T* const plane = data + level_->offset(image_, row_);
      for (int64_t c = 0; c < channels_; ++c) {
        load_row_as_floats(plane + c * level_->channel_stride, 1, count_, out + c * count_);
      }
    } else if (level_->has_even_rows() && level_->row_stride() == channels_) {
      load_row_as_floats(data + level_->offset(image_, row_), 1, size_, out);
    } else {
      for (int64_t i = 0; i < count_; ++i, out += channels_) {
        load_row_as_floats(data + level_->offset(image_, row_ + i), level_->channel_stride,
                           channels_, out);
      }
    }
  }

  template <typename T>
  void scatter(const Level& level, T* data) const {
    const float* from = buffer_.data();
    if (is_planar_ && is_planar(level)) {
      T* const plane = data + level.offset(image_, row_);
      for (int64_t c = 0; c < channels_; ++c, from += count_) {
        store_row(from, count_, 1, plane + c * level.channel_stride);
      }
    } else if (!is_planar_ && level.has_even_rows() && level.row_stride() == channels_) {
      store_row(from, size_, 1, data + level.offset(image_, row_));
    } else {
      for (int64_t i = 0; i < count_; ++i) {
        T* const row = data + level.offset(image_, row_ + i * stride_);
        for (int64_t c = 0; c < channels_; ++c) {
          row[c * level.channel_stride] = from_float<T>(from[i * row_step_ + c * channel_step_]);
        }
      }
    }
  }

  template <typename T>
  static void store_row(const float* from, int64_t count, int64_t stride, T* to) {
    for (int64_t i = 0; i < count; ++i) to[i * stride] = from_float<T>(from[i]);
  }

  const Level* level_ = nullptr;
  Dtype dtype_ = Dtype::kFloat32;
  int64_t channels_ = 0;
  int64_t image_ = 0;
  bool is_planar_ = false;
  int64_t row_ = 0;     // first row of the block
  int64_t stride_ = 1;  // rows to the next one
  int64_t count_ = 0;   // rows
  int64_t size_ = 0, padded_ = 0;
  int64_t row_step_ = 1, channel_step_ = 1;  // in the buffer
  std::vector<float> buffer_;
};

// Calls f with the gamma that the loops are compiled for.
template <typename F>
inline auto with_gamma(double gamma, const F& f) {
  if (gamma == 2) return f(std::integral_constant<int, 2>());
  if (gamma == 1) return f(std::integral_constant<int, 1>());
  if (gamma == 0) return f(std::integral_constant<int, 0>());
  return f(std::integral_constant<int, kAnyGamma>());
}

}  // namespace ssd_fast::SSD_FAST_ISA
