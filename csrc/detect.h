// SPDX-License-Identifier: BSD-3-Clause
// From the heads' outputs of an image to its detections. Torch-free.
// Contract: ssd_fast/ops/detect.py.
//
// Most rows hold background. They are told by comparisons alone: a class scores above t only if
// its logit exceeds the background's, or 0 where scores are sigmoids, by more than
// log(t / (1 - t)). The rest gets its softmax or sigmoids.
// Candidates of all classes are then visited in one order, best first, only as many as it takes:
// a class takes part with its first top_k, and the visit ends with the last detection. Boxes of
// different classes never meet, so that is what NMS class by class would keep.
//
// Soft suppression lowers scores, so a candidate waits until none that may still be better is left.
// Its score is brought up to date when it is the best that waits: scores only fall, so one that
// stays the best is the best of all.
//
// Where nearly every row passes that comparison (the first epoch), a sample of rows gives a floor
// that about as many scores reach as it takes, and rows that stay below it are told by one
// exponential a logit, or by a comparison of sigmoids' logits. Should all candidates be visited,
// the next best are, from the logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

#include "best_keys.h"
#include "box.h"
#include "box_lanes.h"
#include "decode.h"
#include "exponential.h"
#include "instruction_set.h"
#include "kept_boxes.h"
#include "row_filter.h"
#include "rows.h"
#include "score_order.h"
#include "score_row.h"
#include "scratch.h"
#include "simd.h"

namespace ssd_fast {

enum class Nms : int64_t { kHard, kSoftLinear, kSoftGaussian, kDiou };
enum class Scores : int64_t { kSoftmax, kSigmoid };

struct DetectOptions {
  float score_threshold;
  int64_t top_k;
  float iou_threshold;
  int64_t max_detections;
  Variances variances;
  int64_t background;  // -1 for none
  float max_log_scale;
  Nms nms;
  float sigma;
  Scores scores;

  bool is_sigmoid() const { return scores == Scores::kSigmoid; }
  bool is_soft() const { return nms == Nms::kSoftLinear || nms == Nms::kSoftGaussian; }
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

// How far a logit must exceed the background's, or 0, for a score above `threshold`. Computed
// scores are off by some 1e-6 of themselves, so the bound belongs to a threshold 1e-4 lower.
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

}  // namespace ssd_fast

namespace ssd_fast::SSD_FAST_ISA {

// Finds the detections of images, one after the other; keeps its scratch memory between them.
class Detector {
 public:
  // Prepares for a job, which must outlive the detection.
  void reset(const DetectJob& job) {
    job_ = &job;
    decay_ = {job.options.nms == Nms::kSoftGaussian, job.options.iou_threshold, job.options.sigma};
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
  static constexpr size_t kListed = 64;
  static constexpr float kNoFloor = -std::numeric_limits<float>::infinity();

  int64_t find(int64_t image) {
    const int64_t classes = job_->logits.channels;
    const DetectOptions& options = job_->options;
    kept_.reset(classes);
    waiting_.clear();
    seen_.assign(static_cast<size_t>(classes), 0);
    open_.assign(static_cast<size_t>(classes + ScoreRow::kPartial), 0);
    std::fill(open_.begin(), open_.begin() + classes, 1);
    if (options.background >= 0) open_[options.background] = 0;

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
          if (options.is_soft()) count = settle(keys[first + i], image, count);
          if (count == options.max_detections) return count;
          count += visit(candidates_[i], image, count);
        }
      }
      if (!keys.empty()) visited = keys.back();
      if (!best_.has_left_out() && floor == kNoFloor) break;
    }
    return settle(std::numeric_limits<uint64_t>::max(), image, count);
  }

  // Offers all scores above the threshold that reach the floor. Without a floor it gives up, and
  // returns false, where `few` rows and a quarter of those scanned have such scores.
  bool collect(int64_t image, float floor, int64_t few) {
    const DetectOptions& options = job_->options;
    const bool is_softmax = !options.is_sigmoid();
    int64_t offered = 0, scanned_before = 0;
    bar_ = is_softmax || floor == kNoFloor ? margin_ : std::max(margin_, logit_margin(floor));
    for (size_t l = 0; l < starts_.size(); ++l) {
      const Level& level = job_->logits.levels[l];
      listed_.clear();
      const auto offer = [&](int64_t row, int64_t scanned) {
        list_row(l, image, row);
        return ++offered < few + (scanned_before + scanned) / 4;
      };
      filter_.reset(level, job_->logits.dtype, job_->logits.channels, options.background,
                    is_softmax);
      const bool go_on = is_softmax && floor != kNoFloor
                             ? filter_.reaching(image, margin_, floor, offer)
                             : filter_.leading(image, bar_, offer);
      if (!go_on) return false;
      offer_listed(l, image);
      scanned_before += level.rows;
    }
    return true;
  }

  // Puts a row off: the search for rows goes on meanwhile, and so does the way of its box here.
  void list_row(size_t l, int64_t image, int64_t row) {
    const Level& level = job_->deltas.levels[l];
    const int64_t offset = level.offset(image, row) * job_->deltas.element_size();
    __builtin_prefetch(static_cast<const char*>(level.data) + offset);
    __builtin_prefetch(job_->priors + 4 * (starts_[l] + row));
    listed_.push_back(row);
    if (listed_.size() == kListed) offer_listed(l, image);
  }

  void offer_listed(size_t l, int64_t image) {
    for (const int64_t row : listed_) offer_row(l, image, row);
    listed_.clear();
  }

