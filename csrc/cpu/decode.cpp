// SPDX-License-Identifier: BSD-3-Clause
// CPU kernels of ssd_fast::encode and ssd_fast::decode. Contract: ssd_fast/ops/decode.py.
#include "../decode.h"

#include <cstring>
#include <optional>
#include <vector>

#include "tensors.h"

namespace ssd_fast {
namespace {

constexpr int64_t kGrain = 4096;  // rows a thread takes at least

// (P, 4) priors for rows in (image, prior) order: row r answers to prior r % P.
int64_t prior_rows(const Tensor& rows, const Tensor& priors, const char* name) {
  const int64_t period = priors.size(0);
  STD_TORCH_CHECK(rows.dim() >= 2 && rows.size(-1) == 4 && rows.size(-2) == period, name,
                  ": expected (..., ", period, ", 4)");
  return period;
}

Tensor encode_cpu(const Tensor& boxes_in, const Tensor& priors_in,
                  const std::vector<double>& variances_in) {
  const Tensor boxes = torch::stable::contiguous(boxes_in);
  const Tensor priors = contiguous_boxes(priors_in, "priors");
  STD_TORCH_CHECK(boxes.scalar_type() == ScalarType::Float && boxes.is_cpu(),
                  "boxes: expected float32 on the CPU");
  const int64_t period = prior_rows(boxes, priors, "boxes");
  const Variances variances = variances_of(variances_in);
  Tensor offsets = torch::stable::new_empty(boxes, boxes.sizes());
  const float* const box = float_data(boxes);
  const float* const prior = float_data(priors);
  float* const out = static_cast<float*>(offsets.mutable_data_ptr());
  torch::stable::parallel_for(0, boxes.numel() / 4, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      encode_box(box_at(box, r), box_at(prior, r % period), variances, out + 4 * r);
    }
  });
  return offsets;
}

Tensor decode_cpu(const Tensor& deltas_in, const Tensor& priors_in,
                  const std::vector<double>& variances_in, std::optional<double> max_log_scale) {
  const Tensor deltas = torch::stable::contiguous(deltas_in);
  const Tensor priors = contiguous_boxes(priors_in, "priors");
  STD_TORCH_CHECK(deltas.is_cpu(), "deltas: expected on the CPU");
  const int64_t period = prior_rows(deltas, priors, "deltas");
  const Variances variances = variances_of(variances_in);
  const float limit = scale_limit(max_log_scale);
  Tensor boxes = torch::stable::new_empty(deltas, deltas.sizes(), ScalarType::Float);
  const float* const prior = float_data(priors);
  float* const out = static_cast<float*>(boxes.mutable_data_ptr());
  visit_dtype(row_dtype(deltas, "deltas"), [&](auto* type) {
    const auto* const delta = static_cast<decltype(type)>(deltas.data_ptr());
    torch::stable::parallel_for(0, deltas.numel() / 4, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        float row[4];
        load_row(delta + 4 * r, 1, 4, row);
        const Box box = decode_box(row, box_at(prior, r % period), variances, limit);
        std::memcpy(out + 4 * r, &box, sizeof(box));
      }
    });
  });
  return boxes;
}

}  // namespace
}  // namespace ssd_fast

STABLE_TORCH_LIBRARY_IMPL(ssd_fast, CPU, m) {
  m.impl("encode", TORCH_BOX(&ssd_fast::encode_cpu));
  m.impl("decode", TORCH_BOX(&ssd_fast::decode_cpu));
}
