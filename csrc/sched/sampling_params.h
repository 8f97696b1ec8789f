// What a req asks of the sampler and when it ends, as the scheduler keeps it: plain numbers, read
// once from the caller.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "base/ids.h"

namespace stoker {

// Field by field vLLM's SamplingParams, less what only text can tell (stop strings belong to the
// front-end).
struct SamplingParams {
  float temperature = 1.0F;
  float top_p = 1.0F;
  float min_p = 0.0F;
  int32_t top_k = 0;  // <= 0: all
  float repetition_penalty = 1.0F;
  float presence_penalty = 0.0F;
  float frequency_penalty = 0.0F;
  int32_t max_tokens = -1;  // -1: as many as the model's length allows
  int32_t min_tokens = 0;
  bool ignore_eos = false;
  bool has_seed = false;
  uint64_t seed = 0;
  int32_t n = 1;
  int32_t num_logprobs = -1;     // -1: none
  int32_t prompt_logprobs = -1;  // -1: none; else every prompt token but the first is scored
  std::vector<Token> stop_token_ids;
  std::vector<std::pair<Token, float>> logit_bias;

  bool has_penalties() const {
    return repetition_penalty != 1.0F || presence_penalty != 0.0F || frequency_penalty != 0.0F;
  }
};

}  // namespace stoker
