// SPDX-License-Identifier: BSD-3-Clause
// From the heads' outputs of an image to its detections. Torch-free.
// Contract: ssd_fast/ops/detect.py.
//
// Most rows hold background. They are told by comparisons alone: a class scores above t only if
// its logit exceeds the background's by more than log(t / (1 - t)). The rest gets its softmax.
// Candidates of all classes are then visited in one order, best first, only as many as it takes:
// a class takes part with its first top_k, and the visit ends with the last detection. Boxes of
// different classes never meet, so that is what NMS class by class would keep. Of the candidates
// only the best are collected; should they all be visited, the next best are, from the logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "box.h"
#include "decode.h"
#include "nms.h"
#include "rows.h"
#include "simd.h"

namespace ssd_fast {

struct DetectOptions {
  float score_threshold;
  int64_t top_k;
  float iou_threshold;
  int64_t max_detections;
  Variances variances;
  int64_t background;
  float max_log_scale;
};

// Where the detections of an image go; each has room for max_detections.
struct DetectionRows {
  float* boxes;
  float* scores;
  int64_t* labels;
};

// How far a logit must exceed the background's for a score above `threshold`. Computed scores are
// off by some 1e-6 of themselves, so the bound belongs to a threshold 1e-4 lower.
inline float logit_margin(float threshold) {
  // Scores below float32's normal numbers are too coarse for a bound.
  if (!(threshold > 1e-30f)) return -std::numeric_limits<float>::infinity();
  const double low = std::min(static_cast<double>(threshold), 1.0) * (1 - 1e-4);
  return static_cast<float>(std::log(low / (1 - low)) - 1e-4);
}

// Four chains in place of one: they fill the registers and do not wait for each other.
template <typename Combine>
float reduce(const float* values, int64_t count, float start, const Combine& combine) {
  float partial[4] = {start, start, start, start};
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    for (int64_t k = 0; k < 4; ++k) partial[k] = combine(partial[k], values[i + k]);
  }
  for (; i < count; ++i) partial[0] = combine(partial[0], values[i]);
  return combine(combine(partial[0], partial[1]), combine(partial[2], partial[3]));
}

template <typename T>
bool exceeds(const T* logits, int64_t begin, int64_t end, float reference, float margin) {
  int32_t over = 0;
  for (int64_t c = begin; c < end; ++c) over |= to_float(logits[c]) - reference > margin;
  return over != 0;
}

// Rows of a level in which a class exceeds the background by more than `margin`, where the
// logits of a row lie side by side. Adds `first` to their numbers.
template <typename T>
void find_rows(const Level& level, int64_t image, int64_t classes, int64_t background, float margin,
               int64_t first, std::vector<int64_t>* found) {
  const T* const data = static_cast<const T*>(level.data);
  RowCursor cursor(level, image);
  for (int64_t row = 0; row < level.rows; ++row) {
    const T* const logits = data + cursor.next();
    const float reference = to_float(logits[background]);
    if (exceeds(logits, 0, background, reference, margin) ||
        exceeds(logits, background + 1, classes, reference, margin)) {
      found->push_back(first + row);
    }
  }
}

// The same for any strides: class by class along the cells of a map, which lie side by side in a
// contiguous map.
template <typename T>
class CellScan {
 public:
  CellScan(const Level& level, int64_t classes, int64_t background, float margin)
      : level_(level), classes_(classes), background_(background), margin_(margin) {}

  void find(int64_t image, int64_t first, std::vector<int64_t>* found) {
    const int64_t cells = level_.rows / level_.anchors, width = level_.width;
    const bool straight = cells == width || level_.y_stride == width * level_.x_stride;
    const int64_t run = straight ? cells : width;
    const T* const data = static_cast<const T*>(level_.data) + image * level_.batch_stride;
    for (int64_t cell = 0; cell < cells;) {
      const int64_t x = cell % run;
      const int64_t count = std::min(kStrip, run - x);
      const T* const start = data + (cell / run) * level_.y_stride + x * level_.x_stride;
      for (int64_t anchor = 0; anchor < level_.anchors; ++anchor) {
        compare(start + anchor * level_.anchor_stride, count);
        report(first + cell * level_.anchors + anchor, count, found);
      }
      cell += count;
    }
  }

