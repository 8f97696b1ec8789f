// The order of the waiting queue: one small rule a policy, and ageing, so that no rule lets a req
// wait for ever.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "sched/scheduler.h"

namespace stoker {
namespace {

constexpr int32_t kRerankPerStep =
    16;  // of a policy whose order drifts with time, round robin over all reqs

// Steps for which an urgent req lets others be expected.
constexpr int32_t kUrgentSteps = 1024;

uint64_t mixed(uint64_t seed, uint64_t x) {
  uint64_t z = seed ^ (x * 0x9e3779b97f4a7c15ULL);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

}  // namespace

QueueKey Scheduler::key_of(Req& req) {
  QueueKey key{.tier = req.state == ReqState::waiting ? 1 : 0, .seq = req.arrival_seq};
  const auto matched = [&] {
    return prefix_
               ? prefix_->match_blocks(req.prefix_root, req.tokens, (req.known() - 1) / block_size_)
               : 0;
  };
  switch (config_.schedule_policy) {
    case Policy::fcfs:
      break;
    case Policy::lpm:  // longest cached prefix first
      key.key = -matched();
      break;
    case Policy::dfs_weight: {  // the branch of the tree that most waiting reqs share first, its
                                // reqs together
      weigh_branch(req, 0);
      const bool full = prefix_ && req.known() > block_size_;
      const EntryId branch = full ? prefix_->find(req.prefix_root, req.tokens.data()) : kNoEntry;
      if (branch != kNoEntry) {
        req.branch = branch;
        weigh_branch(req, 1);
        key.key = -branch_weights_[static_cast<size_t>(branch)];
        key.group = branch;
      }
      break;
    }
    case Policy::sjf:  // shortest declared output still to come
      key.key = req.length_limit - req.known();
      break;
    case Policy::lof:  // longest declared output first
      key.key = req.known() - req.length_limit;
      break;
    case Policy::hrrn: {  // highest (waiting + service) / service first
      const double service =
          req.known() - matched() * block_size_ + (req.length_limit - req.known());
      key.key = -static_cast<double>(now_ - req.account.arrival_time) / std::max(service, 1.0);
      break;
    }
    case Policy::random:
      key.key =
          static_cast<double>(mixed(config_.seed, static_cast<uint64_t>(req.arrival_seq)) >> 11);
      break;
    case Policy::priority:
      key.rank = req.priority;
      break;
    case Policy::key:
      key.key = req.policy_key;
      break;
    case Policy::deadline:
      key.key = urgency(req);
      key.rank = key.key >= kLate;  // also in front of those that were preempted
      break;
    case Policy::fair:  // first the tenant served least, see next_candidate(); within it first come
                        // first served
      key.rank = req.tenant_index;
      break;
  }
  if (req.aged) {
    key.tier = -1;
    key.key = 0;
    key.group = 0;
    if (config_.schedule_policy == Policy::priority || config_.schedule_policy == Policy::deadline)
      key.rank = -std::numeric_limits<double>::infinity();
  }
  return key;
}

// What a req is compared by with prompts under way under `priority` and `deadline`: lower is
// sooner.
double Scheduler::urgency(const Req& req) const {
  if (config_.schedule_policy == Policy::priority) return req.rank();
  const TimeNs due = req.due();  // earliest first, within what can still be met
  return due < 0 ? kLate : static_cast<double>(due) + (due < now_ ? 2 * kLate : 0);
}

// One that outranks others has come, and more may: for some steps to come the prompts that it
// outranks get little of each. Where newcomers of several ranks do, all up to the least of them are
// urgent.
void Scheduler::expect_urgent(const Req& newcomer) {
  const Policy policy = config_.schedule_policy;
  if (config_.urgent_prefill_token_threshold == 0) return;
  double border = urgency(newcomer);
  if (policy == Policy::deadline) {
    if (border >= kLate) return;
    border = static_cast<double>(std::numeric_limits<TimeNs>::max());  // all deadlines
  } else if (policy == Policy::priority) {
    double least = least_urgent_;
    if (!waiting_.empty()) least = std::max(least, waiting_.items().rbegin()->key.rank);
    if (border >= least) return;
  } else {
    return;
  }
  urgent_border_ = next_batch_ < urgent_until_ ? std::max(urgent_border_, border) : border;
  urgent_until_ = next_batch_ + kUrgentSteps;
}

void Scheduler::weigh_branch(Req& req, int32_t add) {
  if (add == 0) {
    if (req.branch != kNoEntry) --branch_weights_[static_cast<size_t>(req.branch)];
    req.branch = kNoEntry;
    return;
  }
  if (static_cast<size_t>(req.branch) >= branch_weights_.size()) {
    branch_weights_.resize(static_cast<size_t>(req.branch) + 1024, 0);
  }
  ++branch_weights_[static_cast<size_t>(req.branch)];
}

// Puts a req into the queue, and at the end of the line that ageing looks at.
void Scheduler::enqueue(Req& req) {
  req.queued_since = now_;
  req.admissions_seen = num_admissions_;
  ++tenants_[static_cast<size_t>(req.tenant_index)].queued;
  waiting_.insert(req, key_of(req));
  if (req.aged) return;
  req.in_line = true;
  req.older = newest_;
  (newest_ == nullptr ? oldest_ : newest_->newer) = &req;
  newest_ = &req;
}

void Scheduler::leave_line(Req& req) {
  if (!req.in_line) return;
  (req.older == nullptr ? oldest_ : req.older->newer) = req.newer;
  (req.newer == nullptr ? newest_ : req.newer->older) = req.older;
  req.older = req.newer = nullptr;
  req.in_line = false;
}

void Scheduler::dequeue(Req& req) {
  waiting_.erase(req);
  leave_line(req);
  --tenants_[static_cast<size_t>(req.tenant_index)].queued;
  if (req.branch != kNoEntry) weigh_branch(req, 0);
  req.account.queue_time += now_ - req.queued_since;
}

// Keeps the order true to a policy that drifts, a few reqs a step, and lets the oldest come forward
// when it is time.
void Scheduler::refresh_order() {
  while (oldest_ != nullptr && config_.aging_limit > 0) {
    Req& req = *oldest_;
    if (num_admissions_ - req.admissions_seen < config_.aging_limit) break;
    leave_line(req);
    req.aged = true;
    waiting_.rekey(req, key_of(req));
  }
  const Policy policy = config_.schedule_policy;
  if (policy != Policy::lpm && policy != Policy::dfs_weight && policy != Policy::hrrn &&
      policy != Policy::deadline)
    return;
  const size_t count = std::min<size_t>(kRerankPerStep, reqs_.size());
  for (size_t i = 0; i < count; ++i) {
    rerank_at_ = rerank_at_ + 1 < reqs_.size() ? rerank_at_ + 1 : 0;
    Req* const req = reqs_[rerank_at_].get();
    if (req != nullptr && waiting_.contains(*req)) waiting_.rekey(*req, key_of(*req));
  }
}

void Scheduler::set_policy_key(std::string_view rid, double key) {
  const auto it = by_rid_.find(rid);
  if (it == by_rid_.end()) throw InvalidArgument("no req '" + std::string(rid) + "'");
  if (!std::isfinite(key))
    throw InvalidArgument("req '" + std::string(rid) + "': its policy key must be a finite number");
  if (log_ != nullptr) log_->policy_key(rid, key);
  it->second->policy_key = key;
  if (waiting_.contains(*it->second)) waiting_.rekey(*it->second, key_of(*it->second));
}

// The next req to be looked at. For `fair` that is the head of the tenant served least which was
// not passed over yet.
WaitingQueue::iterator Scheduler::next_candidate(WaitingQueue::iterator after) {
  if (config_.schedule_policy != Policy::fair) return after;
  auto best = waiting_.end();
  double least = std::numeric_limits<double>::infinity();
  for (size_t t = 0; t < tenants_.size(); ++t) {
    const Tenant& tenant = tenants_[t];
    if (tenant.queued == 0 || tenant.passed_over == looks_ || tenant.served >= least) continue;
    best = waiting_.first_of_rank(static_cast<double>(t));
    least = tenant.served;
  }
  return best;
}

int32_t Scheduler::tenant_of(const Req& req) {
  const auto [it, fresh] =
      tenant_indices_.try_emplace(req.tenant, static_cast<int32_t>(tenants_.size()));
  if (fresh) tenants_.emplace_back();
  Tenant& tenant = tenants_[static_cast<size_t>(it->second)];
  tenant.weight = req.tenant_weight;
  // Who comes back after a pause is no further ahead than the least served of those present. (VTC's
  // lift.)
  if (tenant.queued == 0 && tenant.running == 0) {
    double least = std::numeric_limits<double>::infinity();
    for (const Tenant& other : tenants_) {
      if (other.queued + other.running > 0) least = std::min(least, other.served);
    }
    if (least < std::numeric_limits<double>::infinity())
      tenant.served = std::max(tenant.served, least);
  }
  return it->second;
}

// Ends the waiting reqs that asked to be dropped once their deadline has passed.
void Scheduler::drop_late() {
  while (!expiring_.empty() && expiring_.begin()->first < now_) {
    const auto [due, seq_and_id] = *expiring_.begin();
    expiring_.erase(expiring_.begin());
    Req* const req = reqs_[static_cast<size_t>(seq_and_id.second)].get();
    if (req == nullptr || req->arrival_seq != seq_and_id.first || req->finished() ||
        req->num_outputs() > 0)
      continue;
    if (!waiting_.contains(*req)) continue;
    end_in_plan(*req, FinishReason::abort,
                "its deadline for the first token passed while it waited");
  }
}

}  // namespace stoker
