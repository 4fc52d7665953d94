// SPDX-License-Identifier: BSD-3-Clause
// From the heads' outputs of an image to its detections. Torch-free.
// Contract: ssd_fast/ops/detect.py.
//
// Most rows hold background. They are told by comparisons alone: a class scores above t only if
// its logit exceeds the background's by more than log(t / (1 - t)). The rest gets its softmax.
// Candidates of all classes are then visited in one order, best first, only as many as it takes:
// a class takes part with its first top_k, and the visit ends with the last detection. Boxes of
// different classes never meet, so that is what NMS class by class would keep.
//
// Where nearly every row passes that comparison (the first epoch), a sample of rows gives a floor
// that about as many scores reach as it takes, and rows that stay below it are told by one
// exponential a logit. Should all candidates be visited, the next best are, from the logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

#include "box.h"
#include "decode.h"
#include "exponential.h"
#include "instruction_set.h"
#include "kept_boxes.h"
#include "row_filter.h"
#include "rows.h"
#include "score_order.h"
#include "score_row.h"
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

struct DetectJob {
  const Rows& deltas;
  const Rows& logits;
  const float* priors;  // (P, 4)
  int64_t P;
  DetectOptions options;
  const float* clip;    // bounds of image 0, or null
  int64_t clip_stride;  // floats to the bounds of the next image
  float* boxes;         // (B, max_detections, 4), out
  float* scores;        // (B, max_detections), out
  int64_t* labels;      // (B, max_detections), out
  int64_t* counts;      // (B,), out
};

SSD_FAST_PER_INSTRUCTION_SET(
    // Detects in images `begin` to `end` of the batch.
    void detect_images(const DetectJob& job, int64_t begin, int64_t end);)

// How far a logit must exceed the background's for a score above `threshold`. Computed scores are
// off by some 1e-6 of themselves, so the bound belongs to a threshold 1e-4 lower.
inline float logit_margin(float threshold) {
  // Scores below float32's normal numbers are too coarse for a bound.
  if (!(threshold > 1e-30f)) return -std::numeric_limits<float>::infinity();
  const double low = std::min(static_cast<double>(threshold), 1.0) * (1 - 1e-4);
  return static_cast<float>(std::log(low / (1 - low)) - 1e-4);
}

// As torch.clamp: NaN stays NaN, and a bound that is NaN makes NaN.
inline float clamp(float value, float low, float high) {
  if (std::isnan(low) || std::isnan(high)) return low + high;
  value = value < low ? low : value;
  return value > high ? high : value;
}

// The best of the keys that are offered.
class BestKeys {
 public:
  static constexpr size_t kMost = 2048;

  // Forgets all keys. Keeps at most twice the best `most`; those up to `visited` are not taken.
  void reset(size_t most, uint64_t visited, float floor) {
    most_ = most;
    visited_ = visited;
    limit_ = std::numeric_limits<uint64_t>::max();
    floor_ = floor;
    keys_.clear();
    keys_.reserve(2 * kMost);
  }

  void offer(uint64_t key) {
    if (key <= visited_ || key >= limit_) return;
    keys_.push_back(key);
    if (keys_.size() == 2 * most_) shrink();
  }

  // Leaves out all but the best `most`.
  void shrink() {
    if (keys_.size() <= most_) return;
    const auto last = keys_.begin() + static_cast<int64_t>(most_);
    std::nth_element(keys_.begin(), last, keys_.end());
    limit_ = *last;
    floor_ = score_of(limit_);
    keys_.erase(last, keys_.end());
  }

  // No key of a lower score can still be among the best.
  float floor() const { return floor_; }

  // What all scores exceed that can still be among the best.
  float below() const {
    return floor_ > 0 ? bits_to_float(float_to_bits(floor_) - 1)
                      : -std::numeric_limits<float>::infinity();
  }

  bool has_left_out() const { return limit_ != std::numeric_limits<uint64_t>::max(); }

  // Sorts the keys, best first.
  const std::vector<uint64_t>& sorted() {
    sorter_.sort(keys_);
    return keys_;
  }

 private:
  size_t most_ = kMost;
  uint64_t visited_ = 0;
  uint64_t limit_ = 0;
  float floor_ = 0;
  std::vector<uint64_t> keys_;
  KeySorter sorter_;
};

}  // namespace ssd_fast

namespace ssd_fast::SSD_FAST_ISA {

// Finds the detections of images, one after the other; keeps its scratch memory between them.
class Detector {
 public:
  // Prepares for a job, which must outlive the detection.
  void reset(const DetectJob& job) {
    job_ = &job;
    margin_ = logit_margin(job.options.score_threshold);
    starts_.clear();
    int64_t start = 0;
    for (const Level& level : job.logits.levels) {
      starts_.push_back(start);
      start += level.rows;
    }
    row_.resize(job.logits.channels);
  }

