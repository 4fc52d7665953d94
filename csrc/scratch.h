// SPDX-License-Identifier: BSD-3-Clause
// Memory that a thread keeps between calls, so that the hot path allocates nothing. Torch-free.
#pragma once

#include <cstdint>
#include <vector>

namespace ssd_fast {

// At least `count` floats of this thread, good until its next call. A kernel uses them first for
// the IoU of each prior, then for its mining key: 4 bytes a prior.
inline float* scratch_floats(int64_t count) {
  thread_local std::vector<float> floats;
  if (static_cast<int64_t>(floats.size()) < count) floats.resize(static_cast<size_t>(count));
  return floats.data();
}

}  // namespace ssd_fast
