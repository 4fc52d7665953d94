// SPDX-License-Identifier: BSD-3-Clause
// CPU kernels of ssd_fast::multibox_loss, its backward, and the part of that which is not zero.
// Contracts: ssd_fast/ops/multibox_loss.py, ssd_fast/ops/_touched_cells.py.
#include "../multibox_loss.h"

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

// The options that forward and backward share, with the weights' memory kept alive.
struct HeldOptions {
  std::optional<Tensor> weights;
  RowOptions view;

  HeldOptions(const std::optional<Tensor>& class_weights, int64_t box_loss, double beta,
              const std::vector<double>& variances, double smoothing, int64_t background,
              int64_t classes)
      : view{} {
    STD_TORCH_CHECK(variances.size() == 4, "variances: expected 4 numbers");
    STD_TORCH_CHECK(background >= 0 && background < classes,
                    "background_index: expected a class, got ", background);
    view.box_loss = static_cast<BoxLoss>(box_loss);
    view.beta = beta;
    std::copy(variances.begin(), variances.end(), view.variances);
    view.classes = {nullptr, smoothing, static_cast<double>(classes)};
    view.background = background;
    if (!class_weights) return;
    STD_TORCH_CHECK(class_weights->dim() == 1 && class_weights->size(0) == classes &&
                        class_weights->scalar_type() == ScalarType::Float &&
                        class_weights->is_cpu(),
                    "class_weights: expected ", classes, " float32 on the CPU");
    weights = as_contiguous(*class_weights);
    view.classes.weights = float_data(*weights);
    view.classes.weight_sum = 0;
    for (int64_t c = 0; c < classes; ++c) view.classes.weight_sum += view.classes.weights[c];
  }
};