  // Writes the detections of an image, at most max_detections.
  void detect(int64_t image) {
    const DetectOptions& options = job_->options;
    const int64_t K = options.max_detections;
    const int64_t count = options.top_k == 0 || K == 0 ? 0 : find(image);
    const int64_t row = image * K;
    std::fill(job_->boxes + 4 * (row + count), job_->boxes + 4 * (row + K), 0.0f);
    std::fill(job_->scores + row + count, job_->scores + row + K, 0.0f);
    std::fill(job_->labels + row + count, job_->labels + row + K, 0);
    job_->counts[image] = count;
  }

 private:
  static constexpr size_t kAhead = 16;
  static constexpr float kNoFloor = -std::numeric_limits<float>::infinity();

  int64_t find(int64_t image) {
    const int64_t classes = job_->logits.channels;
    const DetectOptions& options = job_->options;
    kept_.reset(classes);
    seen_.assign(static_cast<size_t>(classes), 0);
    open_.assign(static_cast<size_t>(classes + ScoreRow::kPartial), 0);
    std::fill(open_.begin(), open_.begin() + classes, 1);
    open_[options.background] = 0;

    int64_t count = 0;
    uint64_t visited = 0;  // no key is this small
    bool is_crowded = false;
    constexpr int64_t kFew = 128, kMany = int64_t{1} << 40;
    for (int64_t wanted = std::min<int64_t>(3 * options.max_detections, BestKeys::kMost / 2);;
         wanted = std::min(8 * wanted, kMany)) {
      best_.reset(BestKeys::kMost, visited, kNoFloor);
      if (!is_crowded && !collect(image, kNoFloor, kFew)) is_crowded = true;
      float floor = kNoFloor;
      if (is_crowded) {
        floor = sampled_floor(image, visited, wanted);
        best_.reset(BestKeys::kMost, visited, floor);
        collect(image, floor, kMany);
      }
      const std::vector<uint64_t>& keys = best_.sorted();
      for (size_t first = 0; first < keys.size(); first += kAhead) {
        const size_t ahead = std::min(keys.size() - first, kAhead);
        decode(image, keys.data() + first, ahead);
        for (size_t i = 0; i < ahead; ++i) {
          if (count == options.max_detections) return count;
          count += visit(candidates_[i], image, count);
        }
      }
      if (!keys.empty()) visited = keys.back();
      if (!best_.has_left_out() && floor == kNoFloor) return count;
    }
  }

  // Offers all scores above the threshold that reach the floor. Without a floor it gives up, and
  // returns false, where `few` rows and a quarter of those scanned have such scores.
  bool collect(int64_t image, float floor, int64_t few) {
    int64_t offered = 0, scanned_before = 0;
    for (size_t l = 0; l < starts_.size(); ++l) {
      const Level& level = job_->logits.levels[l];
      const auto offer = [&](int64_t row, int64_t scanned) {
        offer_row(l, image, row);
        return ++offered < few + (scanned_before + scanned) / 4;
      };
      filter_.reset(level, job_->logits.dtype, job_->logits.channels, job_->options.background);
      const bool go_on = floor == kNoFloor ? filter_.leading(image, margin_, offer)
                                           : filter_.reaching(image, margin_, floor, offer);
      if (!go_on) return false;
      scanned_before += level.rows;
    }
    return true;
  }

  // A floor that about `wanted` scores behind `visited` reach, or none where fewer are left.
  float sampled_floor(int64_t image, uint64_t visited, int64_t wanted) {
    constexpr int64_t kSample = 128;
    const int64_t step = job_->P / kSample;
    const size_t rank = static_cast<size_t>(wanted / std::max<int64_t>(step, 1));
    if (step < 2 || rank == 0 || rank >= BestKeys::kMost) return kNoFloor;
    best_.reset(rank, visited, kNoFloor);
    for (size_t l = 0; l < starts_.size(); ++l) {
      // Rows `step` apart, counted over all levels.
      for (int64_t row = (step - starts_[l] % step) % step; row < job_->logits.levels[l].rows;
           row += step) {
        offer_row(l, image, row);
      }
    }
    best_.shrink();
    // A floor too low for exact comparisons is none.
    return best_.has_left_out() && best_.floor() > 1e-30f ? best_.floor() : kNoFloor;
  }

