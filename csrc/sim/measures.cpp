// Histogram and course.
#include "sim/measures.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace stoker::sim {

void Histogram::add(TimeNs value) {
  ++count_;
  sum_ += value;
  const auto v = static_cast<uint64_t>(std::max<TimeNs>(value, 1));
  const int octave = static_cast<int>(std::bit_width(v)) - 1;
  const uint64_t fine = octave >= kFine ? v >> (octave - kFine) : v << (kFine - octave);
  ++buckets_[(static_cast<size_t>(octave) << kFine) + (fine & ((1U << kFine) - 1))];
}

void Histogram::read(std::vector<double>& middles, std::vector<int64_t>& counts) const {
  for (size_t b = 0; b < buckets_.size(); ++b) {
    if (buckets_[b] == 0) continue;
    const double low = 1.0 + static_cast<double>(b & ((1U << kFine) - 1)) / (1U << kFine);
    middles.push_back(std::ldexp(low + 0.5 / (1U << kFine), static_cast<int>(b >> kFine)));
    counts.push_back(buckets_[b]);
  }
}

void ReqMeasures::resize(size_t n) {
  for (auto* times : {&arrival, &scheduled, &first_token, &last_token}) times->assign(n, -1);
  for (auto* counts : {&num_tokens, &cached_tokens, &preemptions, &attempts}) counts->assign(n, 0);
  replica.assign(n, -1);
  reason.assign(n, 0);
  longest_gap.assign(n, 0);
}

size_t Course::bin_of(TimeNs at) {
  while (at / width_ >= static_cast<TimeNs>(kBins)) {
    const auto halve = [](auto& line) {
      for (size_t b = 0; b < kBins / 2; ++b) line[b] = line[2 * b] + line[2 * b + 1];
      std::fill(line.begin() + kBins / 2, line.end(), 0.0);
    };
    for (auto& line : sums_) halve(line);
    halve(prompt_);
    halve(output_);
    width_ *= 2;
    used_ = (used_ + 1) / 2;
  }
  const auto bin = static_cast<size_t>(at / width_);
  used_ = std::max(used_, bin + 1);
  return bin;
}

void Course::hold(Line line, TimeNs begin, TimeNs end, double value) {
  if (end <= begin) return;
  bin_of(end - 1);  // from here on the width stands
  auto& sums = sums_[static_cast<size_t>(line)];
  for (TimeNs at = begin; at < end;) {
    const TimeNs next = std::min(end, (at / width_ + 1) * width_);
    sums[static_cast<size_t>(at / width_)] += value * static_cast<double>(next - at);
    at = next;
  }
}

void Course::add_tokens(TimeNs at, double prompt, double output) {
  const size_t bin = bin_of(at);
  prompt_[bin] += prompt;
  output_[bin] += output;
}

}  // namespace stoker::sim
