// SPDX-License-Identifier: BSD-3-Clause
// Non-maximum suppression for one instruction set.
#include "../nms.h"

namespace ssd_fast::SSD_FAST_ISA {

int64_t keep_boxes(const NmsJob& job, int64_t* keep) {
  thread_local Suppressor suppressor;
  return suppressor.keep(job, keep);
}

}  // namespace ssd_fast::SSD_FAST_ISA
