// The step: the four decisions in their order, and the way back.
#include "sched/scheduler.h"

#include <algorithm>

#include "base/check.h"
#include "base/plan_phase.h"

namespace stoker {
namespace {

BatchLimits limits_of(const SchedulerConfig& config) {
  BatchLimits limits;
  limits.max_num_seqs = config.max_num_seqs;
  limits.max_num_batched_tokens = config.max_num_batched_tokens;
  limits.num_kv_groups = static_cast<int32_t>(config.kv_groups.size());
  limits.min_block_size = config.kv_groups[0].block_size;
  for (const KVGroup& group : config.kv_groups) {
    limits.min_block_size = std::min(limits.min_block_size, group.block_size);
  }
  limits.max_blocks_per_req =
      (config.max_model_len + limits.min_block_size - 1) / limits.min_block_size;
  if (config.attention.num_decode_workers > 0) {
    limits.max_attention_work = AttentionPlanner::work_capacity(
        config.attention, config.max_num_seqs, config.max_num_batched_tokens);
    limits.num_attention_workers = config.attention.num_decode_workers;
    limits.num_attention_lists =
        std::max<int32_t>(1, static_cast<int32_t>(config.attention_windows.size()));
  }
  limits.max_seat_words = 2 * config.max_model_len + kMaxSeatExtraWords;
  return limits;
}

}  // namespace

Scheduler::Scheduler(SchedulerConfig config)
    : config_(validated(std::move(config))),
      limits_(limits_of(config_)),
      layout_(limits_),
      num_groups_(limits_.num_kv_groups),
      block_size_(config_.kv_groups[0].block_size),
      ratio_(config_.schedule_conservativeness) {
  pools_.reserve(config_.kv_groups.size());
  host_pools_.reserve(config_.kv_groups.size());
  const bool swaps = config_.preemption != Preemption::retract &&
                     std::all_of(config_.kv_groups.begin(), config_.kv_groups.end(),
                                 [](const KVGroup& g) { return g.num_host_blocks >= 2; });
  for (const KVGroup& group : config_.kv_groups) {
    pools_.emplace_back(group.num_blocks);
    if (swaps) host_pools_.emplace_back(group.num_host_blocks);
    windows_.push_back(group.kind == KVKind::window
                           ? std::max(1, (group.window - 2 + group.block_size) / group.block_size)
                           : 0);
  }
  any_window_ = std::any_of(windows_.begin(), windows_.end(), [](int32_t w) { return w > 0; });
  if (config_.enable_prefix_caching) {
    prefix_ = std::make_unique<PrefixCache>(pools_, block_size_, windows_, config_.prefix_eviction);
  }
  for (int32_t i = 0; i < limits_.num_attention_lists; ++i) {
    AttentionGeometry geometry = config_.attention;
    if (!config_.attention_windows.empty())
      geometry.window = config_.attention_windows[static_cast<size_t>(i)];
    planners_.emplace_back(geometry);
  }
  for (AttentionPlanner& planner : planners_) planner.reserve(config_.max_num_seqs);
  fair_ = config_.schedule_policy == Policy::fair;
  for (Seat seat = config_.max_num_seqs; seat >= 1; --seat) free_seats_.push_back(seat);
  seat_busy_until_.assign(static_cast<size_t>(config_.max_num_seqs) + 1, 0);
  for (auto& seats : draining_seats_) seats.reserve(free_seats_.size());
  reserve_for_plans();
}

bool Scheduler::schedule(TimeNs now, const BatchBuffer& out) {
  if (steps_in_flight() > config_.overlap_depth) {
    throw InvalidArgument("schedule: " + std::to_string(steps_in_flight()) +
                          " steps are in flight already and overlap_depth is " +
                          std::to_string(config_.overlap_depth) + "; commit the oldest first");
  }
  prepare(now);
  bool launch = false;
  {
    const InPlanPhase phase(PlanPhase::deciding);
    begin_step(now, out);
    decide();
    launch = finish_step();
    if (log_ != nullptr) log_->schedule(now, launch ? &out : nullptr);
  }
  if (unsaid_) say_why();
  return launch;
}

void Scheduler::decide() {
  if (pause_ == Pause::in_place || fatal_) return;
  drop_late();
  if (!arriving_.empty()) resume_arrived();
  make_way();  // 0. whoever is outranked by the head of the queue makes way
  do {
    if (config_.batching == Batching::prefill_first) {
      plan_chunks();    // 2. prefill steps and decode steps apart, prefill first
      admit_waiting();  // 3.
      if (at_.rows == 0) plan_decodes();
    } else {
      plan_decodes();   // 1. what must go on, and 4. who steps aside if KV runs out
      admit_urgent();   // what outranks every prompt under way does not wait for them
      plan_chunks();    // 2. what fits besides: the prompts under way,
      admit_waiting();  // 3. and as many new ones as may enter
    }
  } while (at_.rows == 0 && unstick());  // an idle device with work to do always moves
}

const StepEvents& Scheduler::take_events() {
  if (log_ != nullptr && !ended_.empty()) log_->take_events();
  return tell_events();
}

const StepEvents& Scheduler::tell_events() {
  say_why();
  std::swap(events_, told_);
  events_.clear();
  ++events_taken_;
  bury();
  return told_;
}

ReqPtr Scheduler::req(ReqId id) const {
  return id >= 0 && static_cast<size_t>(id) < reqs_.size() ? reqs_[static_cast<size_t>(id)]
                                                           : nullptr;
}

ReqPtr Scheduler::find(std::string_view rid) const {
  const auto it = by_rid_.find(rid);
  return it == by_rid_.end() ? nullptr : req(it->second->id);
}

void Scheduler::waiting(std::vector<ReqPtr>& out) const {
  out.clear();
  for (const WaitingQueue::Item& item : waiting_.items()) {
    out.push_back(req(item.req->id));
    for (const Req* sibling : item.req->siblings) out.push_back(req(sibling->id));
  }
}

std::vector<ReqPtr> Scheduler::children(std::string_view rid) const {
  const auto it = children_.find(std::string(rid));
  return it == children_.end() ? std::vector<ReqPtr>{} : it->second;
}

int32_t Scheduler::match_prefix(const Req& req) const {
  const EntryId root = prefix_ ? prefix_->root_of(req.cache_salt) : kNoEntry;
  if (root == kNoEntry) return 0;
  return prefix_->match_blocks(root, req.tokens, (req.known() - 1) / block_size_) * block_size_;
}

void Scheduler::reqs_of(BatchId batch_id, std::vector<ReqPtr>& out) const {
  out.clear();
  const StepRecord& step = steps_[static_cast<size_t>(batch_id) % steps_.size()];
  if (step.batch_id != batch_id) return;
  for (const RowRecord& row : step.rows()) {
    if (!row.forks) out.push_back(req(row.req->id));
  }
}

void Scheduler::masked_rows(BatchId batch_id, std::vector<MaskedRow>& out) const {
  out.clear();
  const StepRecord& step = steps_[static_cast<size_t>(batch_id) % steps_.size()];
  if (step.batch_id != batch_id) return;
  for (const RowRecord& row : step.rows()) {
    if (row.samples && row.req->grammar != 0 && row.epoch == row.req->epoch)
      out.push_back({row.req, row.out_begin + row.num_outs - 1});
  }
}

WaitReason Scheduler::explain(const Req& req) const {
  if (req.state == ReqState::running || req.state == ReqState::finished) return {};
  if (req.leader != nullptr) return {.code = WaitCode::sibling};
  if (req.state == ReqState::swapping_in) return {.code = WaitCode::host_transfer};
  if (req.wait.step == next_batch_ - 1 || req.wait.step == next_batch_) return req.wait;
  return {.code = WaitCode::queued};
}

const std::vector<BlockId>& Scheduler::free_blocks(GroupId group) const {
  return pools_[static_cast<size_t>(group)].free_blocks();
}

BlockCounts Scheduler::host_block_counts(GroupId group) const {
  return host_pools_.empty() ? BlockCounts{} : host_pools_[static_cast<size_t>(group)].counts();
}

const std::vector<BlockId>& Scheduler::free_host_blocks(GroupId group) const {
  static const std::vector<BlockId> none;
  return host_pools_.empty() ? none : host_pools_[static_cast<size_t>(group)].free_blocks();
}

BlockCounts Scheduler::block_counts(GroupId group) const {
  return pools_[static_cast<size_t>(group)].counts();
}

}  // namespace stoker
