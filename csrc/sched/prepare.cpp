// All memory that a plan may need is there before anything is decided: so a plan takes effect
// whole, or schedule() throws and has changed nothing. What is reserved here is what the decisions
// write; the random workloads count that they ask for nothing else.
#include <algorithm>
#include <new>

#include "base/check.h"
#include "base/plan_phase.h"
#include "sched/scheduler.h"

namespace stoker {
namespace {

// Reqs that one plan ends because they cannot be run; the next plan goes on.
constexpr int32_t kEndsAPlan = 16;

template <typename T>
void make_room(std::vector<T>& list, size_t more) {
  if (list.capacity() - list.size() < more) list.reserve(2 * list.size() + more);
}

}  // namespace

// What follows from the configuration alone.
void Scheduler::reserve_for_plans() {
  const auto seqs = static_cast<size_t>(config_.max_num_seqs);
  const auto groups = static_cast<size_t>(num_groups_);
  // In one plan all may leave, and as many enter.
  for (auto* reqs : {&running_, &chunks_, &arriving_, &passed_, &victims_})
    reqs->reserve(2 * seqs + kLooksPerStep);
  peak_.reserve(4 * seqs);
  due_.reserve(seqs + 1);
  full_tables_.reserve(2 * seqs * groups);
  match_.path.reserve(static_cast<size_t>(limits_.max_blocks_per_req));
  late_changes_.reserve(static_cast<size_t>(layout_.capacity(Section::table_changes)));
  late_transfers_.reserve(seqs * groups);
  for (StepRecord& step : steps_) {
    step.records.resize(seqs + 1);
    step.published.reserve(static_cast<size_t>(config_.max_num_batched_tokens / block_size_) +
                           2 * seqs);
  }
}

// What follows from how things stand. Changes nothing that a decision looks at.
void Scheduler::prepare(TimeNs now) {
  const InPlanPhase phase(PlanPhase::preparing);
  if (prefix_) {
    prefix_->make_room();
    if (config_.schedule_policy == Policy::dfs_weight &&
        branch_weights_.size() < prefix_->num_ids())
      branch_weights_.resize(prefix_->num_ids(), 0);
  }
  while (!full_tables_.empty()) {
    if (const ReqPtr& req = reqs_[static_cast<size_t>(full_tables_.back())])
      reserve_tables(*req, std::min(req->length_limit, 2 * req->known() + kReservedOutput));
    full_tables_.pop_back();
  }
  prepare_moves();
  ends_left_ = kEndsAPlan;
  auto due = static_cast<size_t>(kEndsAPlan);
  for (auto it = expiring_.begin(); it != expiring_.end() && it->first < std::max(now_, now); ++it)
    ++due;
  for (auto* list :
       {&events_.reqs, &events_.token_indptr, &events_.finish_reasons, &events_.out_rows})
    make_room(*list, due);
  make_room(events_.ended, due);
  make_room(ended_, due);
  if (log_ != nullptr) log_->make_room();
}

// Room for the moves that a plan may begin: one out, one in and one fork a req.
void Scheduler::prepare_moves() {
  const auto seqs = static_cast<size_t>(config_.max_num_seqs);
  if (moves_.capacity() < static_cast<size_t>(num_moves_) + 3 * seqs)
    moves_.reserve(2 * static_cast<size_t>(num_moves_) + 3 * seqs);
  if (store_ == nullptr || store_->num_moves > 0) {
    const auto idle = std::find_if(stores_.begin(), stores_.end(),
                                   [](const auto& store) { return store->num_moves == 0; });
    if (idle != stores_.end()) {
      store_ = idle->get();
    } else {
      const size_t forks = seqs * static_cast<size_t>(num_groups_);
      // Copies, both of whose ends are touched, and as many blocks that are kept and not copied.
      const size_t swaps =
          host_pools_.empty() ? 0 : static_cast<size_t>(layout_.capacity(Section::transfers));
      auto fresh = std::make_unique<MoveStore>();
      fresh->back.reserve(forks + swaps);
      fresh->touched.reserve(2 * forks + 3 * swaps);
      make_room(stores_, 1);
      store_ = stores_.emplace_back(std::move(fresh)).get();
    }
  }
  store_->back.clear();
  store_->touched.clear();
}

// finish(), while a plan is decided: its error is a text, which asks for memory.
void Scheduler::end_in_plan(Req& req, FinishReason reason, const char* why) {
  finish(req, reason);
  req.why = why;
  unsaid_ = true;
}

// Writes the errors of reqs that a plan has ended. Where there is no memory for that, later.
void Scheduler::say_why() {
  if (!unsaid_) return;
  try {
    for (const ReqPtr& req : events_.ended) {
      if (req->why == nullptr) continue;
      req->error = req->why;
      if (req->wait.code != WaitCode::none) req->error += describe(req->wait);
      req->why = nullptr;
      req->wait = {};
    }
    unsaid_ = false;
  } catch (const std::bad_alloc&) {
    return;
  }
}

}  // namespace stoker
