// The slow check that nothing is lost and nothing is in two hands; tests call it after every step.
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

void Scheduler::check_integrity() const {
  for (GroupId g = 0; g < num_groups_; ++g) {
    const auto i = static_cast<size_t>(g);
    std::vector<int32_t> holders(static_cast<size_t>(pools_[i].total()), 0);
    for (const ReqPtr& req : reqs_) {
      if (!req) continue;
      for (const BlockId block : req->tables[i]) {
        if (block != kNullBlock) ++holders[static_cast<size_t>(block)];
      }
      if (req->finished() && !req->tables[i].empty()) {
        throw InternalError("req '" + req->rid + "' has ended but holds blocks");
      }
    }
    for (const Pin& pin : pins_) {
      for (const BlockId block : pin.blocks[i]) ++holders[static_cast<size_t>(block)];
    }
    pools_[i].check_integrity(holders, ("KV group " + std::to_string(g)).c_str());
  }
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
  if (running != num_running_ || draining != num_draining_seats_)
    throw InternalError("reqs or seats are miscounted");
  int32_t waiting = 0, unready = 0;
  for (const ReqPtr& req : reqs_) {
    if (!req || req->finished() || req->holds_seat()) continue;
    ++waiting;
    unready += !req->grammar_ready;
    if (!waiting_.contains(*req))
      throw InternalError("req '" + req->rid + "' is neither waiting nor running");
  }
  if (unready != num_unready_) throw InternalError("reqs that wait for a grammar are miscounted");
  if (waiting != waiting_.size())
    throw InternalError("the waiting queue holds reqs that do not wait");
}

}  // namespace stoker
