// SPDX-License-Identifier: BSD-3-Clause
// Non-maximum suppression for one instruction set.
#include "../nms.h"

#include "../scratch.h"

namespace ssd_fast::SSD_FAST_ISA {

int64_t keep_boxes(const NmsJob& job, int64_t* keep) {
  // What a very large set takes, 80 bytes a box, is not held on to.
  constexpr int64_t kMany = 1 << 18;
  if (job.n > kMany) return Suppressor().keep(job, keep);
  return of_this_thread<Suppressor>().keep(job, keep);
}

}  // namespace ssd_fast::SSD_FAST_ISA
