// SPDX-License-Identifier: BSD-3-Clause
// Writes memory from front to back: what is given, and zeros between. Torch-free.
//
// For a gradient of which few rows are not zero and which no cache can hold. Stores that pass the
// caches by write it at twice the rate of others, but a row written into it afterwards would have
// to be fetched from memory first.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "simd.h"

namespace ssd_fast::SSD_FAST_ISA {

class ZeroStream {
 public:
  // Begins with a piece of memory; the one before must have been closed.
  void open(char* data, int64_t bytes) {
    begin_ = data;
    end_ = data + bytes;
    // Whole lines, though the first may begin before the piece.
    window_ = data - (reinterpret_cast<uintptr_t>(data) & (kLine - 1));
  }

  // Writes `count` bytes at offset `at`, behind all that was written before.
  void write(int64_t at, const char* from, int64_t count) {
    char* to = begin_ + at;
    while (count > 0) {
      while (to >= window_ + kWindow) write_window();
      const int64_t fitting = std::min<int64_t>(count, window_ + kWindow - to);
      std::memcpy(staged_ + (to - window_), from, static_cast<size_t>(fitting));
      is_zero_ = false;
      to += fitting;
      from += fitting;
      count -= fitting;
    }
  }

  // Writes the rest.
  void close() {
    while (window_ < end_) write_window();
#if defined(__x86_64__)
    _mm_sfence();  // or another thread might see it late
#endif
  }

 private:
  static constexpr int64_t kLine = 64;
  static constexpr int64_t kWindow = 4096;

  void write_window() {
    const int64_t lines = std::min<int64_t>(kWindow, (end_ - window_ + kLine - 1) & -kLine);
    for (int64_t i = 0; i < lines; i += kLine) {
      char* const line = window_ + i;
      if (line >= begin_ && line + kLine <= end_) {
        is_zero_ ? stream_zeros(line) : stream(line, staged_ + i);
      } else {
        char* const from = std::max(line, begin_);
        char* const to = std::min(line + kLine, end_);
        std::memcpy(from, staged_ + (from - window_), static_cast<size_t>(to - from));
      }
    }
    if (!is_zero_) std::memset(staged_, 0, kWindow);
    is_zero_ = true;
    window_ += kWindow;
  }

#if defined(__AVX512F__)
  static void stream(char* to, const char* from) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_load_si512(from));
  }
  static void stream_zeros(char* to) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_setzero_si512());
  }
#elif defined(__x86_64__)
  static void stream(char* to, const char* from) {
    for (int64_t i = 0; i < kLine; i += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                       _mm_load_si128(reinterpret_cast<const __m128i*>(from + i)));
    }
  }
  static void stream_zeros(char* to) {
    for (int64_t i = 0; i < kLine; i += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_setzero_si128());
    }
  }
#else
  static void stream(char* to, const char* from) { std::memcpy(to, from, kLine); }
  static void stream_zeros(char* to) { std::memset(to, 0, kLine); }
#endif

  char* begin_ = nullptr;
  char* end_ = nullptr;
  char* window_ = nullptr;  // of the bytes that are staged
  bool is_zero_ = true;
  alignas(kLine) char staged_[kWindow] = {};
};

}  // namespace ssd_fast::SSD_FAST_ISA
