// SPDX-License-Identifier: BSD-3-Clause
// Which instruction set the kernels run with, chosen when the module loads. Torch-free.
//
// The files in isa/ are compiled once for each instruction set of the processor family, with
// SSD_FAST_ISA as the namespace of all that depends on it (see simd.h), so one source of a loop
// becomes several functions of one name. SSD_FAST_PER_INSTRUCTION_SET declares them and
// SSD_FAST_KERNEL picks the one to call. Templates of the standard library may be shared between
// those files: setup.py links the plain ones first, and a linker keeps the first copy.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <atomic>
#include <string>
#include <vector>

namespace ssd_fast {

enum class InstructionSet { kPortable, kAvx2, kAvx512 };

constexpr const char* kInstructionSetNames[] = {"portable", "avx2", "avx512"};

#if defined(__x86_64__) || defined(_M_X64)
#define SSD_FAST_PER_INSTRUCTION_SET(...) \
  namespace portable {                    \
  __VA_ARGS__                             \
  }                                       \
  namespace avx2 {                        \
  __VA_ARGS__                             \
  }                                       \
  namespace avx512 {                      \
  __VA_ARGS__                             \
  }
#define SSD_FAST_KERNEL(name) \
  ::ssd_fast::pick(&::ssd_fast::portable::name, &::ssd_fast::avx2::name, &::ssd_fast::avx512::name)
#else
#define SSD_FAST_PER_INSTRUCTION_SET(...) \
  namespace portable {                    \
  __VA_ARGS__                             \
  }
#define SSD_FAST_KERNEL(name) (&::ssd_fast::portable::name)
#endif

#if defined(__x86_64__)
// Not every compiler's __builtin_cpu_supports knows them.
inline bool has_half_conversions() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}
#endif

// The instruction sets of this machine, from the plainest to the best.
inline std::vector<InstructionSet> instruction_sets() {
  std::vector<InstructionSet> sets{InstructionSet::kPortable};
#if defined(__x86_64__)
  __builtin_cpu_init();
  for (const bool supported : {__builtin_cpu_supports("avx2") != 0,
                               __builtin_cpu_supports("fma") != 0, has_half_conversions()}) {
    if (!supported) return sets;
  }
  sets.push_back(InstructionSet::kAvx2);
  for (const bool supported :
       {__builtin_cpu_supports("avx512f") != 0, __builtin_cpu_supports("avx512bw") != 0,
        __builtin_cpu_supports("avx512dq") != 0, __builtin_cpu_supports("avx512vl") != 0}) {
    if (!supported) return sets;
  }
  sets.push_back(InstructionSet::kAvx512);
#endif
  return sets;
}

inline std::atomic<InstructionSet>& chosen_instruction_set() {
  static std::atomic<InstructionSet> chosen{instruction_sets().back()};
  return chosen;
}

inline InstructionSet instruction_set() {
  return chosen_instruction_set().load(std::memory_order_relaxed);
}

// Chooses by name; false, and nothing changes, if this machine has no such instruction set.
inline bool set_instruction_set(const std::string& name) {
  for (const InstructionSet set : instruction_sets()) {
    if (name == kInstructionSetNames[static_cast<int>(set)]) {
      chosen_instruction_set().store(set, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

template <typename Function>
Function* pick(Function* portable, Function* avx2, Function* avx512) {
  switch (instruction_set()) {
    case InstructionSet::kAvx512:
      return avx512;
    case InstructionSet::kAvx2:
      return avx2;
    default:
      return portable;
  }
}

}  // namespace ssd_fast
