// SPDX-License-Identifier: BSD-3-Clause
// Offsets of all rows for one instruction set.
#include "../decode.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../row_loads.h"

namespace ssd_fast::SSD_FAST_ISA {
namespace {

// `count` rows of four numbers, at most kLanes, one row a lane; zeros in the others.
template <typename T>
Boxes load_rows(const T* from, int64_t count) {
  if (std::is_same_v<T, float> && count == kLanes) {
    return load_boxes(reinterpret_cast<const float*>(from));
  }
  float rows[4 * kLanes] = {};
  for (int64_t i = 0; i < 4 * count; i += kLanes) {
    store(rows + i, load_first(from + i, std::min(kLanes, 4 * count - i)));
  }
  return load_boxes(rows);
}

void store_rows(float* to, int64_t count, const Boxes& rows) {
  if (count == kLanes) return store_boxes(to, rows);
  float all[4 * kLanes];
  store_boxes(all, rows);
  std::copy(all, all + 4 * count, to);
}

// Calls transform(rows, their priors) for vectors of rows `begin` to `end`, and writes the results.
template <typename T, typename Transform>
void transform_rows(const DecodeJob& job, int64_t begin, int64_t end, const Transform& transform) {
  const T* const from = static_cast<const T*>(job.from);
  for (int64_t row = begin, run = 0; row < end; row += run) {
    const int64_t prior = row % job.P;
    run = std::min(end - row, job.P - prior);  // rows of one image
    for (int64_t i = 0; i < run; i += kLanes) {
      const int64_t lanes = std::min(kLanes, run - i);
      const Boxes rows = load_rows(from + 4 * (row + i), lanes);
      const Boxes priors = load_rows(job.priors + 4 * (prior + i), lanes);
      store_rows(job.to + 4 * (row + i), lanes, transform(rows, priors));
    }
  }
}

}  // namespace

void decode_rows(const DecodeJob& job, int64_t begin, int64_t end) {
  visit_dtype(job.dtype, [&](auto* type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    transform_rows<T>(job, begin, end, [&](const Boxes& rows, const Boxes& priors) {
      const Offsets offsets{rows.x1, rows.y1, rows.x2, rows.y2};
      return decode_boxes(offsets, priors, job.variances, job.max_log_scale);
    });
  });
}

void encode_rows(const DecodeJob& job, int64_t begin, int64_t end) {
  transform_rows<float>(job, begin, end, [&](const Boxes& boxes, const Boxes& priors) {
    const Offsets offsets = encode_boxes(boxes, priors, job.variances);
    return Boxes{offsets.x, offsets.y, offsets.w, offsets.h};
  });
}

}  // namespace ssd_fast::SSD_FAST_ISA
