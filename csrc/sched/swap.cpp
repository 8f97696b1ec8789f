// KV on its way to host memory and back. A req that is swapped out gives its device blocks and its
// seat up at once; the copies are ordered after the last step that writes it, and both ends of a
// copy are kept until its ticket is back. Coming back it takes device blocks and has a seat
// reserved, runs no row until the last ticket is back, and keeps its host blocks until it runs: so
// it can turn round up to then, whatever the prefix cache has lost meanwhile.
#include <algorithm>

#include "base/check.h"
#include "base/planted_bugs.h"
#include "sched/scheduler.h"

namespace stoker {

void Scheduler::set_rates(double ns_per_token, double ns_per_byte) {
  if (!(ns_per_token > 0) || !(ns_per_byte > 0))
    throw InvalidArgument("rates must be above 0: " + std::to_string(ns_per_token) +
                          " ns a token, " + std::to_string(ns_per_byte) + " ns a byte");
  if (log_ != nullptr) log_->rates(ns_per_token, ns_per_byte);
  ns_per_token_ = ns_per_token;
  ns_per_byte_ = ns_per_byte;
}

// Blocks at the head of a running req that another one holds too and that are in the prefix cache
// for good: they need no copy. Found there again or not when it comes back; see head_is_lost().
int32_t Scheduler::shared_head(const Req& req) const {
  if (!prefix_ || any_window_) return 0;
  for (int32_t i = 0; i < req.published; ++i) {
    for (size_t g = 0; g < pools_.size(); ++g) {
      const BlockId block = req.tables[g][static_cast<size_t>(i)];
      const EntryId e = pools_[g].entry(block);
      if (e == kNoEntry || prefix_->pending_step(e) > committed_ || pools_[g].refs(block) < 2)
        return i;
    }
  }
  return req.published;
}

// Whether moving a req's KV out and back is expected to be quicker than computing it again; never,
// where the host pools or the step's buffer have no room.
bool Scheduler::swap_is_better(const Req& req, int32_t shared) {
  // What a window has left behind cannot be published after the way back: not both, then.
  if (any_window_ && prefix_) return false;
  if (req.forked_in > 0 && req.forked_in + 1 == next_batch_)
    return false;  // a block is being copied
  int64_t count = 0;
  double bytes = 0;
  for (GroupId g = 0; g < num_groups_; ++g) {
    const auto i = static_cast<size_t>(g);
    int32_t mine = 0;
    for (int64_t k = shared; k < blocks_for(g, req.computed); ++k)
      mine += req.tables[i][static_cast<size_t>(k)] != kNullBlock;
    if (mine > host_pools_[i].num_free()) return false;
    count += mine;
    bytes += static_cast<double>(mine) * static_cast<double>(config_.kv_groups[i].bytes_per_block);
  }
  if (count == 0 || at_.transfers + count > ledger_.transfers ||
      !room_to_hold(int64_t{shared} * num_groups_))
    return false;
  if (config_.preemption == Preemption::swap) return true;
  return 2 * bytes * ns_per_byte_ < (req.computed - shared * block_size_) * ns_per_token_;
}

Scheduler::Move& Scheduler::begin_move(Move::Kind kind, const Req& req) {
  auto it = std::find_if(moves_.begin(), moves_.end(),
                         [](const Move& m) { return m.kind == Move::Kind::none; });
  if (it == moves_.end()) it = moves_.emplace(moves_.end());
  it->kind = kind;
  it->req = req.id;
  it->id = ++last_move_;
  it->first = next_ticket_;
  it->missing = 0;
  it->store = store_;
  it->back_begin = store_->back.size();
  it->touched_begin = store_->touched.size();
  it->num_back = it->num_touched = 0;
  ++store_->num_moves;
  ++num_moves_;
  return *it;
}

// Whether the moves of this step may keep so many blocks more that they do not copy.
bool Scheduler::room_to_hold(int64_t blocks) const {
  const auto held = static_cast<int64_t>(store_->touched.size() - 2 * store_->back.size());
  return held + blocks <= layout_.capacity(Section::transfers);
}

void Scheduler::hold_for_move(Move& move, BlockPool& pool, BlockId block) {
  pool.begin_transfer(block);
  move.store->touched.emplace_back(&pool, block);
  ++move.num_touched;
}

// One copy, of which the caller tells the step.
Transfer Scheduler::transfer(Move& move, GroupId group, Tier from, BlockId source, Tier to,
                             BlockId destination, BatchId after_step) {
  const auto g = static_cast<size_t>(group);
  hold_for_move(move, from == Tier::host ? host_pools_[g] : pools_[g], source);
  hold_for_move(move, to == Tier::host ? host_pools_[g] : pools_[g], destination);
  move.store->back.push_back(0);
  ++move.num_back;
  ++move.missing;
  return {next_ticket_++,           after_step,  group, static_cast<int32_t>(from), source,
          static_cast<int32_t>(to), destination, 0};
}

void Scheduler::swap_out(Req& req, int32_t shared) {
  note_preempted(req, PreemptionKind::swap);
  Move& move = begin_move(Move::Kind::out, req);
  req.move = move.id;
  req.swap_from = shared;
  // A fork's last block was copied by the step after the fork, which need not have a row of it.
  // What a req that has only just come back found in the prefix cache was written by others.
  const BatchId written_by = std::max({req.last_step, req.forked_in + 1, committed_});
  for (GroupId g = 0; g < num_groups_; ++g) {
    const auto i = static_cast<size_t>(g);
    const auto& table = req.tables[i];
    auto& host = req.host_tables[i];
    host.assign(static_cast<size_t>(blocks_for(g, req.computed)), kNullBlock);
    for (size_t k = 0; k < host.size(); ++k) {
      if (table[k] == kNullBlock) continue;
      if (k < static_cast<size_t>(shared)) {
        hold_for_move(move, pools_[i], table[k]);
        continue;
      }
      host[k] = host_pools_[i].allocate(req.id);
      at_.moves[at_.transfers++] =
          transfer(move, g, Tier::device, table[k], Tier::host, host[k], written_by);
    }
  }
  req.account.swapped_blocks += move.missing;
  release_blocks(req, true);
  leave_seat(req);
  req.state = ReqState::swapping_out;
  ++num_swapped_;
  ++req.account.swaps;
  ++stats_.num_swapped_out;
  enqueue(req);
  req.wait = {.code = WaitCode::host_transfer, .step = next_batch_};
  refresh_available();
}

// What of a swapped req's KV is in the prefix cache and can fail no more.
void Scheduler::match_settled(const Req& req) {
  match_.path.clear();
  if (!prefix_ || any_window_) return;
  prefix_->match(req.prefix_root, req.tokens, req.computed / block_size_, match_);
  while (!match_.path.empty() && prefix_->pending_step(match_.path.back()) > committed_)
    match_.path.pop_back();
}

// Whether blocks that a swapped req shared, and so did not copy, have left the prefix cache since.
bool Scheduler::head_is_lost(Req& req) {
  return req.swap_from > 0 &&
         prefix_->match_blocks(req.prefix_root, req.tokens, req.swap_from) < req.swap_from;
}

// Takes device blocks and begins the copies. Blocks that the prefix cache holds are taken from
// there.
void Scheduler::begin_swap_in(Req& req) {
  const auto matched = static_cast<int32_t>(match_.path.size());
  Move& move = begin_move(Move::Kind::in, req);
  req.move = move.id;
  for (GroupId g = 0; g < num_groups_; ++g) {
    const auto i = static_cast<size_t>(g);
    auto& table = req.tables[i];
    const auto& host = req.host_tables[i];
    for (int32_t k = 0; k < matched; ++k) {
      const BlockId block = prefix_->block(match_.path[static_cast<size_t>(k)], g);
      pools_[i].retain(block);
      table.push_back(block);
    }
    // Also what its prompt still needs; a window's never stands all at once.
    const bool window = config_.kv_groups[i].kind == KVKind::window;
    const size_t all = window ? host.size() : static_cast<size_t>(blocks_for(g, req.known()));
    for (size_t k = table.size(); k < all; ++k) {
      const bool kept = k < host.size();
      if (kept && host[k] == kNullBlock) {
        table.push_back(kNullBlock);
        continue;
      }
      table.push_back(take_block(g, req.id));
      grown(req, g);
      if (!kept) continue;
      at_.moves[at_.transfers++] =
          transfer(move, g, Tier::host, host[k], Tier::device, table[k], committed_);
    }
  }
  for (const EntryId e : match_.path) prefix_->touch(e, false, req.priority);
  req.account.swapped_blocks += move.missing;
  req.published = matched;
  --num_swapped_;
  req.state = ReqState::swapping_in;
  req.running_index = static_cast<int32_t>(arriving_.size());
  arriving_.push_back(&req);
  ++tenants_[static_cast<size_t>(req.tenant_index)].running;
  count_siblings(req, 1);
  ++stats_.num_swapped_in;
  if (planted(Bug::host_block_reused)) release_host(req);
  if (move.missing == 0) end_move(move);
}

void Scheduler::leave_arriving(Req& req) {
  const auto at = static_cast<size_t>(req.running_index);
  arriving_[at] = arriving_.back();
  arriving_[at]->running_index = req.running_index;
  arriving_.pop_back();
  req.running_index = -1;
  req.move = 0;
  --tenants_[static_cast<size_t>(req.tenant_index)].running;
  count_siblings(req, -1);
}

void Scheduler::release_host(Req& req) {
  num_swapped_ -= req.swapped_out();
  for (size_t g = 0; g < req.host_tables.size(); ++g) {
    for (const BlockId block : req.host_tables[g]) {
      if (block != kNullBlock) host_pools_[g].release(block, 0);
    }
    req.host_tables[g].clear();
  }
  req.swap_from = 0;
}

// A victim on its way in: gives its device blocks back and is swapped again.
void Scheduler::turn_back(Req& req) {
  note_preempted(req, PreemptionKind::swap);
  release_blocks(req, true);
  leave_arriving(req);
  ++num_swapped_;
  ++req.account.swaps;
  req.state = ReqState::swapped;
  enqueue(req);
  req.wait = {.code = WaitCode::low_water, .step = next_batch_};
  refresh_available();
}

// What a swapped req kept in host memory is of no use any more: it is as good as retracted.
void Scheduler::lose_swap(Req& req) {
  req.highest_computed = std::max(req.highest_computed, req.computed);
  const bool waits = req.state != ReqState::swapping_in;
  if (!waits) {
    release_blocks(req);
    leave_arriving(req);
  }
  release_host(req);
  std::fill(req.window_begins.begin(), req.window_begins.end(), 0);
  req.move = 0;
  req.computed = req.committed = 0;
  req.state = ReqState::retracted;
  ++req.account.swaps_lost;
  if (waits) {
    waiting_.rekey(req, key_of(req));
  } else {
    enqueue(req);
  }
}

// Those whose last copy is back take their seats and run from this step on.
void Scheduler::resume_arrived() {
  for (size_t i = 0; i < arriving_.size();) {
    Req& req = *arriving_[i];
    int64_t changes = int64_t{num_groups_} * 2 * config_.max_num_seqs;
    for (const auto& table : req.tables) changes += static_cast<int64_t>(table.size());
    const int64_t words = kMaxSeatExtraWords + (req.params.has_penalties() ? req.known() : 0);
    const bool room =
        at_.seat_changes == 0 || (at_.table_changes + changes <= ledger_.table_changes &&
                                  at_.seat_words + words <= ledger_.seat_words);
    if ((req.move != 0 && !planted(Bug::resumed_early)) || !room) {
      ++i;
      continue;
    }
    leave_arriving(req);
    release_host(req);
    check(req.known_ahead == req.known() && req.rows_in_flight == 0, "a swapped req is at rest");
    take_seat(req);
    for (GroupId g = 0; g < num_groups_; ++g) {
      const auto& table = req.tables[static_cast<size_t>(g)];
      for (size_t k = 0; k < table.size(); ++k) {
        if (table[k] != kNullBlock) change_table(g, req.seat, static_cast<int32_t>(k), table[k]);
      }
    }
    req.committed = req.computed;
    req.publish_at = (req.published + 1) * block_size_;
    req.last_token = req.tokens.back();
    req.own_from = std::min(req.own_from, req.published);
    set_tail(req);
  }
  refresh_available();
  survey_running();
}

// The move that a ticket under way belongs to; null: none.
Scheduler::Move* Scheduler::move_of(Ticket ticket) {
  for (Move& move : moves_) {
    if (move.kind == Move::Kind::none || ticket < move.first) continue;
    const auto i = static_cast<size_t>(ticket - move.first);
    if (i < move.num_back) return move.store->back[move.back_begin + i] == 0 ? &move : nullptr;
  }
  return nullptr;
}

void Scheduler::take_ticket(Ticket ticket) {
  Move* const move = move_of(ticket);
  if (move == nullptr) return;  // named twice
  move->store->back[move->back_begin + static_cast<size_t>(ticket - move->first)] = 1;
  if (--move->missing == 0) end_move(*move);
}

void Scheduler::end_move(Move& move) {
  const auto touched = touched_by(move);
  for (size_t i = touched.size(); i > 0; --i)
    touched[i - 1].first->end_transfer(touched[i - 1].second);
  --move.store->num_moves;
  const Move::Kind kind = move.kind;
  move.kind = Move::Kind::none;
  --num_moves_;
  Req* const req = reqs_[static_cast<size_t>(move.req)].get();
  if (req == nullptr || req->move != move.id) return;  // ended, or turned round
  req->move = 0;
  if (kind == Move::Kind::out) req->state = ReqState::swapped;
}

}  // namespace stoker
