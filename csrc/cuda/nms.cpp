// SPDX-License-Identifier: BSD-3-Clause
// ssd_fast::nms, batched_nms and nms_padded on CUDA tensors. Contract: ssd_fast/ops/nms.py.
//
// The kernels are nms.cu. Here are their launches, and what stands before them: torch's stable
// sort by score, and with classes another by class.
#include <cstdint>
#include <limits>
#include <optional>
#include <tuple>

#include "launch.h"
#include "tensors.h"

namespace ssd_fast {
namespace {

// Launches on a stream of torch's.
struct Launch {
  void* stream;

  template <typename Work>
  void operator()(const Work& work, int32_t blocks, int32_t threads) const {
    check_cuda(launch(work, blocks, threads, stream), "launching a kernel of nms");
  }
};

// What the public functions in Python have checked, as far as memory depends on it.
void check(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs) {
  const int32_t device = boxes.get_device_index();
  STD_TORCH_CHECK(boxes.dim() == 2 && boxes.size(1) == 4 &&
                      boxes.scalar_type() == ScalarType::Float && boxes.is_cuda(),
                  "boxes: expected (n, 4) float32 on a GPU");
  const int64_t n = boxes.size(0);
  // Positions are int32, and a tile may begin at the last one.
  STD_TORCH_CHECK(n <= std::numeric_limits<int32_t>::max() - (1 << 16),
                  "boxes: expected fewer than 2^31 - 2^16");
  STD_TORCH_CHECK(scores.dim() == 1 && scores.size(0) == n &&
                      scores.scalar_type() == ScalarType::Float && scores.is_cuda() &&
                      scores.get_device_index() == device,
                  "scores: expected ", n, " float32 on the GPU of the boxes");
  STD_TORCH_CHECK(
      !idxs || (idxs->dim() == 1 && idxs->size(0) == n && idxs->scalar_type() == ScalarType::Long &&
                idxs->is_cuda() && idxs->get_device_index() == device),
      "idxs: expected ", n, " int64 on the GPU of the boxes");
}

std::tuple<Tensor, Tensor> nms_padded_cuda(const Tensor& boxes_in, const Tensor& scores_in,
                                           double iou_threshold,
                                           const std::optional<Tensor>& idxs) {
  check(boxes_in, scores_in, idxs);
  const int32_t n = static_cast<int32_t>(boxes_in.size(0));
  const OnDevice guard(boxes_in.get_device_index());
  const Tensor boxes = torch::stable::contiguous(boxes_in);
  const Tensor scores = torch::stable::contiguous(scores_in);
  Tensor keep = torch::stable::new_empty(boxes, {n}, ScalarType::Long);
  Tensor count = torch::stable::new_empty(boxes, {}, ScalarType::Long);
  if (n == 0) return {keep, torch::stable::zero_(count)};

  const auto empty = [&boxes](int64_t size, ScalarType type) {
    return torch::stable::new_empty(boxes, {size}, type);
  };
  const int32_t words = ceil_div(n, kWord), tile = tile_size(n);
  const bool tiles = !idxs || n > kSegmentLimit;
  const Tensor kept = empty(words, ScalarType::Long), removed = empty(words, ScalarType::Long);
  Tensor keys = empty(n, ScalarType::Float);
  const Launch launch{current_stream(boxes.get_device_index())};
  Workspace workspace{data<uint64_t>(kept), data<uint64_t>(removed), nullptr, nullptr, tile};
  launch(PrepareKeys{data<float>(boxes), data<float>(scores), data<float>(keys), workspace, n},
         ceil_div(n, kThreads), kThreads);

  const auto [ranked_keys, order] = stable_sort(keys, /*descending=*/true);
  keys = ranked_keys;
  Ranking ranking{
      data<float>(boxes),       data<float>(keys), data<int64_t>(order), nullptr, nullptr, n,
      round_down(iou_threshold)};
  std::optional<std::tuple<Tensor, Tensor>> by_class;
  if (idxs) {
    by_class = stable_sort(take(*idxs, order), /*descending=*/false);
    ranking.classes = data<int64_t>(std::get<0>(*by_class));
    ranking.ranks = data<int64_t>(std::get<1>(*by_class));
  }
  const Tensor overlaps = empty(tiles ? int64_t{tile} * (tile / kWord) : 0, ScalarType::Long);
  const Tensor survivors = empty(tiles ? tile + 1 : 0, ScalarType::Int);
  workspace.overlaps = data<uint64_t>(overlaps);
  workspace.survivors = data<int32_t>(survivors);
  launch_suppression(launch, ranking, workspace, data<int64_t>(keep), data<int64_t>(count));
  return {keep, count};
}

// The one synchronisation: how many are kept is the shape of the result.
Tensor keep_of(const Tensor& boxes, const Tensor& scores, double iou_threshold,
               const std::optional<Tensor>& idxs) {
  const auto [keep, count] = nms_padded_cuda(boxes, scores, iou_threshold, idxs);
  if (keep.size(0) == 0) return keep;
  const OnDevice guard(boxes.get_device_index());
  int64_t kept = 0;
  check_cuda(read_number(count.data_ptr(), &kept, current_stream(boxes.get_device_index())),
             "reading the count");
  Tensor padded = keep;
  return torch::stable::narrow(padded, 0, 0, kept);
}

Tensor nms_cuda(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  return keep_of(boxes, scores, iou_threshold, std::nullopt);
}

Tensor batched_nms_cuda(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                        double iou_threshold) {
  return keep_of(boxes, scores, iou_threshold, idxs);
}

}  // namespace
}  // namespace ssd_fast

STABLE_TORCH_LIBRARY_IMPL(ssd_fast, CUDA, m) {
  m.impl("nms", TORCH_BOX(&ssd_fast::nms_cuda));
  m.impl("batched_nms", TORCH_BOX(&ssd_fast::batched_nms_cuda));
  m.impl("nms_padded", TORCH_BOX(&ssd_fast::nms_padded_cuda));
}
