// A req's place: its seat and its block tables.
#include <algorithm>
#include <bit>
#include <cstring>

#include "base/check.h"
#include "base/planted_bugs.h"
#include "sched/scheduler.h"

namespace stoker {

BlockId Scheduler::take_block(GroupId group, ReqId owner) {
  BlockPool& pool = pools_[static_cast<size_t>(group)];
  if (pool.num_free() == 0) prefix_->evict_one(group);
  return pool.allocate(owner);
}

void Scheduler::change_table(GroupId group, Seat seat, int32_t index, BlockId block) {
  if (planted(Bug::stale_table_change) && index > 0 && index % 3 == 0) return;
  at_.changes[at_.table_changes++] = {group, seat, index, block};
}

// Counts served tokens against the req's tenant. (VTC's virtual counters.)
void Scheduler::charge(const Req& req, int32_t num_tokens) {
  Tenant& tenant = tenants_[static_cast<size_t>(req.tenant_index)];
  tenant.served += num_tokens / tenant.weight;
}

// Seats a req: writes the SeatChange and enters it into the running batch. leave_seat undoes it.
void Scheduler::take_seat(Req& req) {
  req.seat = free_seats_.back();
  free_seats_.pop_back();
  seat_busy_until_[static_cast<size_t>(req.seat)] = next_batch_;  // one change of a seat a step
  const SamplingParams& p = req.params;
  SeatChange& change = at_.seats[at_.seat_changes++];
  change = {};
  change.seat = req.seat;
  change.flags = (p.has_penalties() ? kSeatPenalties : 0) | (req.grammar != 0 ? kSeatMask : 0);
  change.temperature = p.temperature;
  change.top_p = p.top_p;
  change.min_p = p.min_p;
  change.top_k = p.top_k;
  change.repetition_penalty = p.repetition_penalty;
  change.presence_penalty = p.presence_penalty;
  change.frequency_penalty = p.frequency_penalty;
  change.num_logprobs = p.num_logprobs;
  change.num_prompt_logprobs = std::max(p.prompt_logprobs, 0);
  change.seed_low = static_cast<uint32_t>(req.seed);
  change.seed_high = static_cast<uint32_t>(req.seed >> 32);
  // A grammar's mask says by itself where the answer may end, min_tokens included.
  // No position lies beyond the model's length: more of min_tokens says no more.
  change.min_position = req.grammar != 0
                            ? 0
                            : static_cast<int32_t>(std::min<int64_t>(
                                  int64_t{req.prompt_len} + p.min_tokens, config_.max_model_len));
  change.prompt_len = req.prompt_len;
  change.req = req.id;
  change.data_begin = at_.seat_words;
  change.num_bias = static_cast<int32_t>(p.logit_bias.size());
  int32_t* data = at_.seat_data + at_.seat_words;
  for (const auto& [token, bias] : p.logit_bias) *data++ = token;
  for (const auto& [token, bias] : p.logit_bias) *data++ = std::bit_cast<int32_t>(bias);
  const int32_t* stops = data;
  if (!p.ignore_eos) {
    for (const Token token : config_.eos_token_ids) *data++ = token;
  }
  for (const Token token : p.stop_token_ids) *data++ = token;
  change.num_stop = static_cast<int32_t>(data - stops);
  if (p.has_penalties()) {
    std::memcpy(data, req.tokens.data(), req.tokens.size() * sizeof(Token));
    data += req.tokens.size();
    change.num_context = req.known();
  }
  at_.seat_words = static_cast<int32_t>(data - at_.seat_data);

  req.state = ReqState::running;
  req.wait = {};
  req.running_index = static_cast<int32_t>(running_.size());
  running_.push_back(&req);
  ++num_running_;
  ++tenants_[static_cast<size_t>(req.tenant_index)].running;
  if (!req.siblings.empty()) count_siblings(req, 1);
}

// Memory for the tables of so many tokens.
void Scheduler::reserve_tables(Req& req, int32_t num_tokens) {
  for (GroupId g = 0; g < num_groups_; ++g) {
    const auto i = static_cast<size_t>(g);
    const auto blocks = static_cast<size_t>(blocks_for(g, num_tokens)) + 1;
    req.tables[i].reserve(blocks);
    if (!req.host_tables.empty()) req.host_tables[i].reserve(blocks);
  }
}

// A block was added to a table: the next plan finds memory for more.
void Scheduler::grown(Req& req, GroupId group) {
  const auto& table = req.tables[static_cast<size_t>(group)];
  if (table.size() == table.capacity() && !planted(Bug::memory_too_late))
    full_tables_.push_back(req.id);
}

void Scheduler::leave_seat(Req& req) {
  const BatchId last = std::max(req.last_step, seat_busy_until_[static_cast<size_t>(req.seat)]);
  if (last > committed_ && !planted(Bug::seat_reused_early)) {
    draining_seats_[static_cast<size_t>(last) % draining_seats_.size()].push_back(req.seat);
    ++num_draining_seats_;
  } else {
    free_seats_.push_back(req.seat);
  }
  seat_busy_until_[static_cast<size_t>(req.seat)] = last;
  req.seat = kNoSeat;
  if (!req.siblings.empty()) count_siblings(req, -1);
  --tenants_[static_cast<size_t>(req.tenant_index)].running;
  running_[static_cast<size_t>(req.running_index)] = nullptr;
  req.running_index = -1;
  --num_running_;
}

// Where the next token's KV goes, kept at hand for decode rows.
void Scheduler::set_tail(Req& req) {
  const auto& table = req.tables[0];
  const int32_t index = req.computed / block_size_;
  if (static_cast<size_t>(index) < table.size()) {
    req.tail_block = table[static_cast<size_t>(index)];
    req.tail_room = block_size_ - req.computed % block_size_;
  } else {
    req.tail_block = kNullBlock;
    req.tail_room = 0;
  }
}

// Gives every group's table the blocks for `num_tokens` tokens in all. The caller has seen that
// there are enough.
void Scheduler::grow_tables(Req& req, int32_t num_tokens) {
  for (GroupId g = 0; g < num_groups_; ++g) {
    auto& table = req.tables[static_cast<size_t>(g)];
    const int64_t need = blocks_for(g, num_tokens);
    while (static_cast<int64_t>(table.size()) < need) {
      const BlockId block = take_block(g, req.id);
      change_table(g, req.seat, static_cast<int32_t>(table.size()), block);
      table.push_back(block);
      grown(req, g);
    }
  }
}

// Gives back the blocks that no token from `computed` on will see. Called before the req's row is
// written: the change holds for that row already.
void Scheduler::release_window(Req& req) {
  for (GroupId g = 0; g < num_groups_; ++g) {
    const KVGroup& kv = config_.kv_groups[static_cast<size_t>(g)];
    if (kv.kind != KVKind::window) continue;
    auto& table = req.tables[static_cast<size_t>(g)];
    // The token at `computed` sees positions above computed - window; the last published block is
    // the way into the tree.
    int32_t end = std::max(0, (req.computed - kv.window + 1)) / kv.block_size;
    if (prefix_) end = std::min(end, req.published - 1);
    for (int32_t i = req.window_begins[static_cast<size_t>(g)]; i < end; ++i) {
      auto& block = table[static_cast<size_t>(i)];
      pools_[static_cast<size_t>(g)].release(block, req.last_step);
      block = kNullBlock;
      change_table(g, req.seat, i, kNullBlock);
    }
    auto& begin = req.window_begins[static_cast<size_t>(g)];
    begin = std::max(begin, end);
  }
}

// From the tail, so that the prefix cache evicts leaves first.
void Scheduler::release_blocks(Req& req, bool keep_windows) {
  for (GroupId g = 0; g < num_groups_; ++g) {
    auto& table = req.tables[static_cast<size_t>(g)];
    BlockPool& pool = pools_[static_cast<size_t>(g)];
    if (!planted(Bug::late_free)) {
      for (size_t i = table.size(); i > 0; --i) {
        if (i > kPrefetch) pool.prefetch(table[i - 1 - kPrefetch]);
        if (table[i - 1] != kNullBlock) pool.release(table[i - 1], req.last_step);
      }
    }
    table.clear();
    if (!keep_windows) req.window_begins[static_cast<size_t>(g)] = 0;
  }
  req.published = 0;
  req.publish_at = 0;
  req.tail_room = 0;
}

}  // namespace stoker
