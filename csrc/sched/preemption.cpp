// Who steps aside when KV runs out. A victim has lost least: so whoever is furthest always gets on,
// and two reqs never evict each other in turn.
#include <algorithm>
#include <limits>
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
  while (num_present() > 1 && short_of()) preempt(*choose_victim());
}

// Who steps aside first under the rule in force; the order is total.
bool Scheduler::steps_aside_before(const Req& a, const Req& b) const {
  const auto progress = [](const Req& r) { return std::tuple(r.computed, -r.arrival_seq); };
  const bool ranked = config_.schedule_policy == Policy::priority ||
                      config_.preemption_victim == Victim::lowest_priority;
  if (ranked && a.rank() != b.rank()) return a.rank() > b.rank();
  if (config_.schedule_policy == Policy::deadline) {
    // Whose next token is due can still be met stays, the sooner the surer.
    const auto slack = [&](const Req& r) {
      const TimeNs due = r.due();
      return due < now_ ? std::numeric_limits<TimeNs>::max() : due;
    };
    if (slack(a) != slack(b)) return slack(a) > slack(b);
  }
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
  for (Req* req : arriving_) {
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
  if (!(head.rank() < least_urgent_)) return;
  if (head.state == ReqState::swapped && head_is_lost(head)) lose_swap(head);
  const Verdict verdict = consider(head);
  const auto* reason = std::get_if<WaitReason>(&verdict);
  if (reason == nullptr || (reason->code != WaitCode::seats && reason->code != WaitCode::blocks))
    return;
  const bool for_seat = reason->code == WaitCode::seats;
  const auto g = static_cast<size_t>(reason->group);
  int64_t missing =
      for_seat ? reason->needed - reason->free - num_draining_seats_
               : reason->needed - reason->free - reason->evictable - pools_[g].num_draining();
  if (missing <= 0) {  // it comes with the steps and copies in flight
    urgent_seq_ = head.arrival_seq;
    return;
  }
  victims_.clear();
  for (Req* req : running_) {
    if (req != nullptr && req->rank() > head.rank() && req->known_ahead < req->length_limit)
      victims_.push_back(req);
  }
  for (Req* req : arriving_) {
    if (req->rank() > head.rank()) victims_.push_back(req);
  }
  std::sort(victims_.begin(), victims_.end(),
            [&](const Req* a, const Req* b) { return steps_aside_before(*a, *b); });
  size_t count = 0;
  while (count < victims_.size() && missing > 0) {
    const Req& victim = *victims_[count++];
    if (for_seat) {
      missing -= 1 + num_siblings(victim);
      continue;
    }
    for (const BlockId block : victim.tables[g])
      missing -= block != kNullBlock && pools_[g].refs(block) == 1;
  }
  if (missing > 0) return;  // would be in vain
  preempts_for_ = PreemptionReason::priority;
  for (size_t i = 0; i < count; ++i) preempt(*victims_[i]);
  preempts_for_ = PreemptionReason::blocks;
  urgent_seq_ = head.arrival_seq;
  survey_running();
}

// Takes a running req's KV and seat away and puts it in front of the queue. Its tokens stay, also
// those in flight, which are appended at commit; its full blocks stay in the prefix cache as long
// as they last.
void Scheduler::retract(Req& req) {
  note_preempted(req, PreemptionKind::retract);
  req.highest_computed = std::max(req.highest_computed, req.computed);
  release_blocks(req);
  leave_seat(req);
  req.computed = req.committed = 0;
  req.state = ReqState::retracted;
  ++req.account.retractions;
  enqueue(req);
  req.wait = {.code = WaitCode::low_water, .step = next_batch_};
  refresh_available();
}

// Takes the KV of a req that steps aside away, by the way that is expected to be quicker. One that
// is only just coming back turns round: its copy in host memory is still whole.
void Scheduler::preempt(Req& req) {
  if (req.state == ReqState::swapping_in) return turn_back(req);
  const int32_t shared = host_pools_.empty() ? 0 : shared_head(req);
  if (!host_pools_.empty() && swap_is_better(req, shared)) {
    swap_out(req, shared);
  } else {
    retract(req);
  }
}

// What a preemption teaches admission; called while the req still runs.
void Scheduler::note_preempted(Req& req, PreemptionKind kind) {
  ++preemptions_[static_cast<size_t>(kind)][static_cast<size_t>(preempts_for_)];
  double generated = 0, declared = 0;
  for (const Req* other : running_) {
    if (other == nullptr || other == &req) continue;
    generated += other->known_ahead - other->prompt_len;
    declared += other->length_limit - other->prompt_len;
  }
  ratio_.preempted(generated, declared, num_present() - 1);
  low_water_ = true;
  ++stats_.num_preempted;
}

// Called when no row was planned. An idle device with work to do moves, or the head fails with its
// reason.
bool Scheduler::unstick() {
  if (fatal_ || ends_left_ == 0) return false;
  if (std::any_of(arriving_.begin(), arriving_.end(), [](const Req* r) { return r->move == 0; })) {
    resume_arrived();
    return true;
  }
  // Moves when the step comes back, or the copy, or this step, which has nothing but copies and
  // seats.
  if (steps_in_flight() > 0 || at_.transfers > 0 || at_.seat_changes > 0 || num_moves_ > 0)
    return false;
  if (num_running_ > 1) {
    preempt(*choose_victim());
  } else if (num_running_ == 1) {
    for (Req* req : running_) {
      if (req == nullptr) continue;
      end_in_plan(*req, FinishReason::error, "the KV pool is too small for this req alone");
      --ends_left_;
    }
  } else if (blocked_ != nullptr && waiting_.contains(*blocked_) && pause_ == Pause::no) {
    if (!blocked_->siblings.empty()) {  // one after the other they may fit
      detach_siblings(*blocked_);
      return true;
    }
    const WaitReason reason = blocked_->wait;
    end_in_plan(*blocked_, FinishReason::error, "cannot be run even alone: it ");
    blocked_->wait = reason;  // say_why() goes on with it
    --ends_left_;
    blocked_ = nullptr;
  } else {
    return false;
  }
  refresh_available();
  survey_running();
  return true;
}

}  // namespace stoker
