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

// Who steps aside first under the rule in force; the order is total.
bool Scheduler::steps_aside_before(const Req& a, const Req& b) const {
  const auto progress = [](const Req& r) { return std::tuple(r.computed, -r.arrival_seq); };
  const bool ranked = config_.schedule_policy == Policy::priority ||
                      config_.preemption_victim == Victim::lowest_priority;
  if (ranked && a.priority != b.priority) return a.priority > b.priority;
  switch (config_.preemption_victim) {
    case Victim::newest:
      return a.arrival_seq > b.arrival_seq;
    case Victim::most_blocks:
      if (a.tables[0].size() != b.tables[0].size()) return a.tables[0].size() > b.tables[0].size();
      return progress(a) < progress(b);
    case Victim::least_progress:
    case Victim::lowest_priority:
      break;
  }
  return progress(a) < progress(b);
}

Req* Scheduler::choose_victim() const {
  Req* victim = nullptr;
  for (Req* req : running_) {
    if (req == nullptr || req->known_ahead >= req->length_limit) continue;
    if (victim == nullptr || steps_aside_before(*req, *victim)) victim = req;
  }
  check(victim != nullptr, "somebody can step aside");
  return victim;
}

// 0. Under the policy `priority` the head of the queue displaces reqs that it outranks, for a seat
// or for KV; but only if what they give back is enough, and not while enough of it is on its way
// back already.
void Scheduler::make_way() {
  if (config_.schedule_policy != Policy::priority || waiting_.empty() || pause_ != Pause::no)
    return;
  Req& head = *waiting_.begin()->req;
  if (!head.grammar_ready) return;
  if (!(head.priority < worst_priority_)) return;
  const Verdict verdict = consider(head);
  const auto* reason = std::get_if<WaitReason>(&verdict);
  if (reason == nullptr || (reason->code != WaitCode::seats && reason->code != WaitCode::blocks))
    return;
  const bool for_seat = reason->code == WaitCode::seats;
  const auto g = static_cast<size_t>(reason->group);
  int64_t missing =
      for_seat ? 1 - num_draining_seats_
               : reason->needed - reason->free - reason->evictable - pools_[g].num_draining();
  if (missing <= 0) return;  // it comes with the steps in flight
  victims_.clear();
  for (Req* req : running_) {
    if (req != nullptr && req->priority > head.priority && req->known_ahead < req->length_limit)
      victims_.push_back(req);
  }
  std::sort(victims_.begin(), victims_.end(),
            [&](const Req* a, const Req* b) { return steps_aside_before(*a, *b); });
  size_t count = 0;
  while (count < victims_.size() && missing > 0) {
    const Req& victim = *victims_[count++];
    if (for_seat) {
      --missing;
      continue;
    }
    for (const BlockId block : victim.tables[g])
      missing -= block != kNullBlock && pools_[g].refs(block) == 1;
  }
  if (missing > 0) return;  // would be in vain
  for (size_t i = 0; i < count; ++i) retract(*victims_[i]);
  urgent_seq_ = head.arrival_seq;
  ledger_.seats = static_cast<int32_t>(free_seats_.size());
  survey_running();
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
  ++req.account.retractions;
  ++stats_.num_preempted;
  enqueue(req);
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
  } else if (blocked_ != nullptr && waiting_.contains(*blocked_) && pause_ == Pause::no) {
    finish(*blocked_, FinishReason::error,
           "cannot be run even alone: it " + describe(blocked_->wait));
    blocked_ = nullptr;
  } else {
    return false;
  }
  refresh_available();
  ledger_.seats = static_cast<int32_t>(free_seats_.size());
  survey_running();
  return true;
}

}  // namespace stoker
