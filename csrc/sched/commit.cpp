// The way back: tokens, ends, failed rows and steps.
#include <algorithm>
#include <memory>
#include <numeric>

#include "base/check.h"
#include "base/planted_bugs.h"
#include "sched/scheduler.h"

namespace stoker {

// What a step brought, in its full or its short form.
struct Scheduler::ResultView {
  BatchId batch_id;
  StepStatus status;
  std::span<const Token> tokens;
  const StepResult* full;  // null: one token for each sampled row
};

const StepEvents& Scheduler::commit(const StepResult& result, TimeNs now) {
  return take_back({result.batch_id, result.status, result.token_ids, &result}, now);
}

const StepEvents& Scheduler::commit(BatchId batch_id, std::span<const Token> tokens, TimeNs now) {
  return take_back({batch_id, StepStatus::ok, tokens, nullptr}, now);
}

const StepEvents& Scheduler::take_back(const ResultView& result, TimeNs now) {
  if (result.batch_id != committed_ + 1 || result.batch_id >= next_batch_) {
    throw InvalidArgument(
        "commit: batch " + std::to_string(result.batch_id) + " is not the oldest step in flight" +
        (steps_in_flight() > 0 ? " (that is " + std::to_string(committed_ + 1) + ")"
                               : " (there is none)"));
  }
  StepRecord& step = steps_[static_cast<size_t>(result.batch_id) % steps_.size()];
  check_result(step, result);
  if (log_ != nullptr) {
    const StepResult* full = result.full;
    log_->commit(
        result.batch_id, result.status, full ? std::string_view(full->message) : std::string_view(),
        full ? std::span<const int32_t>(full->row_indptr) : std::span<const int32_t>(),
        result.tokens,
        full ? std::span<const RowStatus>(full->row_status) : std::span<const RowStatus>(),
        full ? std::span<const Ticket>(full->finished_transfers) : std::span<const Ticket>(), now);
  }
  now_ = std::max(now_, now);
  committed_ = step.batch_id;
  for (BlockPool& pool : pools_) pool.committed(committed_);
  auto& seats = draining_seats_[static_cast<size_t>(committed_) % draining_seats_.size()];
  num_draining_seats_ -= static_cast<int32_t>(seats.size());
  for (; !seats.empty(); seats.pop_back()) free_seats_.push_back(seats.back());

  if (result.full != nullptr) {
    for (const Ticket ticket : result.full->finished_transfers) take_ticket(ticket);
  }
  if (result.status == StepStatus::ok) {
    commit_rows(step, result);
  } else {
    fail_step(step, result.full->message, result.status == StepStatus::fatal);
  }
  events_.batch_id = step.batch_id;
  events_.status = result.status;
  return tell_events();
}

void Scheduler::check_result(const StepRecord& step, const ResultView& result) {
  if (result.full != nullptr) {
    for (const Ticket ticket : result.full->finished_transfers) {
      if (move_of(ticket) == nullptr) {
        throw InvalidArgument("commit: no transfer with ticket " + std::to_string(ticket) +
                              " is under way");
      }
    }
  }
  if (result.status != StepStatus::ok) return;
  const auto wrong = [&](const char* what, size_t given, int32_t wanted) {
    if (given == static_cast<size_t>(wanted)) return;
    throw InvalidArgument("commit: batch " + std::to_string(step.batch_id) + " takes " +
                          std::to_string(wanted) + " " + what + ", not " + std::to_string(given));
  };
  if (result.full == nullptr || result.full->row_indptr.empty()) {
    wrong("tokens (one for each sampled row)", result.tokens.size(), step.num_sampled);
  } else {
    const auto& indptr = result.full->row_indptr;
    wrong("row_indptr entries", indptr.size(), step.num_outs + 1);
    if (indptr.front() != 0 || !std::is_sorted(indptr.begin(), indptr.end())) {
      throw InvalidArgument("commit: row_indptr must start at 0 and never fall");
    }
    wrong("token_ids", result.tokens.size(), indptr.back());
  }
  if (result.full != nullptr && !result.full->row_status.empty()) {
    wrong("row_status entries", result.full->row_status.size(), step.num_outs);
  }
}

void Scheduler::commit_rows(StepRecord& step, const ResultView& result) {
  const bool one_token_each = result.full == nullptr ||
                              (result.full->row_indptr.empty() && result.full->row_status.empty());
  const std::span<const RowRecord> rows = step.rows();
  size_t sampled = 0;
  size_t told = 0;  // rows before this one are in the events
  for (size_t i = 0; i < rows.size(); ++i) {
    const RowRecord& row = rows[i];
    Req& req = *row.req;
    if (i + kPrefetch < rows.size()) {
      const Req* const ahead = rows[i + kPrefetch].req;
      __builtin_prefetch(ahead, 1);
      __builtin_prefetch(&ahead->tokens, 1);
      __builtin_prefetch(std::to_address(rows[i + kPrefetch / 2].req->tokens.end()), 1);
    }
    // Nearly every row: a running req gets its one token and goes on.
    if (one_token_each && row.num_outs == 1 && row.samples && row.epoch == req.epoch &&
        req.state == ReqState::running && req.answered) {
      const Token token = result.tokens[sampled];
      if (token >= 0 && (config_.vocab_size == 0 || token < config_.vocab_size) &&
          !(req.stops && is_stop(req, token))) {
        ++sampled;
        --req.rows_in_flight;
        req.committed = row.kv_end;
        if (req.committed >= req.publish_at && prefix_) due_.push_back({&req, req.committed});
        req.tokens.push_back(token);
        const int32_t known = req.known();
        if (req.known_ahead == known) req.last_token = token;
        if (known < req.length_limit) continue;
        tell_rows(step, told, i + 1, result.tokens.first(sampled));
        told = i + 1;
        publish_due(step.batch_id);
        finish(req, FinishReason::length);
        continue;
      }
    }
    tell_rows(step, told, i, result.tokens.first(sampled));
    told = i + 1;
    publish_due(step.batch_id);
    commit_row(step, row, result, static_cast<int32_t>(sampled));
    sampled += row.samples;
  }
  publish_due(step.batch_id);
  tell_rows(step, told, rows.size(), result.tokens.first(sampled));
}

// Tells of the rows [begin, end), which got one token each: the last ones of `tokens`.
void Scheduler::tell_rows(const StepRecord& step, size_t begin, size_t end,
                          std::span<const Token> tokens) {
  if (begin == end) return;
  const size_t count = end - begin, at = events_.reqs.size();
  events_.reqs.resize(at + count);
  for (size_t i = 0; i < count; ++i) events_.reqs[at + i] = step.records[begin + i].req->id;
  const auto extend = [&](std::vector<int32_t>& list, int32_t first) {
    const size_t from = list.size();
    list.resize(from + count);
    std::iota(list.begin() + static_cast<std::ptrdiff_t>(from), list.end(), first);
  };
  extend(events_.token_indptr, events_.token_indptr.back() + 1);
  extend(events_.out_rows, step.records[begin].out_begin);
  events_.finish_reasons.resize(at + count, 0);
  const auto mine = tokens.last(count);
  events_.tokens.insert(events_.tokens.end(), mine.begin(), mine.end());
}

void Scheduler::commit_row(StepRecord& step, const RowRecord& row, const ResultView& result,
                           int32_t sampled) {
  Req& req = *row.req;
  --req.rows_in_flight;
  // Ended, or discarded, while the row was in flight: thrown away.
  if (row.epoch != req.epoch && (!planted(Bug::extra_row_kept) || !req.finished())) return;
  // The leader has ended before its last scores were told, so nobody has them.
  if (row.forks && req.scored < req.prompt_len) return redo(req);
  const int32_t last = row.out_begin + row.num_outs - 1;
  if (result.full != nullptr && !result.full->row_status.empty()) {
    for (int32_t o = row.out_begin; o <= last; ++o) {
      if (result.full->row_status[static_cast<size_t>(o)] != RowStatus::ok)
        return fail_row(req, "the model gave no valid token for this req (NaN logits?)");
    }
  }
  if (req.state == ReqState::running) {
    req.committed = row.kv_end;
    if (req.committed >= req.publish_at)
      publish(req, std::min(req.committed, req.known()), step.batch_id);
  }
  if (row.num_outs == 0) return;
  if (const int32_t num_scores = row.num_outs - (row.samples || row.pools); num_scores > 0) {
    tell_scores(req, row, num_scores);
    if (!req.parent_rid.empty()) tell_siblings(req, row, num_scores);
  }
  if (row.pools) {
    events_.pooled_reqs.push_back(req.id);
    return finish(req, FinishReason::stop);
  }
  if (!row.samples) return;
  if (planted(Bug::lost_retracted_token) && req.state == ReqState::retracted) {
    req.known_ahead = req.known();
    return;
  }
  if (result.full == nullptr || result.full->row_indptr.empty()) {
    append_tokens(req, result.tokens.subspan(static_cast<size_t>(sampled), 1), row.kv_end, last);
  } else {
    const auto& indptr = result.full->row_indptr;
    const auto begin = static_cast<size_t>(indptr[static_cast<size_t>(last)]);
    const auto end = static_cast<size_t>(indptr[static_cast<size_t>(last) + 1]);
    append_tokens(req, result.tokens.subspan(begin, end - begin), row.kv_end, last);
  }
}

// Tells the logprobs of prompt tokens, the first outputs of a row.
void Scheduler::tell_scores(Req& req, const RowRecord& row, int32_t num_scores) {
  check(req.scored >= row.first_score, "prompt logprobs are told in order");
  for (int32_t i = req.scored - row.first_score; i < num_scores; ++i) {
    events_.score_reqs.push_back(req.id);
    events_.score_positions.push_back(row.first_score + i);
    events_.score_rows.push_back(row.out_begin + i);
  }
  req.scored = std::max(req.scored, row.first_score + num_scores);
  req.next_score = std::max(req.next_score, req.scored);
}

void Scheduler::append_tokens(Req& req, std::span<const Token> tokens, int32_t kv_end,
                              int32_t out_row) {
  if (!req.answered) {
    req.answered = true;
    req.account.first_token_time = now_;
  }
  FinishReason reason = FinishReason::none;
  size_t taken = 0;
  while (taken < tokens.size() && reason == FinishReason::none) {
    const Token token = tokens[taken++];
    if (token < 0 || (config_.vocab_size > 0 && token >= config_.vocab_size)) {
      tell(req, tokens.first(taken - 1), out_row);
      return fail_row(req, "the model gave token id " + std::to_string(token) +
                               ", which is outside the vocabulary");
    }
    req.tokens.push_back(token);
    reason = end_of(req, token);
  }
  tell(req, tokens.first(taken), out_row);
  if (reason != FinishReason::none) return finish(req, reason);
  if (taken == 1) {
    if (req.known_ahead == req.known()) req.last_token = tokens[0];
    return;
  }
  // None or several: rows in flight stood on the wrong length. They are discarded and done again.
  ++req.epoch;
  req.known_ahead = req.known();
  req.last_token = req.tokens.back();
  reserve_tables(req, req.known() + 1);
  if (req.state == ReqState::retracted) return;
  req.computed = req.committed = std::min(kv_end, req.known() - 1);
  if (req.state == ReqState::running) set_tail(req);
}

// Whether `token` is one that ends the req.
bool Scheduler::is_stop(const Req& req, Token token) const {
  const auto among = [&](const std::vector<Token>& stops) {
    return std::find(stops.begin(), stops.end(), token) != stops.end();
  };
  return ((!req.params.ignore_eos || req.grammar != 0) && among(config_.eos_token_ids)) ||
         among(req.params.stop_token_ids);
}

// Whether `token`, just appended, ends the req.
FinishReason Scheduler::end_of(Req& req, Token token) const {
  // Under a grammar the mask has seen to min_tokens, as far as the grammar can go on.
  if (req.stops && (req.grammar != 0 || req.num_outputs() >= req.params.min_tokens) &&
      is_stop(req, token)) {
    req.matched_stop = token;
    return FinishReason::stop;
  }
  return req.known() >= req.length_limit ? FinishReason::length : FinishReason::none;
}

void Scheduler::tell(Req& req, std::span<const Token> tokens, int32_t out_row) {
  events_.reqs.push_back(req.id);
  for (const Token token : tokens) events_.tokens.push_back(token);
  events_.token_indptr.push_back(static_cast<int32_t>(events_.tokens.size()));
  events_.finish_reasons.push_back(0);
  events_.out_rows.push_back(out_row);
}

// Ends a req in any state, exactly once.
void Scheduler::finish(Req& req, FinishReason reason, std::string why) {
  check(!req.finished(), "a req ends once");
  prefetch(req);
  if (waiting_.contains(req)) dequeue(req);
  waiting_.leave();
  num_unready_ -= !req.grammar_ready;
  if (req.leader != nullptr) detach(req);
  if (req.holds_seat()) {
    release_blocks(req);
    leave_seat(req);
  } else if (req.state == ReqState::swapping_in) {
    release_blocks(req);
    leave_arriving(req);
  }
  if (!req.host_tables.empty()) release_host(req);
  if (prefix_) prefix_->leave(req.prefix_root);
  ++req.epoch;
  req.known_ahead = req.known();
  req.move = 0;
  req.state = ReqState::finished;
  req.finish_reason = reason;
  if (!req.siblings.empty()) detach_siblings(req);
  req.error = std::move(why);
  req.wait = {};
  req.account.finish_time = now_;
  req.account.decode_steps = req.decode_steps;
  if (events_.reqs.empty() || events_.reqs.back() != req.id) tell(req, {}, -1);
  events_.finish_reasons.back() = static_cast<int32_t>(reason);
  if (reason == FinishReason::stop || reason == FinishReason::length) {
    ratio_.observe(req.num_outputs(), req.length_limit - req.prompt_len);
  }
  const ReqPtr& ptr = reqs_[static_cast<size_t>(req.id)];
  events_.ended.push_back(ptr);
  ended_.push_back({ptr, req.last_step, events_taken_ + 2});
  by_rid_.erase(req.rid);
  if (req.parent_rid.empty()) return;
  const auto family = children_.find(req.parent_rid);
  if (std::all_of(family->second.begin(), family->second.end(),
                  [](const ReqPtr& child) { return child->finished(); })) {
    children_.erase(family);
  }
}

// Handles of ended reqs go back when no step in flight names them and their end was told.
void Scheduler::bury() {
  std::erase_if(ended_, [&](const Ended& ended) {
    if (ended.after_step > committed_ || ended.after_events > events_taken_) return false;
    reqs_[static_cast<size_t>(ended.req->id)].reset();
    free_ids_.push_back(ended.req->id);
    return true;
  });
}

// Ends a req whose row has failed. What it computed itself is not worth keeping: its blocks leave
// the prefix cache.
void Scheduler::fail_row(Req& req, std::string why) {
  EntryId root = kNoEntry;
  if (prefix_ && !planted(Bug::failed_row_cached)) {
    root = req.prefix_root;
    for (int32_t i = 0; i <= req.own_from && root != kNoEntry; ++i) {
      root = (i + 1) * block_size_ > req.known()
                 ? kNoEntry
                 : prefix_->find(root, req.tokens.data() + static_cast<size_t>(i) *
                                                               static_cast<size_t>(block_size_));
    }
  }
  finish(req, FinishReason::error, std::move(why));
  if (root != kNoEntry) withdraw({&root, 1});
  // Whoever began with the same hidden row, or with a copy of what this row wrote.
  for (const ReqPtr& ptr : reqs_) {
    if (ptr && !ptr->finished() && ptr->forked_in >= committed_ &&
        ptr->forked_from == req.arrival_seq)
      redo(*ptr);
  }
}

// The step's reqs end with an error. What it was to put into the prefix cache is withdrawn with all
// that builds on it; reqs that had matched such blocks are retracted, and their rows in flight
// discarded.
void Scheduler::fail_step(StepRecord& step, const std::string& why, bool fatal) {
  events_.message = why;
  for (const RowRecord& row : step.rows()) {
    --row.req->rows_in_flight;
    if (row.epoch == row.req->epoch && !row.req->finished())
      finish(*row.req, FinishReason::error, why);
  }
  if (fatal) {
    fatal_ = true;
    for (size_t i = 0; i < reqs_.size(); ++i) {
      if (reqs_[i] && !reqs_[i]->finished()) finish(*reqs_[i], FinishReason::error, why);
    }
    return;
  }
  if (!planted(Bug::skipped_withdrawal)) withdraw_step(step.batch_id);
  withdraw_forks(step.batch_id);
}

}  // namespace stoker
