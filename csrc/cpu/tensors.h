// SPDX-License-Identifier: BSD-3-Clause
// Tensors of the LibTorch stable ABI as the plain pointers and rows of the algorithms.
// The public functions in Python check shapes and name arguments; here stands only what memory
// safety needs.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "../rows.h"

namespace ssd_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// `tensor`, or a contiguous copy. That it is contiguous already is told without the dispatcher,
// which costs half a microsecond, and a hundred where the caches are cold.
inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// A contiguous CPU tensor, not initialised, without the dispatcher.
inline Tensor empty_tensor(std::initializer_list<int64_t> sizes, ScalarType type) {
  std::array<int64_t, 4> strides;
  STD_TORCH_CHECK(sizes.size() <= strides.size(), "expected at most 4 dimensions");
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(sizes.begin()[i], 1);
  }
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.begin(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
      aoti_torch_device_type_cpu(), -1, &handle));
  return Tensor(handle);
}

// A new tensor of the same sizes, strides and dtype; of one with gaps or overlaps, a dense one.
inline Tensor empty_tensor_like(const Tensor& tensor) {
  if (!tensor.is_contiguous()) return torch::stable::empty_like(tensor);
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      tensor.dim(), tensor.sizes().data(), tensor.strides().data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(tensor.scalar_type())),
      aoti_torch_device_type_cpu(), -1, &handle));
  return Tensor(handle);
}

// A contiguous (n, 4) float32 tensor.
inline Tensor contiguous_boxes(const Tensor& boxes, const char* name) {
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 4 &&
                      boxes.scalar_type() == ScalarType::Float && boxes.is_cpu(),
                  name, ": expected (n, 4) float32 on the CPU");
  return as_contiguous(boxes);
}

// A contiguous vector of `size` int64.
inline Tensor contiguous_ints(const Tensor& vector, int64_t size, const char* name) {
  STD_TORCH_CHECK(vector.dim() == 1 && vector.size(0) == size &&
                      vector.scalar_type() == ScalarType::Long && vector.is_cpu(),
                  name, ": expected ", size, " int64 on the CPU");
  return as_contiguous(vector);
}

inline const float* float_data(const Tensor& tensor) {
  return static_cast<const float*>(tensor.data_ptr());
}

inline const int64_t* int64_data(const Tensor& tensor) {
  return static_cast<const int64_t*>(tensor.data_ptr());
}

inline Dtype row_dtype(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Half:
      return Dtype::kFloat16;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    default:
      STD_TORCH_CHECK(false, name, ": expected float32, float16 or bfloat16");
  }
}

// The rows of the heads' outputs where they lie. `anchors` of a map are found from the deltas.
inline Rows rows_of(const std::vector<Tensor>& tensors, const std::vector<int64_t>& anchors,
                    int64_t batch, const char* name) {
  STD_TORCH_CHECK(!tensors.empty() && tensors.size() == anchors.size(), name,
                  ": expected as many levels of deltas as of logits, at least one");
  Rows rows{{}, -1, row_dtype(tensors[0], name)};
  rows.levels.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& t = tensors[i];
    STD_TORCH_CHECK((t.dim() == 3 || t.dim() == 4) && t.size(0) == batch && t.is_cpu() &&
                        row_dtype(t, name) == rows.dtype,
                    name, ": expected (B, P, K) or (B, A * K, H, W), one dtype, on the CPU");
    Level level{};
    level.data = t.data_ptr();
    level.batch_stride = t.stride(0);
    int64_t channels;
    if (t.dim() == 3) {
      channels = t.size(2);
      level.rows = level.width = t.size(1);
      level.anchors = 1;
      level.x_stride = t.stride(1);
      level.channel_stride = t.stride(2);
    } else {
      STD_TORCH_CHECK(anchors[i] > 0 && t.size(1) % anchors[i] == 0, name,
                      ": channels do not divide into the boxes of a cell");
      channels = t.size(1) / anchors[i];
      level.anchors = anchors[i];
      level.width = t.size(3);
      level.rows = anchors[i] * t.size(2) * t.size(3);
      level.channel_stride = t.stride(1);
      level.anchor_stride = channels * t.stride(1);
      level.y_stride = t.stride(2);
      level.x_stride = t.stride(3);
    }
    STD_TORCH_CHECK(rows.channels == -1 || rows.channels == channels, name,
                    ": levels differ in channels");
    rows.channels = channels;
    rows.levels.push_back(level);
  }
  return rows;
}

struct HeadRows {
  Rows deltas;
  Rows logits;
  int64_t batch;
  int64_t priors;
  int64_t classes;
};

// Deltas and logits of a batch, checked against each other and `priors` (P, 4).
inline HeadRows head_rows(const std::vector<Tensor>& deltas, const std::vector<Tensor>& logits,
                          const Tensor& priors) {
  STD_TORCH_CHECK(!deltas.empty() && deltas.size() == logits.size(),
                  "logits: expected as many levels as deltas, at least one");
  std::vector<int64_t> anchors;
  anchors.reserve(deltas.size());
  for (const Tensor& t : deltas) {
    STD_TORCH_CHECK(t.dim() == 3 || t.dim() == 4, "deltas: expected (B, P, 4) or (B, A * 4, H, W)");
    anchors.push_back(t.dim() == 4 ? t.size(1) / 4 : 1);
  }
  const int64_t batch = deltas[0].size(0);
  HeadRows heads{rows_of(deltas, anchors, batch, "deltas"),
                 rows_of(logits, anchors, batch, "logits"), batch, 0, 0};
  STD_TORCH_CHECK(heads.deltas.channels == 4, "deltas: expected 4 numbers a row");
  for (size_t i = 0; i < deltas.size(); ++i) {
    STD_TORCH_CHECK(heads.deltas.levels[i].rows == heads.logits.levels[i].rows &&
                        heads.deltas.levels[i].width == heads.logits.levels[i].width &&
                        deltas[i].dim() == logits[i].dim(),
                    "logits: level ", i, " has other rows than its deltas");
    heads.priors += heads.deltas.levels[i].rows;
  }
  STD_TORCH_CHECK(priors.size(0) == heads.priors, "priors: expected ", heads.priors, " rows, got ",
                  priors.size(0));
  heads.classes = heads.logits.channels;
  return heads;
}

}  // namespace ssd_fast
