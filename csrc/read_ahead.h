// SPDX-License-Identifier: BSD-3-Clause
// Asks for the memory that a pass from front to back comes to next. Torch-free.
//
// One core of an Intel server (Emerald Rapids) fetches a fifth more in a second when it is told
// where it will read; what is computed meanwhile hides behind that as well. On AMD's Zen 4 the same
// requests cost a tenth of the time and gain nothing, so there none is made.
#pragma once

#include <cstdint>

#include "simd.h"

namespace ssd_fast::SSD_FAST_ISA {

class ReadAhead {
 public:
  // Asks for nothing.
  ReadAhead() = default;

  // Asks if that is worth it on this machine.
  static ReadAhead if_worth_it() {
    ReadAhead ahead;
#if defined(__x86_64__)
    static const bool is_intel = (__builtin_cpu_init(), __builtin_cpu_is("intel") != 0);
    ahead.asks_ = is_intel;
#endif
    return ahead;
  }

  // For rows that lie `stride` apart: asks for none where there are gaps between them.
  ReadAhead of_rows(int64_t stride, int64_t classes) const {
    return stride == classes ? *this : ReadAhead();
  }

  // Before `count` numbers at `from` are read: asks for as many, kAhead further on, which need not
  // exist. Best a row at a time: the core has 16 places for what it waits for.
  template <typename T>
  SSD_FAST_INLINE void operator()(const T* from, int64_t count) const {
    if (!asks_) return;
    const uintptr_t next = reinterpret_cast<uintptr_t>(from) + kAhead;
    const uintptr_t end = next + count * sizeof(T);
    // The lines that begin there: of two neighbours each line is asked for by one.
    for (uintptr_t line = (next + kLine - 1) & -kLine; line < end; line += kLine) {
      __builtin_prefetch(reinterpret_cast<const void*>(line));
    }
  }

 private:
  static constexpr uintptr_t kLine = 64;
  static constexpr uintptr_t kAhead = 4096;

  bool asks_ = false;
};

}  // namespace ssd_fast::SSD_FAST_ISA
