// What is kept of a simulated run: a few numbers a req, a histogram of the gaps between tokens, and
// the course of the fleet over time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/ids.h"

namespace stoker::sim {

// Counts durations in buckets that grow by 1/256: a percentile read from it is right within 0.2%.
class Histogram {
 public:
  void add(TimeNs value);
  int64_t count() const { return count_; }
  TimeNs sum() const { return sum_; }
  // (middle of the bucket in ns, count) of those that are not empty, rising.
  void read(std::vector<double>& middles, std::vector<int64_t>& counts) const;

 private:
  static constexpr int kFine = 8;  // log2 of the buckets an octave
  std::vector<int64_t> buckets_ = std::vector<int64_t>(size_t{64} << kFine);
  int64_t count_ = 0;
  TimeNs sum_ = 0;
};

// One entry a req of the workload. Times on the simulation's clock; -1: did not happen.
struct ReqMeasures {
  std::vector<TimeNs> arrival, scheduled, first_token, last_token;
  std::vector<int32_t> num_tokens, cached_tokens, preemptions, replica, attempts;
  std::vector<int8_t> reason;  // FinishReason
  std::vector<TimeNs> longest_gap;

  void resize(size_t n);
};

// Sums over time in at most kBins equal bins; when the run outgrows them, two become one.
class Course {
 public:
  enum Line { used_blocks, cached_blocks, total_blocks, running, waiting, replicas, kTimeLines };
  static constexpr size_t kBins = 512;

  // The line had this value from `begin` to `end`.
  void hold(Line line, TimeNs begin, TimeNs end, double value);
  void add_tokens(TimeNs at, double prompt, double output);

  TimeNs bin_width() const { return width_; }
  size_t num_bins() const { return used_; }
  // Mean of the line over each bin.
  double mean(Line line, size_t bin) const {
    return sums_[static_cast<size_t>(line)][bin] / static_cast<double>(width_);
  }
  double prompt_tokens(size_t bin) const { return prompt_[bin]; }
  double output_tokens(size_t bin) const { return output_[bin]; }

 private:
  size_t bin_of(TimeNs at);

  TimeNs width_ = 100'000'000;
  size_t used_ = 0;
  std::array<std::array<double, kBins>, kTimeLines> sums_{};
  std::array<double, kBins> prompt_{}, output_{};
};

}  // namespace stoker::sim
