// SPDX-License-Identifier: BSD-3-Clause
// CPU kernels of ssd_fast::nms, batched_nms and nms_padded. Contract: ssd_fast/ops/nms.py.
#include "../nms.h"

#include <limits>
#include <optional>
#include <tuple>

#include "tensors.h"

namespace ssd_fast {
namespace {

// Writes the indices that are kept to what `room(n)` points at; returns how many.
template <typename Room>
int64_t keep_of(const Tensor& boxes_in, const Tensor& scores_in,
                const std::optional<Tensor>& idxs_in, double iou_threshold, const Room& room) {
  const Tensor boxes = contiguous_boxes(boxes_in, "boxes");
  const int64_t n = boxes.size(0);
  STD_TORCH_CHECK(n <= std::numeric_limits<int32_t>::max(), "boxes: expected fewer than 2^31");
  STD_TORCH_CHECK(scores_in.dim() == 1 && scores_in.size(0) == n &&
                      scores_in.scalar_type() == ScalarType::Float && scores_in.is_cpu(),
                  "scores: expected ", n, " float32 on the CPU");
  const Tensor scores = as_contiguous(scores_in);
  NmsJob job{float_data(boxes), float_data(scores), nullptr, n, round_down(iou_threshold)};
  if (!idxs_in) return SSD_FAST_KERNEL(keep_boxes)(job, room(n));
  const Tensor idxs = contiguous_ints(*idxs_in, n, "idxs");
  job.idxs = int64_data(idxs);
  return SSD_FAST_KERNEL(keep_boxes)(job, room(n));
}

Tensor indices(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
               double iou_threshold) {
  thread_local std::vector<int64_t> keep;
  const int64_t count = keep_of(boxes, scores, idxs, iou_threshold, [](int64_t n) {
    if (static_cast<int64_t>(keep.size()) < n) keep.resize(static_cast<size_t>(n));
    return keep.data();
  });
  Tensor result = empty_tensor({count}, ScalarType::Long);
  std::copy(keep.data(), keep.data() + count, static_cast<int64_t*>(result.mutable_data_ptr()));
  return result;
}

Tensor nms_cpu(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  return indices(boxes, scores, std::nullopt, iou_threshold);
}

Tensor batched_nms_cpu(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                       double iou_threshold) {
  return indices(boxes, scores, idxs, iou_threshold);
}

std::tuple<Tensor, Tensor> nms_padded_cpu(const Tensor& boxes, const Tensor& scores,
                                          double iou_threshold, const std::optional<Tensor>& idxs) {
  Tensor padded = empty_tensor({boxes.size(0)}, ScalarType::Long);
  Tensor count = empty_tensor({}, ScalarType::Long);
  int64_t* const out = static_cast<int64_t*>(padded.mutable_data_ptr());
  const int64_t kept = keep_of(boxes, scores, idxs, iou_threshold, [out](int64_t) { return out; });
  std::fill(out + kept, out + boxes.size(0), -1);
  *static_cast<int64_t*>(count.mutable_data_ptr()) = kept;
  return {padded, count};
}

}  // namespace
}  // namespace ssd_fast

STABLE_TORCH_LIBRARY_IMPL(ssd_fast, CPU, m) {
  m.impl("nms", TORCH_BOX(&ssd_fast::nms_cpu));
  m.impl("batched_nms", TORCH_BOX(&ssd_fast::batched_nms_cpu));
  m.impl("nms_padded", TORCH_BOX(&ssd_fast::nms_padded_cpu));
}
