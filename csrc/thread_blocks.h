// SPDX-License-Identifier: BSD-3-Clause
// What the algorithms for GPUs are written in: blocks of threads that work step by step.
// Torch-free.
//
// In a step each thread runs the same function of its number; what it writes is seen from the next
// step on. On a GPU a step ends with __syncthreads(). On the host the threads of a block run one
// after the other, in any order, so that tests execute the very functions that a GPU does.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define SSD_FAST_BLOCK __device__ __forceinline__
#else
#define SSD_FAST_BLOCK inline
#endif

namespace ssd_fast {

constexpr int32_t kWord = 64;  // threads that vote, bits of a word

SSD_FAST_BLOCK uint64_t bit(int32_t i) { return uint64_t{1} << i; }
SSD_FAST_BLOCK bool has_bit(uint64_t word, int32_t i) { return word >> i & 1; }

#ifdef __CUDACC__

SSD_FAST_BLOCK int32_t count_bits(uint64_t word) { return __popcll(word); }
SSD_FAST_BLOCK int32_t highest_bit(uint64_t word) { return 63 - __clzll(word); }

// Integers only: their order makes no difference to the result.
SSD_FAST_BLOCK void atomic_or(uint64_t* word, uint64_t bits) {
  static_assert(sizeof(unsigned long long) == sizeof(uint64_t));
  atomicOr(reinterpret_cast<unsigned long long*>(word), static_cast<unsigned long long>(bits));
}
SSD_FAST_BLOCK void atomic_min(int32_t* least, int32_t value) { atomicMin(least, value); }

struct Block {
  SSD_FAST_BLOCK int32_t threads() const { return static_cast<int32_t>(blockDim.x); }

  template <typename F>
  SSD_FAST_BLOCK void step(const F& f) const {
    f(static_cast<int32_t>(threadIdx.x));
    __syncthreads();
  }

  // A step of the first 64 threads. f returns two bits: bit t of ballots[0] becomes the lower one,
  // of ballots[1] the higher one.
  template <typename F>
  SSD_FAST_BLOCK void vote(uint64_t* ballots, const F& f) const {
    const int32_t t = static_cast<int32_t>(threadIdx.x);
    if (t < kWord) {
      const int32_t opinion = f(t);
      const uint32_t low = __ballot_sync(~0u, opinion & 1);
      const uint32_t high = __ballot_sync(~0u, opinion & 2);
      if (t % 32 == 0) {
        reinterpret_cast<uint32_t*>(ballots)[t / 32] = low;
        reinterpret_cast<uint32_t*>(ballots + 1)[t / 32] = high;
      }
    }
    __syncthreads();
  }
};

#else

inline int32_t count_bits(uint64_t word) { return __builtin_popcountll(word); }
inline int32_t highest_bit(uint64_t word) { return 63 - __builtin_clzll(word); }
inline void atomic_or(uint64_t* word, uint64_t bits) { *word |= bits; }
inline void atomic_min(int32_t* least, int32_t value) { *least = value < *least ? value : *least; }

// `stride` is odd where the number of threads is a power of two, so that each has its turn.
struct Block {
  int32_t count;
  int32_t stride;

  int32_t threads() const { return count; }

  template <typename F>
  void step(const F& f) const {
    for (int32_t i = 0; i < count; ++i) f(static_cast<int32_t>(int64_t{i} * stride % count));
  }

  template <typename F>
  void vote(uint64_t* ballots, const F& f) const {
    uint64_t low = 0, high = 0;
    for (int32_t t = 0; t < kWord; ++t) {
      const int32_t opinion = f(t);
      low |= opinion & 1 ? bit(t) : 0;
      high |= opinion & 2 ? bit(t) : 0;
    }
    ballots[0] = low;
    ballots[1] = high;
  }
};

#endif

}  // namespace ssd_fast
