// SPDX-License-Identifier: BSD-3-Clause
// Sixteen floats at a time, in the vector extensions that GCC and Clang share: the compiler splits
// them into whatever registers the machine has. Every lane computes what a scalar would: one
// rounding an operation, no contraction, no reassociation. Torch-free.
#pragma once

#include <cstdint>
#include <cstring>

namespace ssd_fast {

constexpr int64_t kLanes = 16;

typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));

inline Floats load(const float* from) {
  Floats value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof(value)); }

inline Ints load(const int32_t* from) {
  Ints value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

inline void store(int32_t* to, Ints value) { std::memcpy(to, &value, sizeof(value)); }

inline Floats splat(float value) { return Floats{} + value; }
inline Ints splat(int32_t value) { return Ints{} + value; }

inline Floats as_floats(Ints bits) {
  Floats value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline Ints as_ints(Floats value) {
  Ints bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// Of a NaN and a number these return the second argument.
inline Floats min(Floats a, Floats b) { return a < b ? a : b; }
inline Floats max(Floats a, Floats b) { return a > b ? a : b; }

// Whether any lane of a comparison holds.
inline bool any(Ints mask) {
  int64_t words[kLanes / 2];
  std::memcpy(words, &mask, sizeof(words));
  int64_t bits = 0;
  for (int64_t word : words) bits |= word;
  return bits != 0;
}

// e^x to 2 units in the last place, subnormal results included; +inf above 88.72, NaN for NaN.
// Range reduction and polynomial are those of Cephes' expf.
inline Floats exp(Floats x) {
  const float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Floats clamped = min(max(splat(-110.0f), x), splat(89.0f));
  const Floats rounded = clamped * 1.44269504088896341f + kRound;
  const Floats n = rounded - kRound;
  const Floats r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r) * r + r + 1.0f;
  // 2^n in two steps, because n reaches below the exponents of normal numbers.
  const Ints exponent = as_ints(rounded) - 0x4b400000;
  const Ints half = exponent >> 1;
  p = p * as_floats((half + 127) << 23) * as_floats((exponent - half + 127) << 23);
  p = x > 88.72283f ? splat(__builtin_inff()) : p;
  return x == x ? p : x;
}

}  // namespace ssd_fast