 private:
  // For each of `count` cells: how far the best class exceeds the background.
  void compare(const T* cells, int64_t count) {
    std::fill(lead_, lead_ + count, -std::numeric_limits<float>::infinity());
    for (int64_t c = 0; c < classes_; ++c) {
      if (c != background_) {
        along(cells + c * level_.channel_stride, count,
              [](float best, float logit) { return logit > best ? logit : best; });
      }
    }
    along(cells + background_ * level_.channel_stride, count,
          [](float best, float reference) { return best - reference; });
  }

  template <typename Combine>
  void along(const T* logits, int64_t count, const Combine& combine) {
    if (level_.x_stride == 1) {
      for (int64_t i = 0; i < count; ++i) lead_[i] = combine(lead_[i], to_float(logits[i]));
    } else {
      const int64_t stride = level_.x_stride;
      for (int64_t i = 0; i < count; ++i)
        lead_[i] = combine(lead_[i], to_float(logits[i * stride]));
    }
  }

  void report(int64_t first, int64_t count, std::vector<int64_t>* found) const {
    constexpr int64_t kBlock = 32;
    for (int64_t begin = 0; begin < count; begin += kBlock) {
      const int64_t end = std::min(begin + kBlock, count);
      int32_t over = 0;
      for (int64_t i = begin; i < end; ++i) over |= lead_[i] > margin_;
      if (over == 0) continue;
      for (int64_t i = begin; i < end; ++i) {
        if (lead_[i] > margin_) found->push_back(first + i * level_.anchors);
      }
    }
  }

  static constexpr int64_t kStrip = 2048;  // 8 KiB of leads stay in the first cache
  const Level& level_;
  const int64_t classes_, background_;
  const float margin_;
  float lead_[kStrip];
};

// The `capacity` best (smallest) of the keys above `visited` that are offered.
class BestKeys {
 public:
  BestKeys(uint64_t visited, size_t capacity) : visited_(visited), capacity_(capacity) {}

  void offer(uint64_t key) {
    if (key <= visited_ || key >= limit_) return;
    keys_.push_back(key);
    if (keys_.size() == 2 * capacity_) shrink();
  }

  // No key of a lower score can still be among the best.
  float lowest_score() const { return lowest_score_; }

  // Sorts the keys, best first. Returns whether any had to be left out.
  bool finish() {
    if (keys_.size() > capacity_) shrink();
    std::sort(keys_.begin(), keys_.end());
    return limit_ != std::numeric_limits<uint64_t>::max();
  }

  const std::vector<uint64_t>& keys() const { return keys_; }

 private:
  void shrink() {
    const auto last = keys_.begin() + static_cast<int64_t>(capacity_);
    std::nth_element(keys_.begin(), last, keys_.end());
    limit_ = *last;
    lowest_score_ = score_of(limit_);
    keys_.erase(last, keys_.end());
  }

  uint64_t visited_;
  size_t capacity_;
  uint64_t limit_ = std::numeric_limits<uint64_t>::max();
  float lowest_score_ = -std::numeric_limits<float>::infinity();
  std::vector<uint64_t> keys_;
};

// Finds the detections of images, one after the other; a thread needs one of these.
class Detector {
 public:
  Detector(const Rows& deltas, const Rows& logits, const float* priors,
           const DetectOptions& options)
      : deltas_(deltas),
        logits_(logits),
        priors_(priors),
        options_(options),
        margin_(logit_margin(options.score_threshold)),
        kept_(logits.channels),
        seen_(logits.channels),
        row_((logits.channels + kLanes - 1) / kLanes * kLanes) {
    for (const Level& level : logits.levels) {
      starts_.push_back(num_priors_);
      num_priors_ += level.rows;
    }
  }

  // Writes the detections of an image, at most max_detections, and returns how many there are.
  // `clip` is 4 bounds or null.
  int64_t detect(int64_t image, const float* clip, const DetectionRows& out) {
    if (options_.top_k == 0) return 0;
    kept_.clear();
    std::fill(seen_.begin(), seen_.end(), 0);
    int64_t count = 0;
    uint64_t visited = 0;  // no key is this small
    bool more = true;
    for (size_t capacity = 1024; more && count < options_.max_detections; capacity *= 4) {
      best_ = BestKeys(visited, capacity);
      collect(image);
      more = best_.finish();
      for (const uint64_t key : best_.keys()) {
        if (count == options_.max_detections) break;
        count += visit(key, image, clip, count, out);
        visited = key;
      }
    }
    return count;
  }

