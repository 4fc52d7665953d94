// SPDX-License-Identifier: BSD-3-Clause
// Compares the multiply-add of processors that have none with that of the C library; prints every
// difference, and last how many of the results doubles alone would have rounded twice. See
// test_multiply_add.py.
#include "multiply_add.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>

namespace {

using ssd_fast::portable::Floats;

int rounded_twice = 0;

void compare(float a, float b, float c) {
  const Floats found = ssd_fast::portable::multiply_add(a - Floats{}, b - Floats{}, c - Floats{});
  const float expected = std::fma(a, b, c);
  const float twice = static_cast<float>(static_cast<double>(a) * b + c);
  rounded_twice += twice < expected || twice > expected;
  for (int lane = 0; lane < ssd_fast::portable::kLanes; ++lane) {
    const float value = found[lane];
    if (std::isnan(value) && std::isnan(expected)) continue;
    if (std::memcmp(&value, &expected, sizeof(value)) == 0) continue;
    std::printf("%a * %a + %a: %a instead of %a\n", a, b, c, value, expected);
  }
}

}  // namespace

int main() {
  // Products a hair from half of c's last place, on either side of it, with either parity of c.
  for (const float small : {0x1p-14f, 0x1p-16f, 0x1p-18f, 0x1p-20f, 0x1p-22f}) {
    for (const float c : {1.0f, 1.0f + 0x1p-23f, -1.0f, -1.0f - 0x1p-23f}) {
      for (const float half : {0x1p-12f, -0x1p-12f}) {
        compare((1 + small) * 0x1p-12f, (1 - small) * half, c);
        compare((1 + small) * 0x1p-12f, (1 + small) * half, c);
      }
    }
  }
  std::mt19937 bits(1);
  for (int i = 0; i < 1000000; ++i) {
    float values[3];
    for (float& value : values) {
      const uint32_t random = bits();
      std::memcpy(&value, &random, sizeof(value));
    }
    compare(values[0], values[1], values[2]);
  }
  std::printf("%d\n", rounded_twice);
}
