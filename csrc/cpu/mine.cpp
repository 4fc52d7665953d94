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
  bool* out = static_cast<bool*>(selected.data_ptr());
  const int32_t* matched = static_cast<const int32_t*>(match.data_ptr());
  torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
    Miner miner;
    for (int64_t image = begin; image < end; ++image) {
      const int32_t* row = matched + image * P;
      const int64_t positives = std::count_if(row, row + P, [](int32_t m) { return m >= 0; });
      const int64_t candidates = std::count(row, row + P, kBackground);
      const int64_t k =
          negatives_wanted(static_cast<float>(ratio), positives, min_negatives, candidates);
      miner.select(float_data(loss) + image * P, row, P, k,
                   [&](int64_t p) { out[image * P + p] = true; });
    }
  });
  return selected;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ssd_fast, CPU, m) { m.impl("mine", TORCH_BOX(&mine_cpu)); }

}  // namespace ssd_fast
