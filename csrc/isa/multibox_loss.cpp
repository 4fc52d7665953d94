// SPDX-License-Identifier: BSD-3-Clause
// SSD's loss and gradient for one instruction set.
#include "../multibox_loss.h"

namespace ssd_fast::SSD_FAST_ISA {

void rough_keys_of_cells(const LossInputs& inputs, size_t level, int64_t image, int64_t begin,
                         int64_t end, float* keys) {
  visit_dtype(inputs.logits.dtype, [&](auto* type) {
    auto& rough = of_this_thread<RoughKeys<std::remove_pointer_t<decltype(type)>>>();
    rough.reset(inputs.logits.levels[level], inputs.logits.channels, inputs.options.background);
    rough.compute(image, begin, end, keys);
  });
}

void multibox_loss_images(const ForwardJob& job, int64_t begin, int64_t end) {
  MultiBoxImage& work = of_this_thread<MultiBoxImage>();
  for (int64_t image = begin; image < end; ++image) job.losses[image] = work.forward(job, image);
}

void multibox_loss_backward_images(const BackwardJob& job, int64_t begin, int64_t end) {
  MultiBoxImage& work = of_this_thread<MultiBoxImage>();
  for (int64_t image = begin; image < end; ++image) work.backward(job, image);
}

}  // namespace ssd_fast::SSD_FAST_ISA
