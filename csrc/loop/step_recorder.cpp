// Filling a Recording.
#include "loop/step_recorder.h"

#include <algorithm>
#include <utility>

namespace stoker {

void StepRecorder::start(size_t max_rows) {
  const std::lock_guard lock(mutex_);
  max_rows_ = max_rows;
  held_ = {};
  seen_.clear();
  first_ = last_ = 0;
  on_.store(true, std::memory_order_relaxed);
}

void StepRecorder::stop() { on_.store(false, std::memory_order_relaxed); }

Recording StepRecorder::take() {
  const std::lock_guard lock(mutex_);
  return std::exchange(held_, {});
}

// Whether there is no room for step `id`.
bool StepRecorder::full(BatchId id) {
  if (held_.rows.size() >= max_rows_) {
    ++held_.dropped_steps;
    return true;
  }
  if (first_ == 0) first_ = id;
  last_ = id;
  return false;
}

void StepRecorder::add_rows(const BatchBuffer& batch, const std::vector<ReqKey>& keys) {
  const BatchHeader& header = batch.header();
  const auto seats = batch.used<int32_t>(Section::row_seat);
  const auto indptr = batch.used<int32_t>(Section::row_indptr);
  const auto kv_len = batch.used<int32_t>(Section::row_kv_len);
  for (size_t r = 0; r < keys.size(); ++r) {
    held_.rows.push_back({.batch_id = header.batch_id,
                          .key = keys[r],
                          .seat = seats[r],
                          .num_tokens = indptr[r + 1] - indptr[r],
                          .kv_len = kv_len[r],
                          .decodes = r < static_cast<size_t>(header.num_decode_rows)});
  }
}

void StepRecorder::look(BatchId id, TimeNs now, ReqKey key, const Req& req,
                        const WaitReason& wait) {
  const auto [it, is_new] =
      seen_.try_emplace(key, Seen{req.state, wait.code, req.account.retractions});
  if (is_new) introduce(key, req);
  Seen& seen = it->second;
  // A req that was retracted and came back between two looks is told too.
  if (!is_new && seen.state == req.state && seen.code == wait.code &&
      seen.retractions == req.account.retractions) {
    return;
  }
  seen = {req.state, wait.code, req.account.retractions};
  held_.changes.push_back(
      {.batch_id = id, .time = now, .key = key, .state = req.state, .wait = wait});
}

// A hash table's order is nobody's: by key from `first` on.
void StepRecorder::in_order(size_t first) {
  std::sort(held_.changes.begin() + static_cast<std::ptrdiff_t>(first), held_.changes.end(),
            [](const RecordedChange& a, const RecordedChange& b) { return a.key < b.key; });
}

void StepRecorder::introduce(ReqKey key, const Req& req) {
  held_.reqs.push_back({.key = key,
                        .rid = req.rid,
                        .prompt_len = req.prompt_len,
                        .arrival_time = req.account.arrival_time});
}

void StepRecorder::committed(const StepTrace& trace) {
  const std::lock_guard lock(mutex_);
  const BatchId id = trace.stats.batch_id;
  // Not those that were in flight when recording began.
  if (first_ != 0 && id >= first_ && id <= last_) held_.steps.push_back(trace);
}

void StepRecorder::delivered(BatchId batch_id, ReqKey key, int32_t num_tokens) {
  const std::lock_guard lock(mutex_);
  if (held_.rows.size() >= max_rows_ || first_ == 0 || batch_id < first_) return;
  held_.tokens.push_back({.batch_id = batch_id, .key = key, .count = num_tokens});
}

void StepRecorder::ended(BatchId batch_id, ReqKey key, const Req& req) {
  const std::lock_guard lock(mutex_);
  if (seen_.erase(key) == 0) introduce(key, req);
  const ReqAccount& account = req.account;
  held_.ends.push_back({.batch_id = batch_id,
                        .key = key,
                        .reason = req.finish_reason,
                        .num_outputs = req.num_outputs(),
                        .retractions = account.retractions,
                        .swaps = account.swaps,
                        .cached_tokens = account.cached_tokens,
                        .first_scheduled_time = account.first_scheduled_time,
                        .first_token_time = account.first_token_time,
                        .finish_time = account.finish_time});
}

}  // namespace stoker