  // Offers the scores of a row of level `l`.
  void offer_row(size_t l, int64_t image, int64_t row) {
    const Level& level = job_->logits.levels[l];
    const int64_t offset = level.offset(image, row), prior = starts_[l] + row;
    visit_dtype(job_->logits.dtype, [&](auto* type) {
      row_.read(static_cast<decltype(type)>(level.data) + offset, level.channel_stride);
    });
    row_.scores(std::max(job_->options.score_threshold, best_.below()), open_.data(),
                [&](int64_t c, Floats score, uint32_t classes) {
                  for (; classes != 0; classes &= classes - 1) {
                    const int k = __builtin_ctz(classes);
                    const int64_t index = (c + k) * job_->P + prior;
                    best_.offer(score_key(score[k], static_cast<uint32_t>(index)));
                  }
                });
  }

  struct Candidate {
    float score;
    int64_t label;
    Box box;
  };

  // Decodes the first `n` of the keys, at most kAhead, into candidates_. Their deltas lie far
  // apart: read one after another they would be waited for one after another.
  void decode(int64_t image, const uint64_t* keys, size_t n) {
    float delta[4][kAhead] = {}, prior_box[4][kAhead] = {};
    for (size_t i = 0; i < n; ++i) {
      const uint32_t index = static_cast<uint32_t>(keys[i]);
      const int64_t label = index / static_cast<uint32_t>(job_->P);
      const int64_t prior = index - label * job_->P;
      candidates_[i].score = score_of(keys[i]);
      candidates_[i].label = label;
      const auto [level, offset] = deltas_of(image, prior);
      visit_dtype(job_->deltas.dtype, [&, level = level, offset = offset](auto* type) {
        const auto* const row = static_cast<decltype(type)>(level->data) + offset;
        for (int k = 0; k < 4; ++k) delta[k][i] = to_float(row[k * level->channel_stride]);
      });
      for (int k = 0; k < 4; ++k) prior_box[k][i] = job_->priors[4 * prior + k];
    }
    const Variances& v = job_->options.variances;
    for (size_t i = 0; i < n; i += kLanes) {
      // The operations of decode_box.
      const auto side = [&](int k, float scale, float size_scale, Floats* low, Floats* high) {
        const Floats p1 = load(&prior_box[k][i]), p2 = load(&prior_box[k + 2][i]);
        const Floats center = (load(&delta[k][i]) * scale) * (p2 - p1) + (p1 + p2) * 0.5f;
        const Floats log_size = load(&delta[k + 2][i]) * size_scale;
        const Floats size = exp(min(splat(job_->options.max_log_scale), log_size));
        const Floats half = size * (p2 - p1) * 0.5f;
        *low = center - half;
        *high = center + half;
      };
      Boxes box;
      side(0, v.x, v.w, &box.x1, &box.x2);
      side(1, v.y, v.h, &box.y1, &box.y2);
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        candidates_[i + lane].box = {box.x1[lane], box.y1[lane], box.x2[lane], box.y2[lane]};
      }
    }
  }

  // Writes the candidate as detection number `count` if it is one.
  bool visit(const Candidate& candidate, int64_t image, int64_t count) {
    const DetectOptions& options = job_->options;
    const int64_t label = candidate.label;
    if (seen_[label] == options.top_k) return false;
    if (++seen_[label] == options.top_k) open_[label] = 0;
    Box box = candidate.box;
    if (job_->clip != nullptr) {
      const float* const clip = job_->clip + image * job_->clip_stride;
      box = {clamp(box.x1, clip[0], clip[2]), clamp(box.y1, clip[1], clip[3]),
             clamp(box.x2, clip[0], clip[2]), clamp(box.y2, clip[1], clip[3])};
    }
    if (!is_finite(box) || !kept_.keep(label, box, options.iou_threshold)) return false;
    const int64_t row = image * options.max_detections + count;
    std::memcpy(job_->boxes + 4 * row, &box, sizeof(box));
    job_->scores[row] = candidate.score;
    job_->labels[row] = label;
    return true;
  }

  struct Place {
    const Level* level;
    int64_t offset;
  };

  Place deltas_of(int64_t image, int64_t prior) const {
    size_t l = starts_.size() - 1;
    while (prior < starts_[l]) --l;
    const Level& level = job_->deltas.levels[l];
    return {&level, level.offset(image, prior - starts_[l])};
  }

  const DetectJob* job_ = nullptr;
  float margin_ = 0;
  std::vector<int64_t> starts_;  // first prior of each level
  RowFilter filter_;
  ScoreRow row_;
  BestKeys best_;
  Candidate candidates_[kAhead];
  KeptBoxes kept_;
  std::vector<int64_t> seen_;  // candidates visited of each class
  std::vector<int32_t> open_;  // 1 for classes that may have further candidates, else 0
};

}  // namespace ssd_fast::SSD_FAST_ISA
