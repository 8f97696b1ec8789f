// What a step takes on a device that is not there: time as a function of what the step has to do.
// The same few coefficients serve a roofline (from a model's sizes and a device's peaks) and a fit
// (to a recorded step trace); Python makes both.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/ids.h"
#include "sim/step_work.h"

namespace stoker::sim {

// All in nanoseconds.
struct CostModel {
  double step = 1e6;       // any step: launches, sampler, what does not depend on the batch
  double from_idle = 0;    // one launched while none is in flight, besides: wake-ups, its launch
  double row = 0;          // each row
  double chunk_row = 0;    // each row of more than one token, besides
  double sampled = 0;      // each output row
  double weights = 0;      // reading the weights: linear layers take at least this
  double token = 1e4;      // linear layers, each token
  double chunk_token = 0;  // each token of a chunk, besides
  double decode_kv = 0;    // each KV position that a one-token row reads
  double chunk_kv = 0;     // each KV position that a chunk reads: chunks take at least this
  double score = 0;        // each (query, key) pair of a chunk
  // Steps without a chunk, where they follow a formula of their own (decodes_step > 0) instead.
  double decodes_step = 0, decodes_row = 0, decodes_kv = 0;
  double device_copy = 0;  // each block copied inside the device
  double host_copy = 0;    // each block moved to or from host memory, beside the step
  double host_before = 0;  // on the host: schedule and launch
  double host_after = 0;   // on the host: take a result back
  int32_t window = 0;      // sliding window of a share of the layers; 0: none
  double windowed_share = 0;
  // What the formula misses of steps of one size, where enough were measured (a captured graph's or
  // a kernel's border): so much longer they take, or shorter. By size_class().
  std::vector<double> beyond_of_size;
  // Ratios (time measured / time modelled), equally likely: one is drawn a step. Empty: a step
  // takes what the model says.
  std::vector<double> noise;
  // The same for steps of one size, where enough were measured; an empty one stands for `noise`.
  std::vector<std::vector<double>> noise_of_size;

  // How long the host is busy launching a step of one size, equally likely; by size_class(). The
  // device works meanwhile, and is not done before the launch is.
  std::vector<std::vector<double>> launch_of_size;

  // Four classes for each doubling of the tokens (17 to 20, 21 to 24, 25 to 28, 29 to 32, 33 to 40,
  // ...), apart for steps with and without a chunk.
  static size_t size_class(const StepWork& w);

  double device(const StepWork& w) const {
    double own = w.tokens == 0                           ? 0
                 : decodes_step > 0 && w.chunk_rows == 0 ? decodes(w)
                                                         : formula(w);
    if (const size_t size = size_class(w); w.tokens > 0 && size < beyond_of_size.size()) {
      own = std::max(own + beyond_of_size[size], 0.0);
    }
    const double compute = own + from_idle * static_cast<double>(w.from_idle) +
                           device_copy * static_cast<double>(w.device_copies);
    return std::max(compute, host_copy * static_cast<double>(w.host_copies));
  }

  // On the device; `draw` picks the noise.
  TimeNs time(const StepWork& w, uint64_t draw) const;
  // On the host.
  TimeNs launch_time(const StepWork& w, uint64_t draw) const;

 private:
  double formula(const StepWork& w) const {
    const double linear = std::max(weights, token * static_cast<double>(w.tokens));
    const double attention =
        decode_kv * w.decode_kv + std::max(chunk_kv * w.chunk_kv, score * w.scores);
    return step + row * static_cast<double>(w.rows) +
           chunk_row * static_cast<double>(w.chunk_rows) +
           chunk_token * static_cast<double>(w.chunk_tokens) +
           sampled * static_cast<double>(w.sampled) + linear + attention;
  }
  double decodes(const StepWork& w) const {
    return decodes_step + decodes_row * static_cast<double>(w.rows) + decodes_kv * w.decode_kv;
  }
};

}  // namespace stoker::sim
