// n > 1: the siblings of a req wait with the first of them, and have seats, growth and a block each
// reserved while it computes the prompt. In the step that ends the prompt each takes its seat and
// samples from the same hidden row. They share the prompt's full blocks; a partial last block is
// copied in the step after, before any row writes it. From then on each is a req like any other.
#include <algorithm>

#include "base/check.h"
#include "base/planted_bugs.h"
#include "sched/scheduler.h"

namespace stoker {
namespace {

int32_t seat_words(const Req& req, size_t num_eos) {
  const SamplingParams& p = req.params;
  return static_cast<int32_t>(2 * p.logit_bias.size() + p.stop_token_ids.size() + num_eos +
                              (p.has_penalties() ? req.tokens.size() : 0));
}

}  // namespace

// Whether the answers of a req can begin together. Those that cannot compute their prompts one by
// one.
bool Scheduler::may_fork(const Req& req) const {
  const int32_t n = req.params.n;
  if (req.pool) return false;
  if (config_.max_running_per_tenant > 0 && n > config_.max_running_per_tenant) return false;
  for (GroupId g = 0; g < num_groups_; ++g) {
    if (most_blocks(g, req.prompt_len + 1) + n >
        pools_[static_cast<size_t>(g)].total() - 1 - num_pinned_)
      return false;
  }
  return true;
}

void Scheduler::attach(Req& sibling, Req& leader) {
  sibling.leader = &leader;
  leader.siblings.push_back(&sibling);
  leader.plain = false;  // its last prompt token is no decode row
  ++num_attached_;
  sibling.queued_since = now_;
  sibling.wait = {.code = WaitCode::sibling};
}

// Seats and tenants: siblings of a leader that runs, or comes back, count as if they ran.
void Scheduler::count_siblings(const Req& leader, int32_t sign) {
  reserved_seats_ += sign * num_siblings(leader);
  tenants_[static_cast<size_t>(leader.tenant_index)].running += sign * num_siblings(leader);
}

void Scheduler::detach(Req& sibling) {
  Req& leader = *sibling.leader;
  const bool counted = leader.holds_seat() || leader.state == ReqState::swapping_in;
  if (counted) count_siblings(leader, -1);
  std::erase(leader.siblings, &sibling);
  if (counted) count_siblings(leader, 1);
  sibling.leader = nullptr;
  leader.plain = leader.siblings.empty() && leader.samples_alone();
  --num_attached_;
}

// The leader will compute no prompt for them: each goes its own way.
void Scheduler::detach_siblings(Req& leader) {
  while (!leader.siblings.empty()) {
    Req& sibling = *leader.siblings.front();
    detach(sibling);
    enqueue(sibling);
  }
}

// Blocks of a group that a sibling takes when it forks.
int32_t Scheduler::partial_blocks(const Req& leader, GroupId group) const {
  return leader.prompt_len % config_.kv_groups[static_cast<size_t>(group)].block_size != 0;
}

bool Scheduler::can_fork(const Req& sibling, const Req& leader) const {
  int64_t changes = int64_t{num_groups_} * config_.max_num_seqs;
  for (GroupId g = 0; g < num_groups_; ++g) {
    if (pools_[static_cast<size_t>(g)].num_available() < partial_blocks(leader, g)) return false;
    changes += static_cast<int64_t>(leader.tables[static_cast<size_t>(g)].size());
  }
  const auto free_seats = static_cast<int32_t>(free_seats_.size() - arriving_.size());
  const bool has_room = at_.outs < ledger_.outs && free_seats > reserved_seats_;
  return sibling.grammar_ready && has_room &&
         at_.table_changes + changes <= ledger_.table_changes &&
         at_.seat_words + seat_words(sibling, config_.eos_token_ids.size()) <= ledger_.seat_words;
}

// Called when the leader's row that ends the prompt is written; `token`: of the step, whose hidden
// row all of them read.
void Scheduler::fork_siblings(Req& leader, int32_t token) {
  count_siblings(leader, -1);
  const std::vector<Req*> siblings = std::exchange(leader.siblings, {});
  num_attached_ -= static_cast<int32_t>(siblings.size());
  leader.plain = leader.samples_alone();
  for (Req* const sibling : siblings) {
    sibling->leader = nullptr;
    if (can_fork(*sibling, leader)) {
      fork(*sibling, leader, token);
    } else {
      enqueue(*sibling);
    }
  }
}

void Scheduler::fork(Req& req, const Req& leader, int32_t token) {
  req.account.queue_time += now_ - req.queued_since;
  req.account.first_scheduled_time = now_;
  req.account.cached_tokens = leader.account.cached_tokens;
  take_seat(req);
  ++stats_.num_admitted;

  const bool writes = leader.known_ahead < leader.length_limit;  // any row after this one
  Move* copies = nullptr;
  for (GroupId g = 0; g < num_groups_; ++g) {
    const auto i = static_cast<size_t>(g);
    auto& table = req.tables[i];
    table = leader.tables[i];
    const auto full = static_cast<size_t>(leader.prompt_len / config_.kv_groups[i].block_size);
    for (size_t k = 0; k < table.size(); ++k) {
      if (table[k] == kNullBlock) continue;
      if (k < full || !writes) {
        pools_[i].retain(table[k]);
      } else {
        const BlockId mine = take_block(g, req.id);
        if (!planted(Bug::partial_not_copied)) {
          if (copies == nullptr) copies = &begin_move(Move::Kind::copy, req);
          late_transfers_.push_back(
              transfer(*copies, g, Tier::device, table[k], Tier::device, mine, next_batch_));
        }
        table[k] = mine;
      }
      change_table(g, req.seat, static_cast<int32_t>(k), table[k]);
    }
  }
  req.window_begins = leader.window_begins;
  req.computed = leader.computed;
  req.committed = leader.committed;
  req.published = leader.published;
  req.publish_at = (req.published + 1) * block_size_;
  req.own_from = leader.own_from;
  req.forked_in = next_batch_;
  req.forked_from = leader.arrival_seq;
  // The leader's rows ask for what is not told yet.
  if (req.params.prompt_logprobs >= 0) req.next_score = req.prompt_len;
  req.known_ahead = req.known() + 1;
  req.last_token = -1 - req.seat;
  req.last_step = next_batch_;
  ++req.rows_in_flight;
  set_tail(req);

  const int32_t o = at_.outs++;
  ++at_.sampled;
  at_.out_token[o] = token;
  at_.out_seat[o] = req.seat;
  at_.out_kind[o] = static_cast<int32_t>(OutKind::sample);
  at_.out_target[o] = -1;
  at_.out_position[o] = req.computed;
  step_->records[step_->num_rows++] = {&req,      req.epoch, req.computed, o,   1,
                                       kNoScores, true,      false,        true};
}

// The logprobs of a prompt are the same for all who share it: tells those of the leader's row that
// was just committed to its siblings, also to those that have forked since.
void Scheduler::tell_siblings(const Req& leader, const RowRecord& row, int32_t num_scores) {
  for (const ReqPtr& child : children_.find(leader.parent_rid)->second) {
    Req& sibling = *child;
    const bool shares = sibling.leader == &leader || (sibling.forked_from == leader.arrival_seq &&
                                                      sibling.forked_in >= committed_);
    if (shares && !sibling.finished()) tell_scores(sibling, row, num_scores);
  }
}

// A step failed before the one that forked: what the siblings took over from their leader, who has
// ended with it, never came to be.
void Scheduler::withdraw_forks(BatchId failed) {
  const auto rows = steps_[static_cast<size_t>(failed) % steps_.size()].rows();
  for (const ReqPtr& ptr : reqs_) {
    if (!ptr || ptr->finished() || ptr->forked_in <= failed) continue;
    const bool misled = std::any_of(rows.begin(), rows.end(), [&](const RowRecord& row) {
      return row.req->arrival_seq == ptr->forked_from;
    });
    if (!misled) continue;
    redo(*ptr);
  }
}

}  // namespace stoker
