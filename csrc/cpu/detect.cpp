// SPDX-License-Identifier: BSD-3-Clause
// CPU kernel of ssd_fast::detect. Contract: ssd_fast/ops/detect.py.
#include "../detect.h"

#include <optional>
#include <tuple>

#include "tensors.h"

namespace ssd_fast {
namespace {

// The bounds of each image: 4 for all of them, 4 for each, or none.
struct Clip {
  std::vector<float> bounds;
  int64_t stride = 0;

  Clip(const std::optional<std::vector<double>>& all, const std::optional<Tensor>& each,
       int64_t batch) {
    if (all) {
      STD_TORCH_CHECK(all->size() == 4, "clip: expected 4 numbers");
      bounds.assign(all->begin(), all->end());
    } else if (each) {
      const Tensor boxes = contiguous_boxes(*each, "image_clip");
      STD_TORCH_CHECK(boxes.size(0) == batch, "image_clip: expected ", batch, " rows");
      bounds.assign(float_data(boxes), float_data(boxes) + 4 * batch);
      stride = 4;
    }
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> detect_cpu(
    const std::vector<Tensor>& deltas, const std::vector<Tensor>& logits, const Tensor& priors_in,
    double score_threshold, int64_t top_k, double iou_threshold, int64_t max_detections,
    const std::vector<double>& variances, int64_t background_index,
    const std::optional<std::vector<double>>& clip_all, const std::optional<Tensor>& clip_each,
    std::optional<double> max_log_scale, int64_t nms, double sigma, int64_t scores_by) {
  const Tensor priors = contiguous_boxes(priors_in, "priors");
  const HeadRows heads = head_rows(deltas, logits, priors);
  const int64_t B = heads.batch, K = max_detections;
  STD_TORCH_CHECK(scores_by >= 0 && scores_by <= static_cast<int64_t>(Scores::kSigmoid),
                  "scores: expected 0 or 1, got ", scores_by);
  const int64_t lowest = static_cast<Scores>(scores_by) == Scores::kSigmoid ? -1 : 0;
  STD_TORCH_CHECK(background_index >= lowest && background_index < heads.classes,
                  "background_index: expected a class, got ", background_index);
  STD_TORCH_CHECK(top_k >= 0 && K >= 0, "top_k, max_detections: expected at least 0");
  STD_TORCH_CHECK(heads.priors == 0 || heads.classes <= (int64_t{1} << 32) / heads.priors,
                  "logits: expected at most 2^32 an image");
  STD_TORCH_CHECK(nms >= 0 && nms <= static_cast<int64_t>(Nms::kDiou),
                  "nms: expected from 0 to 3, got ", nms);
  STD_TORCH_CHECK(sigma > 0, "sigma: expected more than 0, got ", sigma);
  const Clip clip(clip_all, clip_each, B);
  const DetectOptions options{static_cast<float>(score_threshold),
                              top_k,
                              round_down(iou_threshold),
                              K,
                              variances_of(variances),
                              background_index,
                              scale_limit(max_log_scale),
                              static_cast<Nms>(nms),
                              static_cast<float>(sigma),
                              static_cast<Scores>(scores_by)};

  Tensor boxes = empty_tensor({B, K, 4}, ScalarType::Float);
  Tensor scores = empty_tensor({B, K}, ScalarType::Float);
  Tensor labels = empty_tensor({B, K}, ScalarType::Long);
  Tensor counts = empty_tensor({B}, ScalarType::Long);
  const DetectJob job{heads.deltas,
                      heads.logits,
                      float_data(priors),
                      heads.priors,
                      options,
                      clip.bounds.empty() ? nullptr : clip.bounds.data(),
                      clip.stride,
                      static_cast<float*>(boxes.mutable_data_ptr()),
                      static_cast<float*>(scores.mutable_data_ptr()),
                      static_cast<int64_t*>(labels.mutable_data_ptr()),
                      static_cast<int64_t*>(counts.mutable_data_ptr())};
  const auto detect_images = SSD_FAST_KERNEL(detect_images);
  torch::stable::parallel_for(0, B, 1,
                              [&](int64_t begin, int64_t end) { detect_images(job, begin, end); });
  return {boxes, scores, labels, counts};
}

}  // namespace
}  // namespace ssd_fast

STABLE_TORCH_LIBRARY_IMPL(ssd_fast, CPU, m) { m.impl("detect", TORCH_BOX(&ssd_fast::detect_cpu)); }
