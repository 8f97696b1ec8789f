// Words for states and reasons.
#include "sched/req.h"

namespace stoker {

const char* name(ReqState state) {
  switch (state) {
    case ReqState::created:
      return "created";
    case ReqState::waiting:
      return "waiting";
    case ReqState::running:
      return "running";
    case ReqState::retracted:
      return "retracted";
    case ReqState::swapping_out:
      return "swapping_out";
    case ReqState::swapped:
      return "swapped";
    case ReqState::swapping_in:
      return "swapping_in";
    case ReqState::finished:
      return "finished";
  }
  return "?";
}

const char* name(FinishReason reason) {
  switch (reason) {
    case FinishReason::none:
      return "none";
    case FinishReason::stop:
      return "stop";
    case FinishReason::length:
      return "length";
    case FinishReason::abort:
      return "abort";
    case FinishReason::error:
      return "error";
  }
  return "?";
}

const char* name(WaitCode code) {
  switch (code) {
    case WaitCode::none:
      return "none";
    case WaitCode::queued:
      return "queued";
    case WaitCode::seats:
      return "seats";
    case WaitCode::token_budget:
      return "token_budget";
    case WaitCode::blocks:
      return "blocks";
    case WaitCode::reserve:
      return "reserve";
    case WaitCode::low_water:
      return "low_water";
    case WaitCode::in_flight:
      return "in_flight";
    case WaitCode::prefix:
      return "prefix";
    case WaitCode::batch:
      return "batch";
    case WaitCode::capacity:
      return "capacity";
    case WaitCode::tenant:
      return "tenant";
    case WaitCode::paused:
      return "paused";
    case WaitCode::host_transfer:
      return "host_transfer";
    case WaitCode::sibling:
      return "sibling";
    case WaitCode::outranked:
      return "outranked";
    case WaitCode::grammar:
      return "grammar";
  }
  return "?";
}

std::string describe(const WaitReason& reason) {
  const std::string needed = std::to_string(reason.needed);
  const std::string numbers =
      std::to_string(reason.free) + " free, " + std::to_string(reason.evictable) + " evictable";
  switch (reason.code) {
    case WaitCode::none:
      return "does not wait";
    case WaitCode::queued:
      return "waits behind others in the queue";
    case WaitCode::seats:
      return "waits for " + (reason.needed > 1 ? needed + " seats" : "a seat") + "; " +
             std::to_string(reason.free) + " free";
    case WaitCode::token_budget:
      return "waits for the next step: this one's tokens are handed out";
    case WaitCode::blocks:
      return "waits for " + needed + " blocks; " + numbers;
    case WaitCode::reserve:
      return "waits for " + needed + " blocks, the reserve for the running reqs included; " +
             numbers;
    case WaitCode::low_water:
      return "waits after a preemption until " + needed + " blocks are available; " + numbers;
    case WaitCode::in_flight:
      return "waits for its own last step to come back";
    case WaitCode::prefix:
      return "waits for another req that computes the same prefix";
    case WaitCode::batch:
      return "waits for the running batch to end (static batching)";
    case WaitCode::capacity:
      return "waits for the next step: this one's buffer is full";
    case WaitCode::tenant:
      return "waits for its tenant's limit of " + needed + " running reqs";
    case WaitCode::paused:
      return "waits: the scheduler is paused";
    case WaitCode::host_transfer:
      return "waits for a copy to or from host memory";
    case WaitCode::sibling:
      return "waits for its first sibling's prompt, which it shares";
    case WaitCode::outranked:
      return "waits behind a req that was overtaken often enough";
    case WaitCode::grammar:
      return "waits for its grammar to be compiled";
  }
  return "?";
}

}  // namespace stoker
