// Sampling: one token a row by the parameters of its seat. Semantics:
// python/stoker/ops/reference_sample.py.
#pragma once

#include <cstdint>

#include "cuda/ops.h"

namespace stoker::cuda {

// A seat's record, as csrc/sched/schedule_batch.h's SeatChange lies in memory.
struct SeatRecord {
  int32_t seat, flags;
  float temperature, top_p, min_p;
  int32_t top_k;
  float repetition_penalty, presence_penalty, frequency_penalty;
  int32_t num_logprobs;
  uint32_t seed_low, seed_high;
  int32_t min_position;
  int32_t unused[2];
  int32_t num_bias, num_stop;
  int32_t unused_too[3];
};
static_assert(sizeof(SeatRecord) == 80);

// In penalty_counts: the token stands in the prompt; lower bits count how often it stands in the
// output.
inline constexpr int32_t kPromptBit = 1 << 30;

// Sums of a vocabulary's probabilities, in fixed point of 44 bits, fit in 64.
inline constexpr int64_t kMaxSampledVocab = (1 << 20) - 1;

struct SampleParams {
  int32_t* out_tokens;
  const void* logits;
  const SeatRecord* seats;
  const int32_t* bias_ids;
  const float* bias_values;
  const int32_t* stop_ids;
  const int32_t* penalty_counts;  // nullptr: nobody has penalties
  const int32_t* row_seat;
  const int32_t* row_position;
  const int32_t* mask;      // nullptr: none
  const int32_t* mask_row;  // [rows], -1: none
  float* sampled_logprob;   // nullptr: no logprobs
  int32_t* rank;
  int32_t* top_ids;
  float* top_logprobs;
  int64_t rows, logits_stride, bias_stride, bias_value_stride, stop_stride, counts_stride,
      mask_stride, top_stride;
  int32_t vocab, max_top;
  Type type;
};
cudaError_t sample(const SampleParams& p, const LaunchOptions& how);

}  // namespace stoker::cuda