 private:
  // Offers the keys of all scores above the threshold to best_.
  void collect(int64_t image) {
    visit_dtype(logits_.dtype, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      for (size_t l = 0; l < logits_.levels.size(); ++l) {
        const Level& level = logits_.levels[l];
        if (level.rows == 0) continue;
        find_survivors<T>(level, image, starts_[l]);
        const T* const data = static_cast<const T*>(level.data);
        for (const int64_t prior : survivors_) {
          load_row(data + level.offset(image, prior - starts_[l]), level.channel_stride,
                   logits_.channels, row_.data());
          offer_scores(prior);
        }
      }
    });
  }

  template <typename T>
  void find_survivors(const Level& level, int64_t image, int64_t first) {
    survivors_.clear();
    if (std::isinf(margin_)) {
      for (int64_t row = 0; row < level.rows; ++row) survivors_.push_back(first + row);
    } else if (level.channel_stride == 1) {
      find_rows<T>(level, image, logits_.channels, options_.background, margin_, first,
                   &survivors_);
    } else {
      CellScan<T>(level, logits_.channels, options_.background, margin_)
          .find(image, first, &survivors_);
    }
  }

  // Softmax of the logits in row_; what exceeds the threshold is offered. A NaN or +inf logit
  // makes all scores NaN, and NaN exceeds nothing.
  void offer_scores(int64_t prior) {
    const int64_t classes = logits_.channels;
    const float largest = reduce(row_.data(), classes, -std::numeric_limits<float>::infinity(),
                                 [](float a, float b) { return b > a ? b : a; });
    std::fill(row_.begin() + classes, row_.end(), largest);
    for (size_t c = 0; c < row_.size(); c += kLanes) {
      store(&row_[c], exp(load(&row_[c]) - largest));
    }
    const float sum = reduce(row_.data(), classes, 0.0f, [](float a, float b) { return a + b; });
    // No score of the row is above 1 / sum.
    if (!(1 / sum > options_.score_threshold) || 1 / sum < best_.lowest_score()) return;
    for (int64_t c = 0; c < classes; ++c) {
      const float score = row_[c] / sum;
      if (score > options_.score_threshold && c != options_.background) {
        best_.offer(score_key(score, static_cast<uint32_t>(c * num_priors_ + prior)));
      }
    }
  }

  // Writes the candidate as detection number `count` if it is one.
  bool visit(uint64_t key, int64_t image, const float* clip, int64_t count,
             const DetectionRows& out) {
    const int64_t index = static_cast<uint32_t>(key);
    const int64_t label = index / num_priors_, prior = index % num_priors_;
    if (++seen_[label] > options_.top_k) return false;
    Box box = decode(image, prior);
    if (clip != nullptr) {
      box = {clamp(box.x1, clip[0], clip[2]), clamp(box.y1, clip[1], clip[3]),
             clamp(box.x2, clip[0], clip[2]), clamp(box.y2, clip[1], clip[3])};
    }
    if (!is_finite(box) || !kept_.keep(label, box, options_.iou_threshold)) return false;
    std::memcpy(out.boxes + 4 * count, &box, sizeof(box));
    out.scores[count] = score_of(key);
    out.labels[count] = label;
    return true;
  }

  Box decode(int64_t image, int64_t prior) const {
    const size_t l = static_cast<size_t>(std::upper_bound(starts_.begin(), starts_.end(), prior) -
                                         starts_.begin() - 1);
    const Level& level = deltas_.levels[l];
    const int64_t offset = level.offset(image, prior - starts_[l]);
    float delta[4];
    visit_dtype(deltas_.dtype, [&](auto* type) {
      load_row(static_cast<decltype(type)>(level.data) + offset, level.channel_stride, 4, delta);
    });
    return decode_box(delta, box_at(priors_, prior), options_.variances, options_.max_log_scale);
  }

  // As torch.clamp: NaN stays NaN, and a bound that is NaN makes NaN.
  static float clamp(float value, float low, float high) {
    if (std::isnan(low) || std::isnan(high)) return low + high;
    value = value < low ? low : value;
    return value > high ? high : value;
  }

  const Rows& deltas_;
  const Rows& logits_;
  const float* const priors_;
  const DetectOptions options_;
  const float margin_;
  int64_t num_priors_ = 0;
  std::vector<int64_t> starts_;  // first prior of each level
  KeptBoxes kept_;
  std::vector<int64_t> seen_;  // candidates visited of each class
  std::vector<float> row_;     // logits of a row, padded to whole lanes
  std::vector<int64_t> survivors_;
  BestKeys best_{0, 0};
};

}  // namespace ssd_fast
