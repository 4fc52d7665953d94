// SPDX-License-Identifier: BSD-3-Clause
// The focal loss and its gradient for one instruction set.
#include "../focal_loss.h"

namespace ssd_fast::SSD_FAST_ISA {
namespace {

constexpr auto kNoPreparation = [](const SelectedRow&) {};

}  // namespace

void focal_assign_images(const FocalForwardJob& job, int64_t begin, int64_t end) {
  Matcher& matcher = of_this_thread<Matcher>();
  const LossInputs& inputs = job.inputs;
  for (int64_t image = begin; image < end; ++image) {
    float* scratch = scratch_floats(job.assignment.blocks.blocks() * kBlock);
    int32_t* code = job.code + image * inputs.P;
    ImageBoxes boxes;
    boxes.positives = assign_rows(inputs, job.assignment, image, matcher, scratch, code);
    BoxLossBatch batch;
    visit_selected(inputs, code, image, kNoPreparation, [&](const SelectedRow& selected) {
      if (batch.add(inputs, image, selected)) boxes.loss += batch.take_losses(inputs.options);
    });
    boxes.loss += batch.take_losses(inputs.options);
    job.boxes[image] = boxes;
  }
}

double focal_loss_chunk(const FocalForwardJob& job, const FocalChunk& chunk) {
  FocalBlock& block = of_this_thread<FocalBlock>();
  const int32_t* code = job.code + chunk.image * job.inputs.P + chunk.prior;
  double positive = 0, negative = 0;
  with_gamma(job.focal.gamma, [&](auto gamma) {
    block.each(job.inputs, chunk, [&] {
      block.read(job.inputs, code, [&](const float*, float logit) {
        positive += positive_term(logit, job.focal.gamma).loss;
      });
      negative += block.template loss<decltype(gamma)::value>(static_cast<float>(job.focal.gamma));
    });
  });
  return job.focal.positive * positive + job.focal.negative * negative;
}

void focal_boxes_backward(const FocalBackwardJob& job, int64_t begin, int64_t end) {
  for (int64_t image = begin; image < end; ++image) {
    const int32_t* code = job.code + image * job.inputs.P;
    BoxLossBatch batch;
    const auto take = [&] {
      batch.take_gradients(job.inputs.options, image, job.box_scales[image], job.grad_deltas);
    };
    visit_selected(job.inputs, code, image, kNoPreparation, [&](const SelectedRow& selected) {
      if (selected.object >= 0 && batch.add(job.inputs, image, selected)) take();
    });
    take();
  }
}

void focal_loss_chunk_backward(const FocalBackwardJob& job, const FocalChunk& chunk) {
  struct Place {
    float* gradient;
    float value;
  };
  auto& places = of_this_thread<std::vector<Place>>();
  FocalBlock& block = of_this_thread<FocalBlock>();
  const double scale = job.class_scales[chunk.image];
  const int32_t* code = job.code + chunk.image * job.inputs.P + chunk.prior;
  with_gamma(job.focal.gamma, [&](auto gamma) {
    block.each(job.inputs, chunk, [&] {
      places.clear();
      block.read(job.inputs, code, [&](float* place, float logit) {
        const double slope = positive_term(logit, job.focal.gamma).slope;
        places.push_back({place, static_cast<float>(slope * job.focal.positive * scale)});
      });
      block.template differentiate<decltype(gamma)::value>(
          static_cast<float>(job.focal.gamma), static_cast<float>(job.focal.negative * scale));
      for (const Place& place : places) *place.gradient = place.value;
      block.write(job.grad_logits.levels[chunk.level]);
    });
  });
}

}  // namespace ssd_fast::SSD_FAST_ISA
