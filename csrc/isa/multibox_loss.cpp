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

TouchedCells touched_cells(const Rows& rows, const int32_t* code, int64_t batch, int64_t P) {
  TouchedCells touched(rows.levels.size(), batch);
  for (int64_t image = 0; image < batch; ++image, code += P) {
    touched.open(image);
    size_t l = 0;
    int64_t first = 0;
    for (int64_t begin = 0; begin < P; begin += kLanes) {
      const Ints codes = load_some(code + begin, P - begin, kBackground);
      uint32_t lanes = lanes_of((codes >= 0) | (codes == kHardNegative));
      for (; lanes != 0; lanes &= lanes - 1) {
        const int64_t prior = begin + __builtin_ctz(lanes);
        while (prior - first >= rows.levels[l].rows) first += rows.levels[l++].rows;
        const Level& level = rows.levels[l];
        touched.add(l, image * level.cells() + (prior - first) / level.anchors);
      }
    }
  }
  return touched;
}

void multibox_loss_backward_images(const BackwardJob& job, int64_t begin, int64_t end) {
  MultiBoxImage& work = of_this_thread<MultiBoxImage>();
  for (int64_t image = begin; image < end; ++image) work.backward(job, image);
}

}  // namespace ssd_fast::SSD_FAST_ISA
