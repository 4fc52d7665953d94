// SPDX-License-Identifier: BSD-3-Clause
// CPU kernels of ssd_fast::encode and ssd_fast::decode. Contract: ssd_fast/ops/decode.py.
#include "../decode.h"

#include <optional>
#include <vector>

#include "tensors.h"

namespace ssd_fast {
namespace {

constexpr int64_t kGrain = 4096;  // rows a thread takes at least

// P of (P, 4) priors for (..., P, 4) rows.
int64_t prior_rows(const Tensor& rows, const Tensor& priors, const char* name) {
  const int64_t period = priors.size(0);
  STD_TORCH_CHECK(rows.dim() >= 2 && rows.size(-1) == 4 && rows.size(-2) == period, name,
                  ": expected (..., ", period, ", 4)");
  return period;
}

Tensor encode_cpu(const Tensor& boxes_in, const Tensor& priors_in,
                  const std::vector<double>& variances) {
  const Tensor boxes = torch::stable::contiguous(boxes_in);
  const Tensor priors = contiguous_boxes(priors_in, "priors");
  STD_TORCH_CHECK(boxes.scalar_type() == ScalarType::Float && boxes.is_cpu(),
                  "boxes: expected float32 on the CPU");
  Tensor offsets = torch::stable::new_empty(boxes, boxes.sizes());
  const DecodeJob job{boxes.data_ptr(),
                      Dtype::kFloat32,
                      float_data(priors),
                      prior_rows(boxes, priors, "boxes"),
                      variances_of(variances),
                      scale_limit(std::nullopt),
                      static_cast<float*>(offsets.mutable_data_ptr())};
  const auto encode_rows = SSD_FAST_KERNEL(encode_rows);
  torch::stable::parallel_for(0, boxes.numel() / 4, kGrain,
                              [&](int64_t begin, int64_t end) { encode_rows(job, begin, end); });
  return offsets;
}

Tensor decode_cpu(const Tensor& deltas_in, const Tensor& priors_in,
                  const std::vector<double>& variances, std::optional<double> max_log_scale) {
  const Tensor deltas = torch::stable::contiguous(deltas_in);
  const Tensor priors = contiguous_boxes(priors_in, "priors");
  STD_TORCH_CHECK(deltas.is_cpu(), "deltas: expected on the CPU");
  Tensor boxes = torch::stable::new_empty(deltas, deltas.sizes(), ScalarType::Float);
  const DecodeJob job{deltas.data_ptr(),
                      row_dtype(deltas, "deltas"),
                      float_data(priors),
                      prior_rows(deltas, priors, "deltas"),
                      variances_of(variances),
                      scale_limit(max_log_scale),
                      static_cast<float*>(boxes.mutable_data_ptr())};
  const auto decode_rows = SSD_FAST_KERNEL(decode_rows);
  torch::stable::parallel_for(0, deltas.numel() / 4, kGrain,
                              [&](int64_t begin, int64_t end) { decode_rows(job, begin, end); });
  return boxes;
}

}  // namespace
}  // namespace ssd_fast

STABLE_TORCH_LIBRARY_IMPL(ssd_fast, CPU, m) {
  m.impl("encode", TORCH_BOX(&ssd_fast::encode_cpu));
  m.impl("decode", TORCH_BOX(&ssd_fast::decode_cpu));
}
