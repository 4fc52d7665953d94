// SPDX-License-Identifier: BSD-3-Clause
// CPU kernel of ssd_fast::match. Contract: ssd_fast/ops/match.py.
#include "../match.h"

#include <optional>

#include "tensors.h"

namespace ssd_fast {
namespace {

Tensor match_cpu(const Tensor& priors_in, const Tensor& boxes_in, const Tensor& offsets_in,
                 double iou_threshold, std::optional<double> low_threshold, bool strict,
                 int64_t assign) {
  const Tensor priors = contiguous_boxes(priors_in, "priors");
  const Tensor boxes = contiguous_boxes(boxes_in, "boxes");
  const Tensor offsets = contiguous_ints(offsets_in, offsets_in.numel(), "offsets");
  STD_TORCH_CHECK(offsets.size(0) > 0, "offsets: expected (B + 1,) int64");
  const int64_t P = priors.size(0), N = boxes.size(0), B = offsets.size(0) - 1;
  Tensor matched = empty_tensor({B, P}, ScalarType::Int);
  const MatchJob job{bounded_blocks(float_data(priors), P),
                     P,
                     {float_data(boxes), nullptr, int64_data(offsets), N},
                     match_options(iou_threshold, low_threshold, strict, assign),
                     static_cast<int32_t*>(matched.data_ptr())};
  const auto match_images = SSD_FAST_KERNEL(match_images);
  torch::stable::parallel_for(0, B, 1,
                              [&](int64_t begin, int64_t end) { match_images(job, begin, end); });
  return matched;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ssd_fast, CPU, m) { m.impl("match", TORCH_BOX(&match_cpu)); }

}  // namespace ssd_fast
