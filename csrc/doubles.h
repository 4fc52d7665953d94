// SPDX-License-Identifier: BSD-3-Clause
// As many doubles at a time as a register holds, and their logarithms. Torch-free.
//
// The terms of a loss are doubles: what is left of large numbers that nearly cancel must keep its
// digits. One by one, a logarithm costs more than the rest of such a term.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "simd.h"

namespace ssd_fast::SSD_FAST_ISA {

constexpr int64_t kWide = kLanes / 2;

typedef double Doubles __attribute__((vector_size(kWide * sizeof(double))));
typedef int64_t Longs __attribute__((vector_size(kWide * sizeof(int64_t))));

inline Doubles load(const double* from) {
  Doubles value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

inline void store(double* to, Doubles value) { std::memcpy(to, &value, sizeof(value)); }

inline Doubles as_doubles(Longs bits) {
  Doubles value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline Longs as_longs(Doubles value) {
  Longs bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// The natural logarithm, to 1 unit in the last place, of what is not subnormal: -inf of 0, NaN
// below. Range reduction and polynomial are those of FreeBSD's e_log.c.
inline Doubles log(Doubles x) {
  constexpr int64_t kMagnitude = std::numeric_limits<int64_t>::max();
  constexpr int64_t kOffset = 0x3fe6a09e00000000;  // sqrt(1/2)
  constexpr double kRound = 6755399441055744.0;    // 1.5 * 2^52: integers are in its last bits
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  // x = 2^n (1 + f), sqrt(1/2) <= 1 + f < sqrt(2).
  const Longs bits = as_longs(x) & kMagnitude;  // with the sign a difference could overflow
  const Longs n = (bits - kOffset) >> 52;
  const Doubles f = as_doubles(bits - (n << 52)) - 1.0;
  const Doubles exponent = as_doubles(n + 0x4338000000000000) - kRound;
  const Doubles s = f / (f + 2.0), z = s * s, half = f * f * 0.5;
  Doubles series = z * 1.479819860511658591e-01 + 1.531383769920937332e-01;
  series = series * z + 1.818357216161805012e-01;
  series = series * z + 2.222219843214978396e-01;
  series = series * z + 2.857142874366239149e-01;
  series = series * z + 3.999999999940941908e-01;
  series = series * z + 6.666666666666735130e-01;
  const Doubles low = s * (half + series * z) + exponent * 1.90821492927058770002e-10;
  const Doubles result = exponent * 6.93147180369123816490e-01 - ((half - low) - f);
  const Doubles nan = x - x + std::numeric_limits<double>::quiet_NaN();
  const Doubles unusual = x == kInfinity ? x : (x == 0.0 ? x - kInfinity : nan);
  return ((x > 0.0) & (x < kInfinity)) ? result : unusual;
}

// The natural logarithm of floats, rounded once.
inline Floats log(Floats x) {
  typedef float Half __attribute__((vector_size(kWide * sizeof(float))));
  Half halves[2];
  std::memcpy(halves, &x, sizeof(x));
  for (Half& half : halves) {
    half = __builtin_convertvector(log(__builtin_convertvector(half, Doubles)), Half);
  }
  std::memcpy(&x, halves, sizeof(x));
  return x;
}

// log(1 + x) of a finite x that is not negative, to 2 units in the last place.
inline Doubles log1p(Doubles x) {
  const Doubles sum = x + 1.0;
  return log(sum) + (x - (sum - 1.0)) / sum;  // what the sum has lost
}

// A sum of weighted log1p's, added one by one: equal on every machine.
class Log1pSum {
 public:
  void add(double weight, double x) {
    weights_[count_] = weight;
    values_[count_] = x;
    if (++count_ == kRoom) flush();
  }

  double sum() {
    flush();
    return sum_;
  }

  void clear() {
    count_ = 0;
    sum_ = 0;
  }

 private:
  static constexpr int64_t kRoom = 64;  // so many that one vector need not wait for another

  void flush() {
    double terms[kRoom];
    for (int64_t i = 0; i < count_; i += kWide) {
      store(terms + i, load(weights_ + i) * log1p(load(values_ + i)));
    }
    for (int64_t i = 0; i < count_; ++i) sum_ += terms[i];
    count_ = 0;
  }

  double weights_[kRoom] = {};
  double values_[kRoom] = {};
  int64_t count_ = 0;
  double sum_ = 0;
};

}  // namespace ssd_fast::SSD_FAST_ISA
