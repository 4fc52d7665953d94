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
  const MatchOptions options = match_options(iou_threshold, low_threshold, strict, assign);
  const int64_t P = priors.size(0), N = boxes.size(0), B = offsets.size(0) - 1;
  Tensor matched = torch::stable::new_empty(priors, {B, P}, ScalarType::Int);
  int32_t* out = static_cast<int32_t*>(matched.data_ptr());
  const PriorPlanes planes(float_data(priors), P);
  torch::stable::parallel_for(0, B, 1, [&](int64_t begin, int64_t end) {
    Matcher matcher(planes, options);
    for (int64_t image = begin; image < end; ++image) {
      const RowRange range = image_rows(int64_data(offsets), image, N);
      matcher.match(
          float_data(boxes) + 4 * range.begin, range.count, [](int64_t) { return true; },
          out + image * P);
    }
  });
  return matched;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ssd_fast, CPU, m) { m.impl("match", TORCH_BOX(&match_cpu)); }

}  // namespace ssd_fast
