// SPDX-License-Identifier: BSD-3-Clause
// CPU kernel of ssd_fast::mine. Contract: ssd_fast/ops/mine.py.
#include "../mine.h"

#include "tensors.h"

namespace ssd_fast {
namespace {

Tensor mine_cpu(const Tensor& loss_in, const Tensor& match_in, double ratio,
                int64_t min_negatives) {
  STD_TORCH_CHECK(loss_in.dim() == 2 && loss_in.scalar_type() == ScalarType::Float,
                  "loss: expected (B, P) float32");
  const int64_t B = loss_in.size(0), P = loss_in.size(1);
  STD_TORCH_CHECK(match_in.dim() == 2 && match_in.size(0) == B && match_in.size(1) == P &&
                      match_in.scalar_type() == ScalarType::Int && match_in.is_cpu(),
                  "match: expected (B, P) int32 on the CPU");
  const Tensor loss = torch::stable::contiguous(loss_in);
  const Tensor match = torch::stable::contiguous(match_in);
  Tensor selected = torch::stable::new_zeros(loss, {B, P}, ScalarType::Bool);
  const MineJob job{
      float_data(loss), static_cast<const int32_t*>(match.data_ptr()), P, static_cast<float>(ratio),
      min_negatives,    static_cast<bool*>(selected.data_ptr())};
  const auto mine_images = SSD_FAST_KERNEL(mine_images);
  torch::stable::parallel_for(0, B, 1,
                              [&](int64_t begin, int64_t end) { mine_images(job, begin, end); });
  return selected;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ssd_fast, CPU, m) { m.impl("mine", TORCH_BOX(&mine_cpu)); }

}  // namespace ssd_fast
