// SPDX-License-Identifier: BSD-3-Clause
// CPU kernels of ssd_fast::focal_loss and its backward. Contract: ssd_fast/ops/focal_loss.py.
#include "../focal_loss.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "gradient_memory.h"
#include "loss_tensors.h"
#include "tensors.h"

namespace ssd_fast {
namespace {

RowOptions row_options(int64_t box_loss, double beta, const std::vector<double>& variances,
                       int64_t background, int64_t classes) {
  STD_TORCH_CHECK(variances.size() == 4, "variances: expected 4 numbers");
  STD_TORCH_CHECK(background >= -1 && background < classes,
                  "background_index: expected a class or -1, got ", background);
  RowOptions options{};
  options.box_loss = static_cast<BoxLoss>(box_loss);
  options.beta = beta;
  std::copy(variances.begin(), variances.end(), options.variances);
  options.background = background;
  return options;
}

FocalOptions focal_options(double alpha, double gamma) {
  STD_TORCH_CHECK(gamma >= 0, "gamma: expected at least 0, got ", gamma);
  gamma = static_cast<float>(gamma);  // what the loops raise to, and what picks them
  if (alpha < 0) return {1, 1, gamma};
  return {alpha, 1 - alpha, gamma};
}

// The batch in pieces that are worth waking a thread for, image by image.
std::vector<FocalChunk> chunks_of(const Rows& logits, int64_t batch) {
  constexpr int64_t kLogits = 1 << 15;
  std::vector<FocalChunk> chunks;
  for (int64_t image = 0; image < batch; ++image) {
    int64_t prior = 0;
    for (size_t l = 0; l < logits.levels.size(); ++l) {
      const Level& level = logits.levels[l];
      const int64_t cells = level.rows == 0 ? 0 : level.cells();
      const int64_t step = kLogits / std::max<int64_t>(level.anchors * logits.channels, 1) + 1;
      for (int64_t begin = 0; begin < cells; begin += step) {
        chunks.push_back({l, image, begin, std::min(begin + step, cells), prior});
      }
      prior += level.rows;
    }
  }
  return chunks;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> focal_loss_cpu(
    const std::vector<Tensor>& deltas, const std::vector<Tensor>& logits, const Tensor& priors_in,
    const Tensor& boxes, const Tensor& labels, const Tensor& offsets,
    const std::optional<Tensor>& matches, double iou_threshold, std::optional<double> low_threshold,
    bool strict, int64_t assign, std::optional<double> ignore_threshold, int64_t box_loss_kind,
    double beta, const std::vector<double>& variances, double alpha, double gamma,
    int64_t background_index, int64_t normalizer) {
  const Tensor priors = contiguous_boxes(priors_in, "priors");
  const HeadRows heads = head_rows(deltas, logits, priors);
  const int64_t B = heads.batch, P = heads.priors;
  const HeldObjects held(boxes, labels, offsets, B);
  const HeldMatches given(matches, B, P);
  Tensor code = empty_tensor({B, P}, ScalarType::Int);
  Tensor num_positives = empty_tensor({B}, ScalarType::Long);
  int64_t* positives = static_cast<int64_t*>(num_positives.data_ptr());
  std::vector<ImageBoxes> image_boxes(static_cast<size_t>(B));
  const FocalForwardJob job{
      {heads.deltas, heads.logits, float_data(priors), P, held.view(),
       row_options(box_loss_kind, beta, variances, background_index, heads.classes)},
      focal_options(alpha, gamma),
      {match_options(iou_threshold, low_threshold, strict, assign), given.view(),
       as_float(ignore_threshold), bounded_blocks(float_data(priors), P)},
      static_cast<int32_t*>(code.data_ptr()),
      image_boxes.data()};
  const auto assign_images = SSD_FAST_KERNEL(focal_assign_images);
  torch::stable::parallel_for(0, B, 1,
                              [&](int64_t begin, int64_t end) { assign_images(job, begin, end); });
  const std::vector<FocalChunk> chunks = chunks_of(heads.logits, B);
  std::vector<double> losses(chunks.size());
  const auto loss_chunk = SSD_FAST_KERNEL(focal_loss_chunk);
  torch::stable::parallel_for(0, static_cast<int64_t>(chunks.size()), 1,
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i) {
                                  losses[i] = loss_chunk(job, chunks[i]);
                                }
                              });

