// The rows of a step: decodes, the prompts under way, and how each is written into the buffer.
#include <algorithm>
#include <numeric>

#include "base/planted_bugs.h"
#include "sched/scheduler.h"

namespace stoker {

// A row of one token, but for its output rows and what is counted of it.
inline void Scheduler::write_decode_row(Req& req, int32_t row, int32_t token, int32_t out) {
  at_.row_seat[row] = req.seat;
  at_.row_kv_len[row] = req.computed + 1 - planted(Bug::wrong_kv_len);
  at_.token_ids[token] = req.last_token - (planted(Bug::wrong_seat_ref) && req.last_token < 0);
  at_.positions[token] = req.computed;
  at_.slots[token] =
      (req.tail_block + 1) * block_size_ - req.tail_room + planted(Bug::slot_off_by_one);
  for (GroupId g = 1; g < num_groups_; ++g) {
    const int32_t size = config_.kv_groups[static_cast<size_t>(g)].block_size;
    at_.slots[g * config_.max_num_batched_tokens + token] =
        req.tables[static_cast<size_t>(g)][static_cast<size_t>(req.computed / size)] * size +
        req.computed % size;
  }
  --req.tail_room;
  ++req.computed;
  ++req.decode_steps;
  ++req.rows_in_flight;
  req.last_step = next_batch_;
  step_->records[static_cast<size_t>(row)] = {&req, req.epoch, req.computed, out,
                                              1,    kNoScores, true,         false};
  if (req.plain) {
    ++req.known_ahead;
    req.last_token = -1 - req.seat;
  }
  if (fair_) charge(req, 1);
}

// 1. Every running req that can decode gets its one token.
void Scheduler::plan_decodes() {
  make_room_for_decodes();
  const int32_t begin = at_.rows, to_token = at_.tokens - begin;
  int32_t row = begin;
  int32_t plain_from = begin;  // rows from here on are plain, and their output rows still to write
  // Counts rows up to `to`, of which those in [from, plain_to) are plain, and writes their outputs.
  const auto count_rows = [&](int32_t from, int32_t to, int32_t plain_to) {
    at_.rows = to;
    at_.tokens = to + to_token;
    step_->num_rows = static_cast<size_t>(to);
    at_.outs += plain_to - from;
    at_.sampled += plain_to - from;
    write_plain_outputs(from, plain_to);
  };
  for (size_t i = 0; i < running_.size(); ++i) {
    Req* const req = running_[i];
    if (i + kPrefetch < running_.size()) __builtin_prefetch(running_[i + kPrefetch], 1);
    if (req == nullptr || req->known_ahead - req->computed != 1 ||
        req->known_ahead >= req->length_limit + planted(Bug::length_late) ||
        (!req->plain && !req->siblings.empty()))
      continue;
    if (any_window_) release_window(*req);
    if (req->tail_room == 0 || num_groups_ > 1) {
      bool enough = true;
      for (GroupId g = 0; g < num_groups_; ++g) {
        const auto have = static_cast<int64_t>(req->tables[static_cast<size_t>(g)].size());
        enough = enough && blocks_for(g, req->computed + 1) - have <=
                               pools_[static_cast<size_t>(g)].num_available();
      }
      if (!enough) {  // sits this step out: blocks are draining or about to be freed
        ++stats_.num_sat_out;
        continue;
      }
      grow_tables(*req, req->computed + 1);
      set_tail(*req);
    }
    write_decode_row(*req, row, row + to_token, at_.outs + row - plain_from);
    ++row;
    if (req->plain) continue;
    count_rows(plain_from, row, row - 1);
    write_outputs(*req, at_.tokens - 1, 1);
    plain_from = row;
  }
  count_rows(plain_from, row, row);
  std::iota(at_.row_indptr + begin + 1, at_.row_indptr + row + 1, to_token + begin + 1);
  ledger_.tokens -= row - begin;
  ledger_.rows -= row - begin;
  stats_.num_decode_rows = row;
  refresh_available();
}

// The output rows of decode rows [begin, end), each of which samples one token; they were counted
// already.
void Scheduler::write_plain_outputs(int32_t begin, int32_t end) {
  if (begin == end) return;
  const auto count = static_cast<size_t>(end - begin);
  const RowRecord& first = step_->records[static_cast<size_t>(begin)];
  const int32_t out = first.out_begin;
  const int32_t token = at_.tokens - (at_.rows - begin);
  std::iota(at_.out_token + out, at_.out_token + out + count, token);
  std::copy_n(at_.row_seat + begin, count, at_.out_seat + out);
  std::fill_n(at_.out_kind + out, count, static_cast<int32_t>(OutKind::sample));
  std::fill_n(at_.out_target + out, count, -1);
  for (size_t i = 0; i < count; ++i)
    at_.out_position[static_cast<size_t>(out) + i] =
        at_.positions[static_cast<size_t>(token) + i] + 1;
}

// The output rows of a row that has just been written: scores of prompt tokens, then the sampled
// token or the pooled row.
void Scheduler::write_outputs(Req& req, int32_t first_token, int32_t num_tokens) {
  RowRecord& record = step_->last_row();
  record.out_begin = at_.outs;
  record.samples = record.pools = false;
  record.first_score = req.next_score;
  const auto put = [&](int32_t position, OutKind kind, Token target) {
    const int32_t o = at_.outs++;
    at_.out_token[o] = first_token + num_tokens - (req.computed - position) - 1;
    at_.out_seat[o] = req.seat;
    at_.out_kind[o] = static_cast<int32_t>(kind);
    at_.out_target[o] = target;
    at_.out_position[o] = position;
  };
  // The hidden row at position p - 1 tells the token at p.
  for (; req.next_score <= req.computed && req.next_score < req.prompt_len; ++req.next_score)
    put(req.next_score, OutKind::score, req.tokens[static_cast<size_t>(req.next_score)]);
  if (req.computed == req.known_ahead) {
    put(req.computed, req.pool ? OutKind::pool : OutKind::sample, -1);
    record.pools = req.pool;
    record.samples = !req.pool;
    if (!req.pool) {
      ++at_.sampled;
      at_.late = at_.late || req.grammar != 0;
      ++req.known_ahead;
      req.last_token = -1 - req.seat;
    }
  }
  record.num_outs = at_.outs - record.out_begin;
}

// How many of `wanted` tokens of a prompt under way the blocks at hand allow.
int32_t Scheduler::chunk_that_fits(const Req& req, int32_t wanted) const {
  for (GroupId g = 0; g < num_groups_; ++g) {
    const int64_t size = config_.kv_groups[static_cast<size_t>(g)].block_size;
    const int64_t blocks = static_cast<int64_t>(req.tables[static_cast<size_t>(g)].size()) +
                           pools_[static_cast<size_t>(g)].num_available();
    wanted = static_cast<int32_t>(std::min<int64_t>(wanted, blocks * size - req.computed));
  }
  return wanted;
}

// The most prompt tokens of this step that one req may still have.
int32_t Scheduler::prefill_limit(const Req& req) const {
  int32_t most = ledger_.tokens;
  if (config_.long_prefill_token_threshold > 0)
    most = std::min(most, config_.long_prefill_token_threshold);
  if (next_batch_ < urgent_until_ && urgency(req) > urgent_border_)
    most = std::min(most, std::max(0, ledger_.background));
  return most;
}

// 2. The prompts under way: first come first, or each an equal share.
void Scheduler::plan_chunks() {
  int32_t share = config_.max_num_batched_tokens;
  if (config_.prefill_split == PrefillSplit::equal && !chunks_.empty()) {
    share = std::max(block_size_, ledger_.tokens / static_cast<int32_t>(chunks_.size()));
  }
  for (Req* const req : chunks_) {
    if (req->state != ReqState::running || req->last_step == next_batch_) continue;
    if (any_window_) release_window(*req);
    const int32_t wanted = std::min({req->known_ahead - req->computed, prefill_limit(*req), share});
    const int32_t n = wanted > 0 && ledger_.rows > 0 ? chunk_that_fits(*req, wanted) : 0;
    if (n <= 0) {
      ++stats_.num_sat_out;
      continue;
    }
    grow_tables(*req, req->computed + n);
    write_chunk_row(*req, n);
  }
  refresh_available();
}

void Scheduler::write_chunk_row(Req& req, int32_t num_tokens) {
  const int32_t row = at_.rows++;
  const int32_t first = at_.tokens;
  const int32_t begin = req.computed;
  at_.tokens += num_tokens;
  at_.row_seat[row] = req.seat;
  at_.row_indptr[row + 1] = at_.tokens;
  at_.row_kv_len[row] = begin + num_tokens;
  const int32_t known = req.known();
  std::iota(at_.positions + first, at_.positions + at_.tokens, begin);
  const int32_t given = std::clamp(known - begin, 0, num_tokens);  // the rest the device knows
  std::copy_n(req.tokens.data() + begin, given, at_.token_ids + first);
  std::fill(at_.token_ids + first + given, at_.token_ids + at_.tokens, -1 - req.seat);
  for (GroupId g = 0; g < num_groups_; ++g) {
    const int32_t size = config_.kv_groups[static_cast<size_t>(g)].block_size;
    const auto& table = req.tables[static_cast<size_t>(g)];
    int32_t* slots = at_.slots + g * config_.max_num_batched_tokens + first;
    auto index = static_cast<size_t>(begin / size);
    for (int32_t i = 0, in = begin % size; i < num_tokens; in = 0) {
      const int32_t n = std::min(size - in, num_tokens - i);
      std::iota(slots + i, slots + i + n, table[index++] * size + in);
      i += n;
    }
  }
  const int32_t again = std::clamp(req.highest_computed - begin, 0, num_tokens);
  req.account.tokens_computed_twice += again;
  stats_.recomputed_tokens += again;
  req.account.prefill_tokens += num_tokens;
  ++req.account.prefill_steps;
  req.computed += num_tokens;
  ++req.rows_in_flight;
  req.last_step = next_batch_;
  step_->records[step_->num_rows++] = {&req, req.epoch, req.computed, at_.outs, 0, 0, false, false};
  write_outputs(req, first, num_tokens);
  // The tokens of these blocks are known, so others may share them from this step on.
  publish(req, std::min(req.computed, known), next_batch_);
  set_tail(req);
  if (!req.siblings.empty() && step_->last_row().samples) fork_siblings(req, at_.tokens - 1);
  if (fair_) charge(req, num_tokens);
  ledger_.tokens -= num_tokens;
  ledger_.background -= num_tokens;
  --ledger_.rows;
  ++stats_.num_prefill_rows;
}

}  // namespace stoker