// A batch of fewer images than threads: the pass over the logits, most of the work, is shared out
// in chunks of cells. Returns the (B, P) keys, good until this thread's next call, or null where
// each thread is to compute those of its own images.
const float* rough_keys_in_chunks(const LossInputs& inputs, int64_t batch) {
  constexpr int64_t kChunk = 1 << 16;  // logits, enough to outweigh waking a thread
  const int64_t threads = torch::stable::get_num_threads();
  if (batch >= threads || inputs.P * inputs.logits.channels < 4 * kChunk) return nullptr;
  struct Chunk {
    size_t level;
    int64_t image, begin, end;
    float* keys;
  };
  thread_local std::vector<Chunk> chunks;
  thread_local std::vector<float> keys;
  keys.resize(static_cast<size_t>(batch * inputs.P));
  chunks.clear();
  float* level_keys = keys.data();
  for (int64_t image = 0; image < batch; ++image) {
    for (size_t l = 0; l < inputs.logits.levels.size(); ++l) {
      const Level& level = inputs.logits.levels[l];
      const int64_t step = kChunk / (level.anchors * inputs.logits.channels) + 1;
      for (int64_t begin = 0; begin < level.cells(); begin += step) {
        chunks.push_back({l, image, begin, std::min(begin + step, level.cells()), level_keys});
      }
      level_keys += level.rows;
    }
  }
  const auto rough_keys = SSD_FAST_KERNEL(rough_keys_of_cells);
  const Chunk* all = chunks.data();
  torch::stable::parallel_for(0, static_cast<int64_t>(chunks.size()), 1,
                              [&, all](int64_t first, int64_t last) {
                                for (const Chunk* c = all + first; c < all + last; ++c) {
                                  rough_keys(inputs, c->level, c->image, c->begin, c->end, c->keys);
                                }
                              });
  return keys.data();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> multibox_loss_cpu(
    const std::vector<Tensor>& deltas, const std::vector<Tensor>& logits, const Tensor& priors_in,
    const Tensor& boxes, const Tensor& labels, const Tensor& offsets,
    const std::optional<Tensor>& matches, const std::optional<Tensor>& class_weights,
    double iou_threshold, std::optional<double> low_threshold, bool strict, int64_t assign,
    std::optional<double> ignore_threshold, double ratio, int64_t min_negatives,
    int64_t box_loss_kind, double beta, const std::vector<double>& variances,
    double label_smoothing, int64_t background_index, int64_t normalizer) {
  const Tensor priors = contiguous_boxes(priors_in, "priors");
  const HeadRows heads = head_rows(deltas, logits, priors);
  const int64_t B = heads.batch, P = heads.priors;
  const HeldObjects held(boxes, labels, offsets, B);
  const HeldMatches given(matches, B, P);
  const HeldOptions options(class_weights, box_loss_kind, beta, variances, label_smoothing,
                            background_index, heads.classes);
  const LossInputs inputs{heads.deltas, heads.logits, float_data(priors), P,
                          held.view(),  options.view};
  Tensor code = empty_tensor({B, P}, ScalarType::Int);
  Tensor num_positives = empty_tensor({B}, ScalarType::Long);
  int32_t* code_data = static_cast<int32_t*>(code.data_ptr());
  int64_t* positives = static_cast<int64_t*>(num_positives.data_ptr());
  thread_local std::vector<ImageLoss> losses;
  losses.resize(static_cast<size_t>(B));
  const ForwardJob job{inputs,
                       {match_options(iou_threshold, low_threshold, strict, assign), given.view(),
                        as_float(ignore_threshold), bounded_blocks(float_data(priors), P)},
                       static_cast<float>(ratio),
                       min_negatives,
                       rough_keys_in_chunks(inputs, B),
                       code_data,
                       losses.data()};
  const auto loss_images = SSD_FAST_KERNEL(multibox_loss_images);
  torch::stable::parallel_for(0, B, 1,
                              [&](int64_t begin, int64_t end) { loss_images(job, begin, end); });
  for (int64_t image = 0; image < B; ++image) positives[image] = job.losses[image].positives;

  // Image by image, in order: the sum is the same for any number of threads.
  const int64_t batch_positives = total(positives, B);
  double box_sum = 0, class_sum = 0;
  for (int64_t image = 0; image < B; ++image) {
    const double weight =
        image_weight(static_cast<Normalizer>(normalizer), positives[image], batch_positives, B);
    box_sum += weight * job.losses[image].box;
    class_sum += weight * job.losses[image].classes;
  }
  Tensor box_loss = empty_tensor({}, ScalarType::Float);
  Tensor class_loss = empty_tensor({}, ScalarType::Float);
  *static_cast<float*>(box_loss.data_ptr()) = static_cast<float>(box_sum);
  *static_cast<float*>(class_loss.data_ptr()) = static_cast<float>(class_sum);
  return {box_loss, class_loss, num_positives, code};
}

// What a backward is given, checked, with its memory kept alive.
struct HeldBackward {
  Tensor priors;
  HeadRows heads;
  HeldObjects objects;
  Tensor num_positives, code;
  HeldOptions options;
  std::vector<double> scales;  // of each image's box loss, then of each image's class loss

  HeldBackward(const Tensor& grad_box_loss, const Tensor& grad_class_loss,
               const std::vector<Tensor>& deltas, const std::vector<Tensor>& logits,
               const Tensor& priors_in, const Tensor& boxes, const Tensor& labels,
               const Tensor& offsets, const Tensor& code_in, const Tensor& num_positives_in,
               const std::optional<Tensor>& class_weights, int64_t box_loss_kind, double beta,
               const std::vector<double>& variances, double label_smoothing,
               int64_t background_index, int64_t normalizer)
      : priors(contiguous_boxes(priors_in, "priors")),
        heads(head_rows(deltas, logits, priors)),
        objects(boxes, labels, offsets, heads.batch),
        num_positives(contiguous_ints(num_positives_in, heads.batch, "num_positives")),
        code(contiguous_code(code_in, heads.batch, heads.priors)),
        options(class_weights, box_loss_kind, beta, variances, label_smoothing, background_index,
                heads.classes) {
    const double box_scale = scalar(grad_box_loss, "grad_box_loss");
    const double class_scale = scalar(grad_class_loss, "grad_class_loss");
    const int64_t B = heads.batch;
    const int64_t* positives = int64_data(num_positives);
    const int64_t batch_positives = total(positives, B);
    scales.resize(static_cast<size_t>(2 * B));
    for (int64_t image = 0; image < B; ++image) {
      const double weight =
          image_weight(static_cast<Normalizer>(normalizer), positives[image], batch_positives, B);
      scales[image] = weight * box_scale;
      scales[B + image] = weight * class_scale;
    }
  }

  const int32_t* codes() const { return static_cast<const int32_t*>(code.data_ptr()); }

  // Writes the gradients; see BackwardJob.
  void run(const Rows& grad_deltas, const Rows& grad_logits, bool streams,
           const TouchedCells* touched) const {
    const int64_t B = heads.batch;
    const LossInputs inputs{heads.deltas, heads.logits,   float_data(priors),
                            heads.priors, objects.view(), options.view};
    const BackwardJob job{inputs,      codes(),     scales.data(), scales.data() + B,
                          grad_deltas, grad_logits, streams,       touched};
    const auto backward_images = SSD_FAST_KERNEL(multibox_loss_backward_images);
    torch::stable::parallel_for(
        0, B, 1, [&](int64_t begin, int64_t end) { backward_images(job, begin, end); });
  }
};

std::tuple<std::vector<Tensor>, std::vector<Tensor>> multibox_loss_backward_cpu(
    const Tensor& grad_box_loss, const Tensor& grad_class_loss, const std::vector<Tensor>& deltas,
    const std::vector<Tensor>& logits, const Tensor& priors, const Tensor& boxes,
    const Tensor& labels, const Tensor& offsets, const Tensor& code, const Tensor& num_positives,
    const std::optional<Tensor>& class_weights, int64_t box_loss_kind, double beta,
    const std::vector<double>& variances, double label_smoothing, int64_t background_index,
    int64_t normalizer) {
  const HeldBackward held(grad_box_loss, grad_class_loss, deltas, logits, priors, boxes, labels,
                          offsets, code, num_positives, class_weights, box_loss_kind, beta,
                          variances, label_smoothing, background_index, normalizer);
  const int64_t B = held.heads.batch;
  GradientMemory memory({&deltas, &logits});
  const std::vector<Tensor> grad_deltas = memory.like(deltas);
  memory.fill_with_zeros();
  const std::vector<Tensor> grad_logits = memory.like(logits);
  if (B == 0 || held.heads.priors == 0) return {grad_deltas, grad_logits};
  const HeadRows grads = head_rows(grad_deltas, grad_logits, held.priors);
  const bool streams = memory.is_worth_streaming() && B >= torch::stable::get_num_threads() &&
                       grads.logits.are_dense();
  if (!streams) memory.fill_with_zeros();
  held.run(grads.deltas, grads.logits, streams, nullptr);
  return {grad_deltas, grad_logits};
}

// The gradients of the rows of touched cells, (cells, anchors * channels) float32 a level, zero at
// first; `tensors` keeps their memory.
Rows cell_rows(const TouchedCells& touched, const Rows& like, std::vector<Tensor>& tensors) {
  Rows rows{{}, like.channels, Dtype::kFloat32};
  for (size_t l = 0; l < like.levels.size(); ++l) {
    const auto cells = static_cast<int64_t>(touched.of_level(l).size());
    const int64_t anchors = like.levels[l].anchors, K = like.channels;
    tensors.push_back(empty_tensor({cells, anchors * K}, ScalarType::Float));
    auto* data = static_cast<float*>(tensors.back().data_ptr());
    std::fill_n(data, cells * anchors * K, 0.0f);
    rows.levels.push_back({data, cells * anchors, 1, cells * anchors, 0, 0, K, 0, 1});
  }
  return rows;
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>> cell_gradients_cpu(
    const Tensor& grad_box_loss, const Tensor& grad_class_loss, const std::vector<Tensor>& deltas,
    const std::vector<Tensor>& logits, const Tensor& priors, const Tensor& boxes,
    const Tensor& labels, const Tensor& offsets, const Tensor& code, const Tensor& num_positives,
    const std::optional<Tensor>& class_weights, int64_t box_loss_kind, double beta,
    const std::vector<double>& variances, double label_smoothing, int64_t background_index,
    int64_t normalizer) {
  const HeldBackward held(grad_box_loss, grad_class_loss, deltas, logits, priors, boxes, labels,
                          offsets, code, num_positives, class_weights, box_loss_kind, beta,
                          variances, label_smoothing, background_index, normalizer);
  const TouchedCells touched = SSD_FAST_KERNEL(touched_cells)(held.heads.deltas, held.codes(),
                                                              held.heads.batch, held.heads.priors);
  std::vector<Tensor> cells, grad_deltas, grad_logits;
  for (size_t l = 0; l < deltas.size(); ++l) {
    const std::vector<int64_t>& found = touched.of_level(l);
    cells.push_back(empty_tensor({static_cast<int64_t>(found.size())}, ScalarType::Long));
    std::copy(found.begin(), found.end(), static_cast<int64_t*>(cells.back().data_ptr()));
  }
  const Rows rows_of_deltas = cell_rows(touched, held.heads.deltas, grad_deltas);
  const Rows rows_of_logits = cell_rows(touched, held.heads.logits, grad_logits);
  held.run(rows_of_deltas, rows_of_logits, false, &touched);
  return {cells, grad_deltas, grad_logits};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ssd_fast, CPU, m) {
  m.impl("multibox_loss", TORCH_BOX(&multibox_loss_cpu));
  m.impl("multibox_loss_backward", TORCH_BOX(&multibox_loss_backward_cpu));
  m.impl("cell_gradients", TORCH_BOX(&cell_gradients_cpu));
}

}  // namespace ssd_fast
