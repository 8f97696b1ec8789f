// Who steps aside when KV runs out. A victim has lost least: so whoever is furthest always gets on,
// and two reqs never evict each other in turn.
#include <algorithm>
#include <tuple>

#include "base/check.h"
#include "base/planted_bugs.h"
#include "sched/scheduler.h"

namespace stoker {

// 4. Makes sure that the decode rows of this step find their blocks, as far as that can be had
// without preempting in vain: rows that only wait for blocks that are draining, or for reqs that
// are about to end, sit this step out instead.
void Scheduler::make_room_for_decodes() {
  const auto short_of = [&] {
    for (GroupId g = 0; g < num_groups_; ++g) {
      const auto i = static_cast<size_t>(g);
      if (pools_[i].num_available() >= num_running_) continue;
      int64_t need = 0, coming = pools_[i].num_draining();
      for (const Req* req : running_) {
        if (req == nullptr) continue;
        if (req->known_ahead >= req->length_limit) {
          coming += static_cast<int64_t>(req->tables[i].size());
        } else if (req->known_ahead - req->computed == 1) {
          need += blocks_for(g, req->computed + 1) - static_cast<int64_t>(req->tables[i].size());
        }
      }
      if (need > pools_[i].num_available() + coming) return true;
    }
    return false;
  };
  while (num_running_ > 1 && short_of()) retract(*choose_victim());
}

Req* Scheduler::choose_victim() const {
  Req* victim = nullptr;
  for (Req* req : running_) {
    if (req == nullptr || req->known_ahead >= req->length_limit) continue;
    if (victim == nullptr || std::tuple(req->computed, -req->arrival_seq) <
                                 std::tuple(victim->computed, -victim->arrival_seq)) {
      victim = req;
    }
  }
  check(victim != nullptr, "somebody can step aside");
  return victim;
}

// Takes a running req's KV and seat away and puts it in front of the queue. Its tokens stay, also
// those in flight, which are appended at commit; its full blocks stay in the prefix cache as long
// as they last.
void Scheduler::retract(Req& req) {
  double generated = 0, declared = 0;
  for (const Req* other : running_) {
    if (other == nullptr || other == &req) continue;
    generated += other->known_ahead - other->prompt_len;
    declared += other->length_limit - other->prompt_len;
  }
  req.highest_computed = std::max(req.highest_computed, req.computed);
  release_blocks(req);
  leave_seat(req);
  req.computed = req.committed = 0;
  req.state = ReqState::retracted;
  req.queued_since = now_;
  ++req.account.retractions;
  ++stats_.num_preempted;
  waiting_.insert(req, key_of(req));
  req.wait = {.code = WaitCode::low_water, .step = next_batch_};
  ratio_.preempted(generated, declared, num_running_);
  low_water_ = true;
  refresh_available();
}

// Called when no row was planned. An idle device with work to do moves, or the head fails with its
// reason.
bool Scheduler::unstick() {
  if (steps_in_flight() > 0 || fatal_) return false;  // moves when the step comes back
  if (num_running_ > 1) {
    retract(*choose_victim());
  } else if (num_running_ == 1) {
    for (Req* req : running_) {
      if (req != nullptr)
        finish(*req, FinishReason::error, "the KV pool is too small for this req alone");
    }
  } else if (!waiting_.empty()) {
    Req& head = *waiting_.begin()->req;
    finish(head, FinishReason::error, "cannot be run even alone: it " + describe(head.wait));
  } else {
    return false;
  }
  refresh_available();
  ledger_.seats = static_cast<int32_t>(free_seats_.size());
  survey_running();
  return true;
}

}  // namespace stoker
