// SPDX-License-Identifier: BSD-3-Clause
// Boxes on a grid of 256 by 256, four bytes each: a few comparisons of bytes tell which of 64 may
// touch another. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "box.h"
#include "simd.h"

namespace ssd_fast::SSD_FAST_ISA {

struct CoarseBox {
  uint8_t x1, y1, x2, y2;
};

// The cells of a box, by a function of each coordinate that never falls, rounding included: boxes
// that touch share a cell.
class CoarseGrid {
 public:
  CoarseGrid() = default;

  // Of boxes whose corners lie within `bounds`.
  explicit CoarseGrid(const Box& bounds)
      : origin_{bounds.x1, bounds.y1, bounds.x1, bounds.y1},
        scale_{256 / (bounds.x2 - bounds.x1), 256 / (bounds.y2 - bounds.y1),
               256 / (bounds.x2 - bounds.x1), 256 / (bounds.y2 - bounds.y1)} {}

  CoarseBox cells(const Box& box) const {
    const Four corners{box.x1, box.y1, box.x2, box.y2};
    const Four zero{}, last = zero + 255.0f;
    Four place = (corners - origin_) * scale_;
    // An extent of zero or beyond float32 leaves NaN at its lower end: that is cell 0.
    place = place > zero ? place : zero;
    place = place < last ? place : last;
    CoarseBox cells;
#if defined(__SSE2__)
    const __m128i numbers = _mm_cvttps_epi32(reinterpret_cast<__m128>(place));
    const __m128i words = _mm_packs_epi32(numbers, numbers);
    const int32_t bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
    std::memcpy(&cells, &bytes, sizeof(cells));
#else
    cells = {static_cast<uint8_t>(place[0]), static_cast<uint8_t>(place[1]),
             static_cast<uint8_t>(place[2]), static_cast<uint8_t>(place[3])};
#endif
    return cells;
  }

  // The cells of coordinate `axis`, 0 for x and 1 for y, of some boxes.
  Ints cells(Floats corners, int axis) const {
    const Floats zero{}, last = zero + 255.0f;
    Floats place = (corners - origin_[axis]) * scale_[axis];
    place = place > zero ? place : zero;
    place = place < last ? place : last;
    return __builtin_convertvector(place, Ints);
  }

 private:
  typedef float Four __attribute__((vector_size(16)));
  Four origin_{}, scale_{};
};

// Writes numbers from 0 to 255, one a lane, as bytes.
inline void store_bytes(uint8_t* to, Ints numbers) {
#if defined(__AVX512F__)
  const __m128i bytes = _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(numbers));
  std::memcpy(to, &bytes, sizeof(bytes));
#else
  for (int lane = 0; lane < kLanes; ++lane) to[lane] = static_cast<uint8_t>(numbers[lane]);
#endif
}

// Cells of 64 boxes. One that is not there is touched by next to nothing.
struct alignas(64) CoarseBlock {
  static constexpr int kBoxes = 64;
  uint8_t x1[kBoxes], y1[kBoxes], x2[kBoxes], y2[kBoxes];

  // Leaves out the boxes from number `first` on.
  void clear_from(int64_t first) {
    const size_t count = static_cast<size_t>(kBoxes - first);
    std::memset(x1 + first, 255, count);
    std::memset(y1 + first, 255, count);
    std::memset(x2 + first, 0, count);
    std::memset(y2 + first, 0, count);
  }

  void set(int64_t place, const CoarseBox& box) {
    x1[place] = box.x1;
    y1[place] = box.y1;
    x2[place] = box.x2;
    y2[place] = box.y2;
  }

  // The cells that hold all boxes.
  CoarseBox bounds() const {
    CoarseBox box{255, 255, 0, 0};
    for (int i = 0; i < kBoxes; ++i) {
      box.x1 = std::min(box.x1, x1[i]);
      box.y1 = std::min(box.y1, y1[i]);
      box.x2 = std::max(box.x2, x2[i]);
      box.y2 = std::max(box.y2, y2[i]);
    }
    return box;
  }

  // The boxes that may touch `box`, as bits.
  uint64_t touching(const CoarseBox& box) const {
#if defined(__AVX512BW__)
    const auto all = [](uint8_t byte) { return _mm512_set1_epi8(static_cast<char>(byte)); };
    return _mm512_cmple_epu8_mask(_mm512_load_si512(x1), all(box.x2)) &
           _mm512_cmpge_epu8_mask(_mm512_load_si512(x2), all(box.x1)) &
           _mm512_cmple_epu8_mask(_mm512_load_si512(y1), all(box.y2)) &
           _mm512_cmpge_epu8_mask(_mm512_load_si512(y2), all(box.y1));
#else
    typedef uint8_t Bytes __attribute__((vector_size(16)));
    const auto load_bytes = [](const uint8_t* from) {
      Bytes value;
      std::memcpy(&value, from, sizeof(value));
      return value;
    };
    uint64_t bits = 0;
    for (int i = 0; i < kBoxes; i += 16) {
      const auto lanes = (load_bytes(x1 + i) <= box.x2) & (load_bytes(x2 + i) >= box.x1) &
                         (load_bytes(y1 + i) <= box.y2) & (load_bytes(y2 + i) >= box.y1);
#if defined(__SSE2__)
      bits |= uint64_t{static_cast<uint32_t>(_mm_movemask_epi8((__m128i)lanes))} << i;
#else
      for (int k = 0; k < 16; ++k) bits |= uint64_t{lanes[k] != 0} << (i + k);
#endif
    }
    return bits;
#endif
  }
};

}  // namespace ssd_fast::SSD_FAST_ISA
