// A step's frame: at its beginning the ledger of what it may hand out and a look at the running
// batch, at its end the attention list and the header.
#include <algorithm>
#include <limits>
#include <utility>

#include "base/planted_bugs.h"
#include "sched/scheduler.h"

namespace stoker {

void Scheduler::begin_step(TimeNs now, const BatchBuffer& out) {
  now_ = std::max(now_, now);
  out_ = out;
  step_ = &steps_[static_cast<size_t>(next_batch_) % steps_.size()];
  step_->batch_id = next_batch_;
  step_->num_outs = step_->num_sampled = 0;
  step_->num_rows = 0;
  step_->published.clear();
  at_ = Cursor{};
  at_.row_seat = out.all<int32_t>(Section::row_seat).data();
  at_.row_indptr = out.all<int32_t>(Section::row_indptr).data();
  at_.row_kv_len = out.all<int32_t>(Section::row_kv_len).data();
  at_.out_token = out.all<int32_t>(Section::out_token).data();
  at_.out_seat = out.all<int32_t>(Section::out_seat).data();
  at_.out_kind = out.all<int32_t>(Section::out_kind).data();
  at_.out_target = out.all<int32_t>(Section::out_target).data();
  at_.out_position = out.all<int32_t>(Section::out_position).data();
  at_.token_ids = out.all<Token>(Section::token_ids).data();
  at_.positions = out.all<int32_t>(Section::positions).data();
  at_.slots = out.all<int32_t>(Section::slots).data();
  at_.changes = out.all<TableChange>(Section::table_changes).data();
  at_.seats = out.all<SeatChange>(Section::seat_changes).data();
  at_.seat_data = out.all<int32_t>(Section::seat_data).data();
  at_.moves = out.all<Transfer>(Section::transfers).data();
  at_.row_indptr[0] = 0;
  stats_.num_admitted = stats_.num_preempted = stats_.num_sat_out = 0;
  stats_.cached_tokens = stats_.recomputed_tokens = stats_.num_prefill_rows =
      stats_.num_decode_rows = 0;
  stats_.num_swapped_out = stats_.num_swapped_in = 0;

  // The scratch ledger: what this step may hand out.
  ledger_.tokens = config_.max_num_batched_tokens + planted(Bug::over_budget);
  ledger_.background =
      next_batch_ < urgent_until_ ? config_.urgent_prefill_token_threshold : ledger_.tokens;
  ledger_.rows = config_.max_num_seqs;
  ledger_.outs = layout_.capacity(Section::out_token);
  ledger_.table_changes = layout_.capacity(Section::table_changes);
  ledger_.seat_words = layout_.capacity(Section::seat_data);
  ledger_.transfers = layout_.capacity(Section::transfers);
  for (const TableChange& change : late_changes_) at_.changes[at_.table_changes++] = change;
  late_changes_.clear();
  for (const Transfer& transfer : late_transfers_) at_.moves[at_.transfers++] = transfer;
  late_transfers_.clear();
  refresh_available();
  survey_running();
}

// What the pools and the seats have to give, read from them afresh.
void Scheduler::refresh_available() {
  ledger_.seats = static_cast<int32_t>(free_seats_.size() - arriving_.size()) - reserved_seats_;
  for (GroupId g = 0; g < num_groups_; ++g) {
    ledger_.available[static_cast<size_t>(g)] = pools_[static_cast<size_t>(g)].num_available();
  }
}

// One pass over the running batch: closes the gaps that leavers made, finds the prompts under way,
// and adds up what the running reqs are still going to need.
void Scheduler::survey_running() {
  chunks_.clear();
  int64_t growth = 0;
  size_t kept = 0;
  for (size_t i = 0; i < running_.size(); ++i) {
    Req* const req = running_[i];
    if (i + kPrefetch < running_.size()) __builtin_prefetch(running_[i + kPrefetch]);
    if (req == nullptr) continue;
    if (req->tail_room == 0) __builtin_prefetch(&req->tables, 1);  // about to grow
    if (kept != i) {
      running_[kept] = req;
      req->running_index = static_cast<int32_t>(kept);
    }
    ++kept;
    growth += std::min(req->length_limit - req->known_ahead, kClippedOutput);
    if (req->known_ahead - req->computed > 1 || (!req->plain && !req->siblings.empty())) {
      chunks_.push_back(req);
      growth += int64_t{num_siblings(*req)} *
                std::min(req->length_limit - req->known_ahead, kClippedOutput);
    }
  }
  running_.resize(kept);
  for (const Req* req : arriving_)
    growth += std::min(req->length_limit - req->known_ahead, kClippedOutput);
  least_urgent_ = -std::numeric_limits<double>::infinity();
  if (config_.schedule_policy == Policy::priority || config_.schedule_policy == Policy::deadline) {
    for (const Req* req : running_) least_urgent_ = std::max(least_urgent_, urgency(*req));
    for (const Req* req : arriving_) least_urgent_ = std::max(least_urgent_, urgency(*req));
    // Among those that have a deadline to meet nobody is past the reserve.
    if (config_.schedule_policy == Policy::deadline)
      least_urgent_ = least_urgent_ < kLate ? -kEverybody : kLate;
  }
  const bool exact = any_window_ || config_.admission != Admission::learned ||
                     config_.batching == Batching::static_batch;
  for (GroupId g = 0; g < num_groups_; ++g) {
    const auto i = static_cast<size_t>(g);
    ledger_.promised[i] = 0;
    for (const Req* req : chunks_) {
      ledger_.promised[i] += std::max<int64_t>(
          0, most_blocks(g, req->known_ahead) - static_cast<int64_t>(req->tables[i].size()));
      ledger_.promised[i] += num_siblings(*req) * partial_blocks(*req, g);
    }
    ledger_.reserve[i] =
        static_cast<double>(growth) * ratio_.value() / config_.kv_groups[i].block_size;
    if (!exact || waiting_.empty()) continue;
    ledger_.reserve[i] = 0;
    for (const Req* req : running_) ledger_.reserve[i] += expected_growth(*req, g);
    for (const Req* req : arriving_) ledger_.reserve[i] += expected_growth(*req, g);
  }
}

// Writes the work lists, one a window; returns the entries used, up to the last list's end.
int32_t Scheduler::plan_attention(BatchHeader& header) {
  const auto rows = static_cast<size_t>(at_.rows);
  const auto stride = static_cast<size_t>(limits_.max_attention_work);
  const auto indptr_stride = static_cast<size_t>(AttentionPlanner::indptr_size(config_.attention));
  size_t used = 0;
  for (size_t i = 0; i < planners_.size(); ++i) {
    const AttentionPlan plan = planners_[i].plan(
        {at_.row_seat, rows}, {at_.row_indptr, rows + 1}, {at_.row_kv_len, rows},
        stats_.num_decode_rows, out_.all<AttentionWork>(Section::work).subspan(i * stride, stride),
        out_.all<int32_t>(Section::work_indptr).subspan(i * indptr_stride, indptr_stride));
    header.num_partials = std::max(header.num_partials, plan.num_decode_slots);
    used = i * stride + static_cast<size_t>(plan.num_work);
  }
  return static_cast<int32_t>(used);
}

bool Scheduler::finish_step() {
  blocked_ = nullptr;  // by the next step it may be gone
  // With nothing to run, a batch without rows brings the tickets back that are still out.
  const bool fetch = num_moves_ > 0 && steps_in_flight() == 0 && !fatal_;
  if (at_.rows == 0 && at_.transfers == 0 && at_.seat_changes == 0 && !fetch) {
    // Nothing to launch. Table changes that were due stay due.
    late_changes_.assign(at_.changes, at_.changes + at_.table_changes);
    if (num_running_ == 0 && steps_in_flight() == 0) ratio_.reset();
    preempted_unlaunched_ += stats_.num_preempted;  // the next step that is launched tells of them
    return false;
  }
  if (stats_.num_preempted == 0) ratio_.decay();
  stats_.num_preempted += std::exchange(preempted_unlaunched_, 0);
  step_->num_outs = at_.outs;
  step_->num_sampled = at_.sampled;
  BatchHeader& header = out_.header();
  header = BatchHeader{};
  header.version = kBatchVersion;
  header.flags = at_.late ? kBatchLate : 0;
  header.batch_id = next_batch_;
  header.num_reqs = header.num_rows = at_.rows;
  header.num_tokens = at_.tokens;
  header.num_decode_rows = stats_.num_decode_rows;
  header.num_outs = at_.outs;
  header.num_sampled_rows = at_.sampled;
  const auto use = [&](Section s, int32_t count) {
    const int32_t begin = layout_.offset(s);
    header.sections[static_cast<size_t>(s)] = {begin, count};
    if (count > 0) header.used_bytes = begin + count * BatchLayout::element_bytes(s);
  };
  header.used_bytes = static_cast<int32_t>(kHeaderBytes);
  for (const Section s : {Section::row_seat, Section::row_kv_len}) use(s, at_.rows);
  use(Section::row_indptr, at_.rows + 1);
  for (const Section s : {Section::out_token, Section::out_seat, Section::out_kind,
                          Section::out_target, Section::out_position}) {
    use(s, at_.outs);
  }
  use(Section::token_ids, at_.tokens);
  use(Section::positions, at_.tokens);
  use(Section::slots, (num_groups_ - 1) * config_.max_num_batched_tokens + at_.tokens);
  const int32_t work = at_.rows > 0 ? plan_attention(header) : 0;
  use(Section::work_indptr, work > 0 ? layout_.capacity(Section::work_indptr) : 0);
  use(Section::work, work);
  use(Section::table_changes, at_.table_changes);
  use(Section::seat_changes, at_.seat_changes);
  use(Section::seat_data, at_.seat_words);
  use(Section::transfers, at_.transfers);
  use(Section::adapter_ids, 0);
  use(Section::draft_tokens, 0);

  stats_.batch_id = next_batch_;
  stats_.time = now_;
  stats_.num_running = num_running_;
  stats_.num_waiting = waiting_.size();
  stats_.num_swapped = num_swapped_;
  stats_.num_transfers = at_.transfers;
  stats_.num_tokens = at_.tokens;
  stats_.num_sampled_rows = at_.sampled;
  stats_.new_token_ratio = static_cast<float>(ratio_.value());
  stats_.num_groups = num_groups_;
  for (GroupId g = 0; g < num_groups_; ++g)
    stats_.blocks[g] = pools_[static_cast<size_t>(g)].counts();
  for (size_t g = 0; g < host_pools_.size(); ++g) stats_.host_blocks[g] = host_pools_[g].counts();
  ++next_batch_;
  return true;
}

}  // namespace stoker
