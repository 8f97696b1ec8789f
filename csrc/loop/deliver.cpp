// What becomes of a step's events: tokens, scores and ends in the outbox; and how a req ends that
// is refused, or whose engine fails.
#include <algorithm>
#include <utility>

#include "base/planted_bugs.h"
#include "loop/engine_loop.h"

namespace stoker {

namespace {

// Once any token has logprobs, every token has an entry: those that came after the last one with
// any have none.
void pad_logprobs(Outputs& out) {
  if (out.logprob_indptr.empty()) return;
  out.logprob_indptr.resize(out.tokens.size() + 1, static_cast<int32_t>(out.logprob_ids.size()));
  out.logprob_ranks.resize(out.tokens.size(), 0);
}

}  // namespace

void EngineLoop::deliver(const StepEvents& events, const StepResult* result) {
  if (events.empty()) return;
  for (const ReqPtr& req : events.ended) {
    if (req->grammar != 0)
      ended_grammars_.emplace_back(owners_[static_cast<size_t>(req->id)].key, req->grammar);
  }
  outbox_.publish([&](Outputs& out) {
    size_t next_end = 0;
    for (size_t i = 0; i < events.reqs.size(); ++i) {
      const Owner owner = owners_[static_cast<size_t>(events.reqs[i])];
      const bool ends = events.finish_reasons[i] != 0;
      if (owner.stream) append_tokens(out, events, i, result);
      if (recorder_.on() && events.token_indptr[i] < events.token_indptr[i + 1]) {
        recorder_.delivered(events.batch_id, owner.key,
                            events.token_indptr[i + 1] - events.token_indptr[i]);
      }
      if (!ends) continue;
      const Req& req = *events.ended[next_end++];
      if (recorder_.on()) recorder_.ended(events.batch_id, owner.key, req);
      if (!owner.stream) {
        const auto outputs = static_cast<size_t>(req.num_outputs());
        out.token_keys.insert(out.token_keys.end(), outputs, owner.key);
        out.tokens.insert(out.tokens.end(), req.tokens.end() - static_cast<std::ptrdiff_t>(outputs),
                          req.tokens.end());
      }
      if (!planted(Bug::lost_end) || owner.key % 7 != 6) append_end(out, owner.key, req);
      live_.erase(owner.key);
    }
    pad_logprobs(out);
    // Under the outbox's lock: who sees the count fall finds the end there, who is woken by the end
    // sees it fallen.
    unfinished_.fetch_sub(static_cast<int64_t>(next_end), std::memory_order_acq_rel);
    if (result == nullptr) return;
    for (size_t i = 0; i < events.score_reqs.size(); ++i) append_score(out, events, i, *result);
    for (const ReqId id : events.pooled_reqs) {
      out.pooled_keys.push_back(owners_[static_cast<size_t>(id)].key);
    }
    if (!events.pooled_reqs.empty()) {
      out.pooled.insert(out.pooled.end(), result->pooled.begin(), result->pooled.end());
      out.pooled_width = result->pooled_width;
    }
  });
  // Outside the outbox's lock: a mask source may wait for the GIL, and who holds that for the lock.
  if (!ended_grammars_.empty()) forget_grammars();
}

void EngineLoop::append_tokens(Outputs& out, const StepEvents& events, size_t i,
                               const StepResult* result) {
  const auto begin = static_cast<size_t>(events.token_indptr[i]);
  const auto end = static_cast<size_t>(events.token_indptr[i + 1]);
  if (begin == end) return;
  const ReqKey key = owners_[static_cast<size_t>(events.reqs[i])].key;
  const bool has_logprobs = result != nullptr && !result->logprob_indptr.empty() &&
                            events.out_rows[i] >= 0 &&
                            result->logprob_indptr[static_cast<size_t>(events.out_rows[i])] <
                                result->logprob_indptr[static_cast<size_t>(events.out_rows[i]) + 1];
  for (size_t t = begin; t < end; ++t) {
    out.token_keys.push_back(key);
    out.tokens.push_back(events.tokens[t]);
    if (planted(Bug::outbox_duplicate) && key % 5 == 4) {
      out.token_keys.push_back(key);
      out.tokens.push_back(events.tokens[t]);
    }
    if (!has_logprobs && out.logprob_indptr.empty()) continue;
    // From the first token with logprobs on, every token has its entry; those before it have none.
    out.logprob_indptr.resize(out.tokens.size(), static_cast<int32_t>(out.logprob_ids.size()));
    out.logprob_ranks.resize(out.tokens.size(), 0);
    if (has_logprobs && t == begin) {
      const auto row = static_cast<size_t>(events.out_rows[i]);
      const auto first = result->logprob_indptr[row];
      const auto last = result->logprob_indptr[row + 1];
      out.logprob_ids.insert(out.logprob_ids.end(), result->logprob_ids.begin() + first,
                             result->logprob_ids.begin() + last);
      out.logprobs.insert(out.logprobs.end(), result->logprobs.begin() + first,
                          result->logprobs.begin() + last);
      if (row < result->logprob_ranks.size()) out.logprob_ranks.back() = result->logprob_ranks[row];
    }
    out.logprob_indptr.push_back(static_cast<int32_t>(out.logprob_ids.size()));
  }
}

void EngineLoop::append_score(Outputs& out, const StepEvents& events, size_t i,
                              const StepResult& result) {
  const auto row = static_cast<size_t>(events.score_rows[i]);
  out.score_keys.push_back(owners_[static_cast<size_t>(events.score_reqs[i])].key);
  out.score_positions.push_back(events.score_positions[i]);
  out.scores.push_back(result.scores[row]);
  out.score_logprob_indptr.resize(out.scores.size(),
                                  static_cast<int32_t>(out.score_logprob_ids.size()));
  out.score_ranks.push_back(row < result.logprob_ranks.size() ? result.logprob_ranks[row] : 0);
  if (row + 1 < result.logprob_indptr.size()) {
    const auto first = result.logprob_indptr[row];
    const auto last = result.logprob_indptr[row + 1];
    out.score_logprob_ids.insert(out.score_logprob_ids.end(), result.logprob_ids.begin() + first,
                                 result.logprob_ids.begin() + last);
    out.score_logprobs.insert(out.score_logprobs.end(), result.logprobs.begin() + first,
                              result.logprobs.begin() + last);
  }
  out.score_logprob_indptr.push_back(static_cast<int32_t>(out.score_logprob_ids.size()));
}

void EngineLoop::append_end(Outputs& out, ReqKey key, const Req& req) {
  const ReqAccount& account = req.account;
  out.end_keys.push_back(key);
  out.finish_reasons.push_back(static_cast<int32_t>(req.finish_reason));
  out.stop_tokens.push_back(req.matched_stop);
  out.num_tokens.push_back(req.num_outputs());
  out.cached_tokens.push_back(account.cached_tokens);
  out.num_preemptions.push_back(account.retractions + account.swaps);
  out.arrival_times.push_back(account.arrival_time);
  out.first_scheduled_times.push_back(account.first_scheduled_time);
  out.first_token_times.push_back(account.first_token_time);
  out.finished_times.push_back(account.finish_time);
  out.messages.push_back(req.error);
}

void EngineLoop::refuse(const AddMessage& message, const std::string& why) {
  Req req = *message.req;  // a copy: who made it may be looking at it
  req.finish_reason = FinishReason::error;
  req.error = why;
  req.account.arrival_time = req.account.finish_time = clock_.now();
  req.prompt_len = req.known();
  const int32_t n = std::max(req.params.n, 1);
  outbox_.publish([&](Outputs& out) {
    for (int32_t i = 0; i < n; ++i) append_end(out, message.key + i, req);
    unfinished_.fetch_sub(n, std::memory_order_acq_rel);
  });
  if (req.grammar == 0) return;
  for (int32_t i = 0; i < n; ++i) options_.masks->forget(message.key + i, req.grammar);
}

void EngineLoop::fail(const std::string& why) {
  failure_ = why;
  std::vector<ReqKey> keys;
  keys.reserve(live_.size());
  for (const auto& [key, req] : live_) keys.push_back(key);
  std::sort(keys.begin(), keys.end());
  outbox_.publish([&](Outputs& out) {
    for (const ReqKey key : keys) {
      Req& req = *live_.at(key);
      req.finish_reason = FinishReason::error;
      req.error = why;
      req.account.finish_time = clock_.now();
      const auto id = static_cast<size_t>(req.id);
      if (!owners_[id].stream) {
        out.token_keys.insert(out.token_keys.end(), static_cast<size_t>(req.num_outputs()), key);
        out.tokens.insert(out.tokens.end(), req.tokens.begin() + req.prompt_len, req.tokens.end());
      }
      append_end(out, key, req);
    }
    pad_logprobs(out);
    unfinished_.fetch_sub(static_cast<int64_t>(keys.size()), std::memory_order_acq_rel);
  });
  for (const auto& [key, req] : live_) {
    if (req->grammar != 0) options_.masks->forget(key, req->grammar);
  }
  live_.clear();
  // If it was a message that broke it: those that were drained with it.
  for (Message& message : received_) {
    if (const auto* add = std::get_if<AddMessage>(&message)) refuse(*add, why);
  }
  received_.clear();
  const std::lock_guard lock(stats_mutex_);
  stats_.failure = why;
}

}  // namespace stoker
