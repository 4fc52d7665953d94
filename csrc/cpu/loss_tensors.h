// SPDX-License-Identifier: BSD-3-Clause
// The tensors that losses take and return beside the heads' outputs.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "../assignment.h"
#include "tensors.h"

namespace ssd_fast {

// The ragged targets of a batch, contiguous, with their memory kept alive.
struct HeldObjects {
  Tensor boxes, labels, offsets;

  HeldObjects(const Tensor& boxes_in, const Tensor& labels_in, const Tensor& offsets_in,
              int64_t batch)
      : boxes(contiguous_boxes(boxes_in, "boxes")),
        labels(contiguous_ints(labels_in, boxes_in.size(0), "labels")),
        offsets(contiguous_ints(offsets_in, batch + 1, "offsets")) {}

  Objects view() const {
    return {float_data(boxes), int64_data(labels), int64_data(offsets), boxes.size(0)};
  }
};

// (B, P) int32 or int64, contiguous, with their memory kept alive; or none.
struct HeldMatches {
  std::optional<Tensor> matches;

  HeldMatches(const std::optional<Tensor>& given, int64_t batch, int64_t priors) {
    if (!given) return;
    STD_TORCH_CHECK(
        given->dim() == 2 && given->size(0) == batch && given->size(1) == priors &&
            given->is_cpu() &&
            (given->scalar_type() == ScalarType::Int || given->scalar_type() == ScalarType::Long),
        "matches: expected (B, P) int32 or int64 on the CPU");
    matches = as_contiguous(*given);
  }

  GivenMatches view() const {
    if (!matches) return {nullptr, nullptr};
    if (matches->scalar_type() == ScalarType::Long) return {nullptr, int64_data(*matches)};
    return {static_cast<const int32_t*>(matches->data_ptr()), nullptr};
  }
};

// What each row of a batch is, (B, P) int32, contiguous.
inline Tensor contiguous_code(const Tensor& code, int64_t batch, int64_t priors) {
  STD_TORCH_CHECK(code.dim() == 2 && code.size(0) == batch && code.size(1) == priors &&
                      code.scalar_type() == ScalarType::Int && code.is_cpu(),
                  "code: expected (B, P) int32 on the CPU");
  return as_contiguous(code);
}

inline std::optional<float> as_float(std::optional<double> value) {
  if (!value) return std::nullopt;
  return static_cast<float>(*value);
}

inline int64_t total(const int64_t* counts, int64_t n) {
  int64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += counts[i];
  return sum;
}

inline float scalar(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(
      tensor.numel() == 1 && tensor.scalar_type() == ScalarType::Float && tensor.is_cpu(), name,
      ": expected one float32 on the CPU");
  return *float_data(tensor);
}

}  // namespace ssd_fast
