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
  // Begins with a piece of memory.
  void open(char* data, int64_t bytes) {
    begin_ = data;
    end_ = data + bytes;
    // Whole lines, though the first may begin before the piece.
    window_ = data - (reinterpret_cast<uintptr_t>(data) & (kLine - 1));
    if (staged_lines_ != 0) std::memset(staged_, 0, kWindow);  // nobody closed the one before
    staged_lines_ = window_ < begin_ ? 1 : 0;
  }

  // Writes `count` bytes at offset `at`, behind all that was written before.
  void write(int64_t at, const char* from, int64_t count) {
    char* to = begin_ + at;
    while (count > 0) {
      while (to >= window_ + kWindow) write_window();
      const int64_t fitting = std::min<int64_t>(count, window_ + kWindow - to);
      std::memcpy(staged_ + (to - window_), from, static_cast<size_t>(fitting));
      const int64_t first = (to - window_) / kLine, last = (to - window_ + fitting - 1) / kLine;
      staged_lines_ |= ((uint64_t{2} << (last - first)) - 1) << first;  // 2 << 63 is 0
      to += fitting;
      from += fitting;
      count -= fitting;
    }
  }

  // Writes the rest of the piece.
  void close() {
    while (window_ < end_) write_window();
  }

  // After the last piece, or another thread might see it late.
  static void fence() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
  }

 private:
  static constexpr int64_t kLine = 64;
  static constexpr int64_t kLines = 64;  // as many as staged_lines_ has bits
  static constexpr int64_t kWindow = kLines * kLine;

  void write_window() {
    const int64_t bytes = std::min<int64_t>(kWindow, end_ - window_);
    const int64_t lines = (bytes + kLine - 1) / kLine;
    if (bytes % kLine != 0) staged_lines_ |= uint64_t{1} << (lines - 1);
    int64_t i = 0;
    for (; staged_lines_ != 0; staged_lines_ &= staged_lines_ - 1, ++i) {
      for (const int64_t next = __builtin_ctzll(staged_lines_); i < next; ++i) {
        stream_zeros(window_ + i * kLine);
      }
      write_line(window_ + i * kLine, staged_ + i * kLine);
    }
    for (; i < lines; ++i) stream_zeros(window_ + i * kLine);
    window_ += kWindow;
  }

  // Writes a line, of which the piece may have a part, and clears it for the next window.
  void write_line(char* line, char* staged) {
    if (line >= begin_ && line + kLine <= end_) {
      stream(line, staged);
    } else {
      char* const from = std::max(line, begin_);
      char* const to = std::min(line + kLine, end_);
      std::memcpy(from, staged + (from - line), static_cast<size_t>(to - from));
    }
    std::memset(staged, 0, kLine);
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
  // Bit i: line i of the window is staged, or only a part of it belongs to the piece.
  uint64_t staged_lines_ = 0;
  alignas(kLine) char staged_[kWindow] = {};
};

}  // namespace ssd_fast::SSD_FAST_ISA