  // Chunk by chunk, in order: the sum is the same for any number of threads.
  for (int64_t image = 0; image < B; ++image) positives[image] = image_boxes[image].positives;
  const int64_t batch_positives = total(positives, B);
  const auto weight = [&](int64_t image) {
    return image_weight(static_cast<Normalizer>(normalizer), positives[image], batch_positives, B);
  };
  double box_sum = 0, class_sum = 0;
  for (int64_t image = 0; image < B; ++image) box_sum += weight(image) * image_boxes[image].loss;
  for (size_t i = 0; i < chunks.size(); ++i) class_sum += weight(chunks[i].image) * losses[i];
  Tensor box_loss = empty_tensor({}, ScalarType::Float);
  Tensor class_loss = empty_tensor({}, ScalarType::Float);
  *static_cast<float*>(box_loss.data_ptr()) = static_cast<float>(box_sum);
  *static_cast<float*>(class_loss.data_ptr()) = static_cast<float>(class_sum);
  return {box_loss, class_loss, num_positives, code};
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>> focal_loss_backward_cpu(
    const Tensor& grad_box_loss, const Tensor& grad_class_loss, const std::vector<Tensor>& deltas,
    const std::vector<Tensor>& logits, const Tensor& priors_in, const Tensor& boxes,
    const Tensor& labels, const Tensor& offsets, const Tensor& code_in,
    const Tensor& num_positives_in, int64_t box_loss_kind, double beta,
    const std::vector<double>& variances, double alpha, double gamma, int64_t background_index,
    int64_t normalizer) {
  const Tensor priors = contiguous_boxes(priors_in, "priors");
  const HeadRows heads = head_rows(deltas, logits, priors);
  const int64_t B = heads.batch, P = heads.priors;
  const HeldObjects held(boxes, labels, offsets, B);
  const Tensor num_positives = contiguous_ints(num_positives_in, B, "num_positives");
  const Tensor code = contiguous_code(code_in, B, P);
  const double box_scale = scalar(grad_box_loss, "grad_box_loss");
  const double class_scale = scalar(grad_class_loss, "grad_class_loss");

  GradientMemory memory({&deltas, &logits});
  const std::vector<Tensor> grad_deltas = memory.like(deltas);
  memory.fill_with_zeros();
  const std::vector<Tensor> grad_logits = memory.like(logits);
  if (B == 0 || P == 0) return {grad_deltas, grad_logits};
  const HeadRows grads = head_rows(grad_deltas, grad_logits, priors);
  const int64_t* positives = int64_data(num_positives);
  const int64_t batch_positives = total(positives, B);
  std::vector<double> scales(static_cast<size_t>(2 * B));
  for (int64_t image = 0; image < B; ++image) {
    const double weight =
        image_weight(static_cast<Normalizer>(normalizer), positives[image], batch_positives, B);
    scales[image] = weight * box_scale;
    scales[B + image] = weight * class_scale;
  }
  const FocalBackwardJob job{
      {heads.deltas, heads.logits, float_data(priors), P, held.view(),
       row_options(box_loss_kind, beta, variances, background_index, heads.classes)},
      focal_options(alpha, gamma),
      static_cast<const int32_t*>(code.data_ptr()),
      scales.data(),
      scales.data() + B,
      grads.deltas,
      grads.logits};
  const auto boxes_backward = SSD_FAST_KERNEL(focal_boxes_backward);
  torch::stable::parallel_for(0, B, 1,
                              [&](int64_t begin, int64_t end) { boxes_backward(job, begin, end); });
  const std::vector<FocalChunk> chunks = chunks_of(heads.logits, B);
  const auto chunk_backward = SSD_FAST_KERNEL(focal_loss_chunk_backward);
  torch::stable::parallel_for(0, static_cast<int64_t>(chunks.size()), 1,
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i)
                                  chunk_backward(job, chunks[i]);
                              });
  return {grad_deltas, grad_logits};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ssd_fast, CPU, m) {
  m.impl("focal_loss", TORCH_BOX(&focal_loss_cpu));
  m.impl("focal_loss_backward", TORCH_BOX(&focal_loss_backward_cpu));
}

}  // namespace ssd_fast
