// What a step brought back: the executor fills it, Scheduler::commit reads it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"

namespace stoker {

enum class StepStatus : int32_t {
  ok = 0,
  failed = 1,  // this step's reqs end with an error; the engine goes on
  fatal = 2,   // the device is lost: every req ends with an error and the engine stops
};

enum class RowStatus : int32_t {
  ok = 0,
  failed = 1,  // only this row's req ends with an error (NaN logits, a token outside the
               // vocabulary, ...)
};

// Flat arrays over the batch's output rows, in their order. Reused from step to step: clear() keeps
// the memory.
struct StepResult {
  BatchId batch_id = 0;
  StepStatus status = StepStatus::ok;
  std::string message;  // why, where status is not ok
  TimeNs device_time = 0;

  // [outs + 1]; empty means one token for each sampled row and none for the others
  std::vector<int32_t> row_indptr;
  std::vector<Token> token_ids;       // [row_indptr.back()]
  std::vector<RowStatus> row_status;  // [outs], or empty: all ok

  // Logprobs, for the rows that asked: row r's candidates are [logprob_indptr[r],
  // logprob_indptr[r+1]); the sampled token (score rows: out_target) first, then the best ones in
  // falling order.
  std::vector<int32_t> logprob_indptr;
  std::vector<Token> logprob_ids;
  std::vector<float> logprobs;
  std::vector<int32_t> logprob_ranks;  // [outs]: of its first candidate, from 1; 0: not computed

  std::vector<float> scores;  // [outs]: logprob of out_target for score rows; empty: no such rows
  std::vector<float> pooled;  // pool rows' vectors, one after another
  int32_t pooled_width = 0;

  std::vector<Ticket> finished_transfers;  // in a failed step too: a copy happens or is fatal
  TimeNs transfer_time = 0;  // that copies between tiers took since the last step; 0: not measured
  int64_t transfer_bytes = 0;  // that they moved

  void clear() {
    batch_id = 0;
    status = StepStatus::ok;
    message.clear();
    device_time = 0;
    row_indptr.clear();
    token_ids.clear();
    row_status.clear();
    logprob_indptr.clear();
    logprob_ids.clear();
    logprobs.clear();
    logprob_ranks.clear();
    scores.clear();
    pooled.clear();
    pooled_width = 0;
    finished_transfers.clear();
    transfer_time = 0;
    transfer_bytes = 0;
  }
};

}  // namespace stoker
