// SPDX-License-Identifier: BSD-3-Clause
// CPU kernels of ssd_fast::nms, batched_nms and nms_padded. Contract: ssd_fast/ops/nms.py.
#include "../nms.h"

#include <limits>
#include <optional>
#include <tuple>

#include "tensors.h"

namespace ssd_fast {
namespace {

std::vector<int64_t> keep_of(const Tensor& boxes_in, const Tensor& scores_in,
                             const std::optional<Tensor>& idxs_in, double iou_threshold) {
  const Tensor boxes = contiguous_boxes(boxes_in, "boxes");
  const int64_t n = boxes.size(0);
  STD_TORCH_CHECK(n <= std::numeric_limits<int32_t>::max(), "boxes: expected fewer than 2^31");
  STD_TORCH_CHECK(scores_in.dim() == 1 && scores_in.size(0) == n &&
                      scores_in.scalar_type() == ScalarType::Float && scores_in.is_cpu(),
                  "scores: expected ", n, " float32 on the CPU");
  const Tensor scores = torch::stable::contiguous(scores_in);
  if (!idxs_in) return nms(float_data(boxes), float_data(scores), nullptr, n, iou_threshold);
  const Tensor idxs = contiguous_ints(*idxs_in, n, "idxs");
  return nms(float_data(boxes), float_data(scores), int64_data(idxs), n, iou_threshold);
}

Tensor indices(const std::vector<int64_t>& keep, const Tensor& like) {
  Tensor result =
      torch::stable::new_empty(like, {static_cast<int64_t>(keep.size())}, ScalarType::Long);
  std::copy(keep.begin(), keep.end(), static_cast<int64_t*>(result.mutable_data_ptr()));
  return result;
}

Tensor nms_cpu(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  return indices(keep_of(boxes, scores, std::nullopt, iou_threshold), boxes);
}

Tensor batched_nms_cpu(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                       double iou_threshold) {
  return indices(keep_of(boxes, scores, idxs, iou_threshold), boxes);
}

std::tuple<Tensor, Tensor> nms_padded_cpu(const Tensor& boxes, const Tensor& scores,
                                          double iou_threshold, const std::optional<Tensor>& idxs) {
  const std::vector<int64_t> keep = keep_of(boxes, scores, idxs, iou_threshold);
  Tensor padded = torch::stable::new_empty(boxes, {boxes.size(0)}, ScalarType::Long);
  Tensor count = torch::stable::new_empty(boxes, {}, ScalarType::Long);
  int64_t* const out = static_cast<int64_t*>(padded.mutable_data_ptr());
  std::fill(std::copy(keep.begin(), keep.end(), out), out + boxes.size(0), -1);
  *static_cast<int64_t*>(count.mutable_data_ptr()) = static_cast<int64_t>(keep.size());
  return {padded, count};
}

}  // namespace
}  // namespace ssd_fast

STABLE_TORCH_LIBRARY_IMPL(ssd_fast, CPU, m) {
  m.impl("nms", TORCH_BOX(&ssd_fast::nms_cpu));
  m.impl("batched_nms", TORCH_BOX(&ssd_fast::batched_nms_cpu));
  m.impl("nms_padded", TORCH_BOX(&ssd_fast::nms_padded_cpu));
}
