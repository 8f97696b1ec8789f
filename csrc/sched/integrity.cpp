// The slow check that nothing is lost and nothing is in two hands; tests call it after every step.
#include <algorithm>

#include "base/check.h"
#include "sched/scheduler.h"

namespace stoker {

void StepEvents::clear() {
  batch_id = 0;
  status = StepStatus::ok;
  message.clear();
  reqs.clear();
  token_indptr.assign(1, 0);
  tokens.clear();
  finish_reasons.clear();
  out_rows.clear();
  score_reqs.clear();
  score_positions.clear();
  score_rows.clear();
  pooled_reqs.clear();
  ended.clear();
}

// Every block that a transfer touches is marked so, as often as it is touched, and no other.
void Scheduler::check_moves() const {
  int32_t moves = 0, swapped = 0;
  for (const Move& move : moves_) moves += move.kind != Move::Kind::none;
  if (moves != num_moves_) throw InternalError("transfers are miscounted");
  std::vector<int32_t> touched;
  const auto check_pool = [&](const BlockPool& pool) {
    touched.assign(static_cast<size_t>(pool.total()), 0);
    for (const Move& move : moves_) {
      if (move.kind == Move::Kind::none) continue;
      for (const auto& [of, block] : touched_by(move)) {
        if (of == &pool) ++touched[static_cast<size_t>(block)];  // another pool may be larger
      }
    }
    for (BlockId b = 1; b < pool.total(); ++b) {
      if (pool.transfers(b) != touched[static_cast<size_t>(b)])
        throw InternalError("block " + std::to_string(b) +
                            " miscounts the transfers that touch it");
    }
  };
  for (const BlockPool& pool : pools_) check_pool(pool);
  for (size_t g = 0; g < host_pools_.size(); ++g) {
    check_pool(host_pools_[g]);
    std::vector<int32_t> holders(static_cast<size_t>(host_pools_[g].total()), 0);
    for (const ReqPtr& req : reqs_) {
      if (!req) continue;
      const bool swaps = req->swapped_out() || req->state == ReqState::swapping_in;
      if (!swaps && !req->host_tables[g].empty())
        throw InternalError("req '" + req->rid + "' is not swapped but holds host blocks");
      for (const BlockId block : req->host_tables[g]) {
        if (block != kNullBlock) ++holders[static_cast<size_t>(block)];
      }
    }
    host_pools_[g].check_integrity(holders,
                                   ("host blocks of KV group " + std::to_string(g)).c_str());
  }
  for (const ReqPtr& req : reqs_) swapped += req && req->swapped_out();
  if (swapped != num_swapped_)
    throw InternalError("swapped reqs are miscounted: " + std::to_string(num_swapped_) +
                        ", there are " + std::to_string(swapped));
}

void Scheduler::check_integrity() const {
  if (blocked_ != nullptr) throw InternalError("what did not fit is kept beyond its step");
  for (GroupId g = 0; g < num_groups_; ++g) {
    const auto i = static_cast<size_t>(g);
    std::vector<int32_t> holders(static_cast<size_t>(pools_[i].total()), 0);
    for (const ReqPtr& req : reqs_) {
      if (!req) continue;
      for (const BlockId block : req->tables[i]) {
        if (block != kNullBlock) ++holders[static_cast<size_t>(block)];
      }
      const bool places = req->holds_seat() || req->state == ReqState::swapping_in;
      if (!places && !req->tables[i].empty()) {
        throw InternalError("req '" + req->rid + "' has no place but holds blocks");
      }
    }
    for (const Pin& pin : pins_) {
      for (const BlockId block : pin.blocks[i]) ++holders[static_cast<size_t>(block)];
    }
    pools_[i].check_integrity(holders, ("KV group " + std::to_string(g)).c_str());
  }
  check_moves();
  if (prefix_) prefix_->check_integrity();

  std::vector<int32_t> seats(static_cast<size_t>(config_.max_num_seqs) + 1, 0);
  for (const Seat seat : free_seats_) {
    ++seats[static_cast<size_t>(seat)];
    if (seat_busy_until_[static_cast<size_t>(seat)] > committed_) {
      throw InternalError("seat " + std::to_string(seat) +
                          " can be handed out while a step still reads it");
    }
  }
  int32_t draining = 0;
  for (const auto& bucket : draining_seats_) {
    for (const Seat seat : bucket) ++seats[static_cast<size_t>(seat)];
    draining += static_cast<int32_t>(bucket.size());
  }
  int32_t running = 0;
  for (size_t i = 0; i < running_.size(); ++i) {
    const Req* req = running_[i];
    if (req == nullptr) continue;
    ++running;
    ++seats[static_cast<size_t>(req->seat)];
    const std::string who = "req '" + req->rid + "'";
    if (req->running_index != static_cast<int32_t>(i))
      throw InternalError(who + " is misplaced in the running batch");
    if (req->state != ReqState::running)
      throw InternalError(who + " runs in state " + name(req->state));
    if (req->committed > req->computed || req->computed > req->known_ahead) {
      throw InternalError(who + " has computed more than it knows");
    }
    for (GroupId g = 0; g < num_groups_; ++g) {
      if (static_cast<int64_t>(req->tables[static_cast<size_t>(g)].size()) <
          blocks_for(g, req->computed)) {
        throw InternalError(who + " has fewer blocks than tokens");
      }
    }
  }
  for (size_t seat = 1; seat < seats.size(); ++seat) {
    if (seats[seat] != 1) {
      throw InternalError("seat " + std::to_string(seat) + " is in " + std::to_string(seats[seat]) +
                          " hands");
    }
  }
  for (size_t i = 0; i < arriving_.size(); ++i) {
    const Req& req = *arriving_[i];
    if (req.state != ReqState::swapping_in || req.running_index != static_cast<int32_t>(i) ||
        req.holds_seat() || req.rows_in_flight > 0)
      throw InternalError("req '" + req.rid + "' is misplaced among those that swap in");
  }
  if (arriving_.size() + static_cast<size_t>(reserved_seats_) > free_seats_.size())
    throw InternalError("more reqs swap in than there are seats for");
  if (running != num_running_ || draining != num_draining_seats_)
    throw InternalError("reqs or seats are miscounted");
  int32_t waiting = 0, attached = 0, reserved = 0, unready = 0;
  for (const ReqPtr& req : reqs_) {
    if (!req || req->finished() || req->holds_seat() || req->state == ReqState::swapping_in)
      continue;
    unready += !req->grammar_ready;
    if (req->leader != nullptr) {
      ++attached;
      const auto& siblings = req->leader->siblings;
      if (std::count(siblings.begin(), siblings.end(), req.get()) != 1 || waiting_.contains(*req))
        throw InternalError("req '" + req->rid + "' is misplaced among its siblings");
      const bool counted = req->leader->holds_seat() || req->leader->state == ReqState::swapping_in;
      reserved += counted;
      continue;
    }
    ++waiting;
    if (!waiting_.contains(*req))
      throw InternalError("req '" + req->rid + "' is neither waiting nor running");
  }
  if (unready != num_unready_) throw InternalError("reqs that wait for a grammar are miscounted");
  if (attached != num_attached_ || reserved != reserved_seats_)
    throw InternalError("siblings that wait to fork are miscounted");
  if (waiting != waiting_.size())
    throw InternalError("the waiting queue holds reqs that do not wait");
}

}  // namespace stoker
