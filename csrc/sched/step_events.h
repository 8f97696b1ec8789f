// What commit() tells its caller: new tokens and ends, as flat arrays that are reused from step to
// step.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/ids.h"
#include "sched/config.h"
#include "sched/req.h"
#include "sched/step_result.h"

namespace stoker {

// One entry for each req with news since the last StepEvents was taken: tokens of the committed
// step, and ends of any kind (also those that abort() or schedule() caused in between). A handle in
// `reqs` is not given to another req before the StepEvents after this one, so it can be used to
// look things up while these events are read.
struct StepEvents {
  BatchId batch_id = 0;  // 0: no step was committed
  StepStatus status = StepStatus::ok;
  std::string message;

  std::vector<ReqId> reqs;
  std::vector<int32_t> token_indptr{0};  // [reqs + 1] into tokens
  std::vector<Token> tokens;
  std::vector<int32_t> finish_reasons;  // [reqs] FinishReason; 0: goes on
  std::vector<int32_t> out_rows;        // [reqs]: the batch's output row, for logprobs; -1: none
  // Prompt tokens that were scored: StepResult::scores[score_rows[i]] is the logprob of the req's
  // token at the position.
  std::vector<ReqId> score_reqs;
  std::vector<int32_t> score_positions;
  std::vector<int32_t> score_rows;
  std::vector<ReqId> pooled_reqs;  // in the order of StepResult::pooled
  std::vector<ReqPtr> ended;       // the reqs whose finish_reasons entry is not 0, in that order

  void clear();
  bool empty() const { return reqs.empty() && score_reqs.empty() && pooled_reqs.empty(); }
};

struct BlockCounts {
  int32_t total = 0, free = 0, used = 0, cached = 0, draining = 0;
};

// How and why a req stepped aside: KV ran out, a req that outranks it needed its place, or a step
// that it stands on failed.
enum class PreemptionKind : uint8_t { retract, swap };
enum class PreemptionReason : uint8_t { blocks, priority, failure };
using PreemptionCounts = std::array<std::array<int64_t, 3>, 2>;  // [kind][reason], since the start

// One line of the step trace: what the step held and what it left behind.
struct StepStats {
  BatchId batch_id = 0;
  TimeNs time = 0;
  int32_t num_running = 0;  // reqs that hold a seat
  int32_t num_waiting = 0;
  int32_t num_swapped = 0;  // reqs whose KV is in host memory, or on its way there
  int32_t num_decode_rows = 0;
  int32_t num_prefill_rows = 0;
  int32_t num_tokens = 0;
  int32_t num_sampled_rows = 0;
  int32_t num_admitted = 0;
  int32_t num_preempted = 0;      // retracted or swapped out
  int32_t num_swapped_out = 0;    // of these
  int32_t num_swapped_in = 0;     // reqs that began their way back
  int32_t num_sat_out = 0;        // running reqs that had to leave out this step
  int32_t cached_tokens = 0;      // found in the prefix cache by what was admitted
  int32_t recomputed_tokens = 0;  // of num_tokens, computed before already
  int32_t num_transfers = 0;
  float new_token_ratio = 0;
  int32_t num_groups = 0;
  BlockCounts blocks[kMaxKVGroups];
  BlockCounts host_blocks[kMaxKVGroups];
};

}  // namespace stoker
