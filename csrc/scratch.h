// SPDX-License-Identifier: BSD-3-Clause
// Memory that a thread keeps between calls, so that the hot path allocates nothing. Torch-free.
#pragma once

#include <cstdint>
#include <vector>

namespace ssd_fast {

// The T of this thread. A compiler that sees a thread_local object looks its address up anew, by a
// call of the C library, wherever it uses a member, in the innermost loops too; behind the empty
// instruction it has nothing but the address.
template <typename T>
inline T& of_this_thread() {
  thread_local T object;
  T* address = &object;
#if defined(__GNUC__)
  __asm__("" : "+r"(address));
#endif
  return *address;
}

// At least `count` floats of this thread, good until its next call. A kernel uses them first for
// the IoU of each prior, then for its mining key: 4 bytes a prior.
inline float* scratch_floats(int64_t count) {
  auto& floats = of_this_thread<std::vector<float>>();
  if (static_cast<int64_t>(floats.size()) < count) floats.resize(static_cast<size_t>(count));
  return floats.data();
}

}  // namespace ssd_fast