  // A floor that about `wanted` scores behind `visited` reach, or none where fewer are left.
  float sampled_floor(int64_t image, uint64_t visited, int64_t wanted) {
    constexpr int64_t kSample = 128;
    const int64_t step = job_->P / kSample;
    const size_t rank = static_cast<size_t>(wanted / std::max<int64_t>(step, 1));
    if (step < 2 || rank == 0 || rank >= BestKeys::kMost) return kNoFloor;
    best_.reset(rank, visited, kNoFloor);
    bar_ = margin_;
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
    const auto offer = [&](int64_t c, Floats score, uint32_t classes) {
      for (; classes != 0; classes &= classes - 1) {
        const int k = __builtin_ctz(classes);
        const int64_t index = (c + k) * job_->P + prior;
        best_.offer(score_key(score[k], static_cast<uint32_t>(index)));
      }
    };
    const float threshold = std::max(job_->options.score_threshold, best_.below());
    if (job_->options.is_sigmoid()) {
      row_.sigmoids(threshold, bar_, open_.data(), offer);
    } else {
      row_.scores(threshold, open_.data(), offer);
    }
  }

  struct Candidate {
    uint64_t key;
    int64_t label;
    Box box;
    int32_t met;  // how many of the kept boxes of its class its key knows of
  };

  // Decodes the first `n` of the keys, at most kAhead, into candidates_. Their deltas lie far
  // apart: read one after another they would be waited for one after another.
  void decode(int64_t image, const uint64_t* keys, size_t n) {
    float delta[4][kAhead] = {}, prior_box[4][kAhead] = {};
    for (size_t i = 0; i < n; ++i) {
      const uint32_t index = static_cast<uint32_t>(keys[i]);
      const int64_t label = index / static_cast<uint32_t>(job_->P);
      const int64_t prior = index - label * job_->P;
      candidates_[i].key = keys[i];
      candidates_[i].label = label;
      const auto [level, offset] = deltas_of(image, prior);
      visit_dtype(job_->deltas.dtype, [&, level = level, offset = offset](auto* type) {
        const auto* const row = static_cast<decltype(type)>(level->data) + offset;
        for (int k = 0; k < 4; ++k) delta[k][i] = to_float(row[k * level->channel_stride]);
      });
      for (int k = 0; k < 4; ++k) prior_box[k][i] = job_->priors[4 * prior + k];
    }
    const DetectOptions& options = job_->options;
    for (size_t i = 0; i < n; i += kLanes) {
      const auto lanes = [i](const float (&from)[4][kAhead], int k) { return load(&from[k][i]); };
      const Offsets offsets{lanes(delta, 0), lanes(delta, 1), lanes(delta, 2), lanes(delta, 3)};
      const Boxes priors{lanes(prior_box, 0), lanes(prior_box, 1), lanes(prior_box, 2),
                         lanes(prior_box, 3)};
      const Boxes box = decode_boxes(offsets, priors, options.variances, options.max_log_scale);
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        candidates_[i + lane].box = {box.x1[lane], box.y1[lane], box.x2[lane], box.y2[lane]};
      }
    }
  }

  // Writes the candidate as detection number `count` if it is one; lets it wait if that may be.
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
    if (!is_finite(box)) return false;
    if (options.is_soft()) {
      wait({candidate.key, label, box, 0});
      return false;
    }
    const bool is_kept = options.nms == Nms::kDiou
                             ? kept_.keep(label, box, options.iou_threshold, suppresses_nearby)
                             : kept_.keep(label, box, options.iou_threshold,
                                          [](auto&&... block) { return suppresses(block...); });
    if (is_kept) write(score_of(candidate.key), label, box, image, count);
    return is_kept;
  }

  // Detects what waits and is better than all candidates from `key` on; returns the detections
  // there are then, at most max_detections.
  int64_t settle(uint64_t key, int64_t image, int64_t count) {
    while (!waiting_.empty() && waiting_.front().key < key &&
           count < job_->options.max_detections) {
      std::pop_heap(waiting_.begin(), waiting_.end(), is_worse);
      Candidate best = waiting_.back();
      waiting_.pop_back();
      const float before = score_of(best.key);
      const float score = kept_.decay(best.label, best.box, before, decay_, &best.met);
      if (score < before) {
        if (!(score > job_->options.score_threshold)) continue;
        best.key = score_key(score, static_cast<uint32_t>(best.key));
        wait(best);
      } else {
        kept_.add(best.label, best.box, area(best.box));
        write(score, best.label, best.box, image, count++);
      }
    }
    return count;
  }

  static bool is_worse(const Candidate& a, const Candidate& b) { return a.key > b.key; }

  void wait(const Candidate& candidate) {
    waiting_.push_back(candidate);
    std::push_heap(waiting_.begin(), waiting_.end(), is_worse);
  }

  // Writes detection number `count`.
  void write(float score, int64_t label, const Box& box, int64_t image, int64_t count) {
    const int64_t row = image * job_->options.max_detections + count;
    std::memcpy(job_->boxes + 4 * row, &box, sizeof(box));
    job_->scores[row] = score;
    job_->labels[row] = label;
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
  float bar_ = 0;                // what the logits of sigmoids have to reach at the moment
  std::vector<int64_t> starts_;  // first prior of each level
  RowFilter filter_;
  std::vector<int64_t> listed_;  // rows to offer
  ScoreRow row_;
  BestKeys best_;
  Candidate candidates_[kAhead];
  KeptBoxes kept_;
  Decay decay_{};
  std::vector<Candidate> waiting_;  // a heap, the best first
  std::vector<int64_t> seen_;       // candidates visited of each class
  AlignedVector<int32_t> open_;     // 1 for classes that may have further candidates, else 0
};

}  // namespace ssd_fast::SSD_FAST_ISA
