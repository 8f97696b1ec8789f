// The hand-over of outputs from the loop's thread to its consumer.
#include "loop/outbox.h"

#include <chrono>
#include <utility>

namespace stoker {

void Outputs::clear() {
  token_keys.clear();
  tokens.clear();
  logprob_indptr.clear();
  logprob_ids.clear();
  logprobs.clear();
  logprob_ranks.clear();
  score_keys.clear();
  score_positions.clear();
  scores.clear();
  score_logprob_indptr.clear();
  score_logprob_ids.clear();
  score_logprobs.clear();
  score_ranks.clear();
  pooled_keys.clear();
  pooled.clear();
  pooled_width = 0;
  end_keys.clear();
  finish_reasons.clear();
  stop_tokens.clear();
  num_tokens.clear();
  cached_tokens.clear();
  num_preemptions.clear();
  arrival_times.clear();
  first_scheduled_times.clear();
  first_token_times.clear();
  finished_times.clear();
  messages.clear();
}

void Outbox::poll(Outputs& out) {
  out.clear();
  const std::lock_guard lock(mutex_);
  std::swap(out, held_);
}

bool Outbox::wait(Outputs& out, TimeNs timeout_ns) {
  out.clear();
  std::unique_lock lock(mutex_);
  const auto news = [this] { return closed_ || !held_.empty(); };
  if (timeout_ns < 0) {
    changed_.wait(lock, news);
  } else {
    changed_.wait_for(lock, std::chrono::nanoseconds(timeout_ns), news);
  }
  std::swap(out, held_);
  return !out.empty();
}

void Outbox::close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  changed_.notify_all();
}

void Outbox::open() {
  const std::lock_guard lock(mutex_);
  closed_ = false;
}

}  // namespace stoker
