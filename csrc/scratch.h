// SPDX-License-Identifier: BSD-3-Clause
// Memory that a thread keeps between calls, so that the hot path allocates nothing. Torch-free.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace ssd_fast {

// Begins memory with a cache line: of vectors that begin anywhere else, most lie across two lines,
// and to load or store these takes twice as long.
template <typename T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  LineAllocator() = default;
  template <typename Other>
  LineAllocator(const LineAllocator<Other>&) {}

  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
  void deallocate(T* memory, size_t) { ::operator delete(memory, kLine); }
  bool operator==(const LineAllocator&) const { return true; }
  bool operator!=(const LineAllocator&) const { return false; }
};

template <typename T>
using AlignedVector = std::vector<T, LineAllocator<T>>;

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
