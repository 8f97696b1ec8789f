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
  double step = 1e6;  // any step: launches, sampler, what does not depend on the batch
  double from_idle =
      0;           // a step launched while none is in flight, besides: wake-ups, its own launch
  double row = 0;  // each row
  double chunk_row = 0;    // each row of more than one token, besides
  double sampled = 0;      // each output row
  double weights = 0;      // reading the weights: linear layers take at least this
  double token = 1e4;      // linear layers, each token
  double chunk_token = 0;  // each token of a chunk, besides
  double decode_kv = 0;    // each KV position that a one-token row reads
  double chunk_kv = 0;     // each KV position that a chunk reads: chunks take at least this
  double score = 0;        // each (query, key) pair of a chunk
  double device_copy = 0;  // each block copied inside the device
  double host_copy = 0;    // each block moved to or from host memory, beside the step
  double host_before = 0;  // on the host: schedule and launch
  double host_after = 0;   // on the host: take a result back
  int32_t window = 0;      // sliding window of a share of the layers; 0: none
  double windowed_share = 0;
  // Ratios (time measured / time modelled), equally likely: one is drawn a step. Empty: a step
  // takes what the model says.
  std::vector<double> noise;
  // The same for steps of one size, where enough were measured: what the formula misses of them is
  // in their ratios. By size_class(); an empty one stands for `noise`.
  std::vector<std::vector<double>> noise_of_size;

  // Twice the bit width of the tokens, and one more where a chunk is among the rows.
  static size_t size_class(const StepWork& w);

  double device(const StepWork& w) const {
    const double linear =
        std::max(w.tokens > 0 ? weights : 0.0, token * static_cast<double>(w.tokens));
    const double attention =
        decode_kv * w.decode_kv + std::max(chunk_kv * w.chunk_kv, score * w.scores);
    const double rows = row * static_cast<double>(w.rows) +
                        chunk_row * static_cast<double>(w.chunk_rows) +
                        chunk_token * static_cast<double>(w.chunk_tokens) +
                        sampled * static_cast<double>(w.sampled);
    const double compute = (w.tokens > 0 ? step : 0.0) +
                           from_idle * static_cast<double>(w.from_idle) + linear + attention +
                           rows + device_copy * static_cast<double>(w.device_copies);
    return std::max(compute, host_copy * static_cast<double>(w.host_copies));
  }

  // `draw` picks the noise.
  TimeNs time(const StepWork& w, uint64_t draw) const;
};

}  // namespace stoker::sim
