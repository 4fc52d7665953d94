// SPDX-License-Identifier: BSD-3-Clause
// Detections for one instruction set.
#include "../detect.h"

#include "../scratch.h"

namespace ssd_fast::SSD_FAST_ISA {

void detect_images(const DetectJob& job, int64_t begin, int64_t end) {
  Detector& detector = of_this_thread<Detector>();
  detector.reset(job);
  for (int64_t image = begin; image < end; ++image) detector.detect(image);
}

}  // namespace ssd_fast::SSD_FAST_ISA
