// Who may enter the step: the verdict on one waiting req, and what entering does.
#include <algorithm>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "base/planted_bugs.h"
#include "sched/scheduler.h"

namespace stoker {
namespace {

// After a preemption, admission waits until this many blocks a running req are available besides
// the candidate's.
constexpr int64_t kLowWaterBlocks = 2;

}  // namespace

// Under the policies `priority` and `deadline`: reqs that come before every prompt under way take
// their share of the step first.
void Scheduler::admit_urgent() {
  const Policy policy = config_.schedule_policy;
  if ((policy != Policy::priority && policy != Policy::deadline) || chunks_.empty()) return;
  std::sort(chunks_.begin(), chunks_.end(), [this](const Req* a, const Req* b) {
    return std::pair(urgency(*a), a->arrival_seq) < std::pair(urgency(*b), b->arrival_seq);
  });
  admit_waiting(urgency(*chunks_.front()));
}

// 3. The queue in its order, as far as urgency() is below `before`. Reqs that only wait for
// something of their own are passed over; what happens behind one that does not fit is
// `head_of_line`.
void Scheduler::admit_waiting(double before) {
  if (waiting_.empty() || pause_ != Pause::no) return;
  if (config_.batching == Batching::static_batch) {
    if (num_present() == 0) batch_open_ = true;
    if (!batch_open_) return;
  }
  refresh_order();
  ++looks_;
  passed_.clear();
  blocked_ = nullptr;
  WaitCode stopped = WaitCode::none;
  int32_t looked = 0;
  for (auto it = next_candidate(waiting_.begin()); it != waiting_.end() && looked < kLooksPerStep;
       ++looked) {
    Req& req = *it->req;
    if (before < kEverybody && urgency(req) >= before) break;
    if (!req.grammar_ready) {  // not a candidate yet, and no look at one
      req.wait = {.code = WaitCode::grammar, .step = next_batch_};
      tenants_[static_cast<size_t>(req.tenant_index)].passed_over = looks_;
      it = next_candidate(std::next(it));
      --looked;
      continue;
    }
    if (req.state == ReqState::swapped && head_is_lost(req)) {
      lose_swap(req);
      it = next_candidate(waiting_.begin());
      continue;
    }
    const Verdict verdict = consider(req);
    if (const auto* reason = std::get_if<WaitReason>(&verdict)) {
      req.wait = *reason;
      req.wait.step = next_batch_;
      stopped = reason->code;
      if (blocked_ == nullptr) blocked_ = &req;
      if (!may_be_passed(req)) break;
      tenants_[static_cast<size_t>(req.tenant_index)].passed_over = looks_;
      if (reason->code != WaitCode::prefix && reason->code != WaitCode::tenant)
        passed_.push_back(&req);
      it = next_candidate(std::next(it));
      continue;
    }
    const auto after = std::next(it);
    const Req* const next = after == waiting_.end() ? nullptr : after->req;
    if (next != nullptr) prefetch(*next);
    admit(req, std::get<Admit>(verdict));
    if (next != nullptr) PrefixCache::prefetch(next->tokens);
    bool barrier = false;
    for (Req* passed : passed_) {
      barrier = ++passed->overtaken >= config_.bypass_limit || barrier;
    }
    if (barrier && config_.head_of_line == HeadOfLine::bypass) break;
    it = next_candidate(after);
  }
  if (stopped != WaitCode::token_budget && stopped != WaitCode::capacity) batch_open_ = false;
}

bool Scheduler::may_be_passed(const Req& req) const {
  if (req.arrival_seq == urgent_seq_) return false;  // what was freed for it is not for others
  switch (req.wait.code) {
    case WaitCode::prefix:
    case WaitCode::tenant:
      return true;
    case WaitCode::in_flight:
    case WaitCode::host_transfer:
    case WaitCode::blocks:
    case WaitCode::reserve:
      return config_.head_of_line == HeadOfLine::scan ||
             (config_.head_of_line == HeadOfLine::bypass && req.overtaken < config_.bypass_limit);
    default:
      return false;  // the step itself is full
  }
}

// Whether a prompt under way is just about to compute the block that the candidate would need next.
bool Scheduler::computed_by_another(const Req& req) const {
  const auto matched = static_cast<int32_t>(match_.path.size());
  if ((matched + 1) * block_size_ >= req.known()) return false;
  const size_t at = static_cast<size_t>(matched) * static_cast<size_t>(block_size_);
  for (const Req* other : chunks_) {
    if (other->published != matched || other->prefix_root != req.prefix_root ||
        !other->holds_seat())
      continue;
    if (other->known() < (matched + 1) * block_size_ ||
        other->computed >= (matched + 1) * block_size_)
      continue;
    if (matched > 0 &&
        pools_[0].entry(other->tables[0][static_cast<size_t>(matched) - 1]) != match_.path.back())
      continue;
    if (std::equal(req.tokens.begin() + static_cast<std::ptrdiff_t>(at),
                   req.tokens.begin() + static_cast<std::ptrdiff_t>(at) + block_size_,
                   other->tokens.begin() + static_cast<std::ptrdiff_t>(at))) {
      return true;
    }
  }
  return false;
}

// Blocks at the highest point that the running reqs and the candidate will reach together if each
// uses all that it declared: with the longest to live first, the peak is at some end, where k reqs
// are left. (LightLLM's estimate.)
int64_t Scheduler::future_peak(const Req& candidate, GroupId group) {
  peak_.clear();
  for (const Req* req : running_) {
    if (req == nullptr) continue;
    peak_.emplace_back(std::max(0, req->length_limit - 1 - req->known_ahead), req->known_ahead);
    for (int32_t i = num_siblings(*req); i > 0; --i)
      peak_.emplace_back(req->length_limit - 1 - req->known_ahead, 1);
  }
  for (const Req* req : arriving_)
    peak_.emplace_back(std::max(0, req->length_limit - 1 - req->known_ahead), req->known_ahead);
  peak_.emplace_back(std::max(0, candidate.length_limit - 1 - candidate.known()),
                     candidate.known());
  for (int32_t i = num_siblings(candidate); i > 0; --i)
    peak_.emplace_back(candidate.length_limit - 1 - candidate.known(), 1);
  std::sort(peak_.begin(), peak_.end(), std::greater<>());
  int64_t held = 0, peak = 0;
  for (size_t k = 0; k < peak_.size(); ++k) {
    held += blocks_for(group, peak_[k].second) + 1;
    peak = std::max(
        peak, held + blocks_for(group, int64_t{peak_[k].first}) * static_cast<int64_t>(k + 1));
  }
  return peak;
}

// Judges a candidate on the ledger. Changes nothing but the scratch match.
Verdict Scheduler::consider(Req& req) {
  if (req.rows_in_flight > 0) return WaitReason{.code = WaitCode::in_flight};
  if (req.state == ReqState::swapping_out) return WaitReason{.code = WaitCode::host_transfer};
  const bool swapped = req.state == ReqState::swapped;  // comes back by copies, without a row
  const int32_t family = 1 + num_siblings(req);
  if (ledger_.seats < family)
    return WaitReason{
        .code = WaitCode::seats, .needed = family, .free = std::max(ledger_.seats, 0)};
  if (!swapped && (prefill_limit(req) == 0 || ledger_.rows == 0))
    return WaitReason{.code = WaitCode::token_budget, .needed = 1};

  const Tenant& tenant = tenants_[static_cast<size_t>(req.tenant_index)];
  if (config_.max_running_per_tenant > 0 &&
      tenant.running + family > config_.max_running_per_tenant) {
    return WaitReason{.code = WaitCode::tenant, .needed = config_.max_running_per_tenant};
  }

  const int32_t known = req.known();
  match_.path.clear();
  const bool scores = !swapped && req.next_score < req.prompt_len;  // needs all its hidden rows
  if (swapped) {
    match_settled(req);
    if (static_cast<int32_t>(match_.path.size()) < req.swap_from)
      return WaitReason{.code =
                            WaitCode::prefix};  // another one computes what it shares, right now
  } else if (prefix_ && !scores) {
    const int32_t most =
        (known - !planted(Bug::match_whole_prompt)) / block_size_;  // one token is always computed
    prefix_->match(req.prefix_root, req.tokens, most, match_);
  }
  const auto matched = static_cast<int32_t>(match_.path.size());
  int32_t first = std::min(known - matched * block_size_, prefill_limit(req));
  if (scores) first = std::min(first, ledger_.outs - at_.outs - 1);

  if (swapped) {
    int64_t moves = 0;
    for (GroupId g = 0; g < num_groups_; ++g) moves += blocks_for(g, req.computed) - matched;
    if (at_.transfers > 0 && at_.transfers + moves > ledger_.transfers)
      return WaitReason{.code = WaitCode::capacity};
  }
  const int64_t changes =
      int64_t{num_groups_} * (blocks_for(0, known) + 2 * int64_t{config_.max_num_seqs});
  const int64_t words = kMaxSeatExtraWords + (req.params.has_penalties() ? known : 0);
  if (!swapped && (first <= 0 || at_.table_changes + changes > ledger_.table_changes ||
                   at_.seat_words + words > ledger_.seat_words)) {
    if (at_.rows > 0) return WaitReason{.code = WaitCode::capacity};
  }

  if (prefix_ && !chunks_.empty() && !scores && !swapped && computed_by_another(req))
    return WaitReason{.code = WaitCode::prefix};

  const bool alone = num_present() == 0;
  // Outranks a running req (one without a deadline to meet), or has displaced one: the reserve does
  // not bind it.
  const bool urgent = urgency(req) < least_urgent_ || req.arrival_seq == urgent_seq_;
  for (GroupId g = 0; g < num_groups_; ++g) {
    const auto i = static_cast<size_t>(g);
    const BlockPool& pool = pools_[i];
    const bool window = config_.kv_groups[i].kind == KVKind::window;
    int64_t revived = 0;  // blocks of the match that stop being evictable
    const int32_t begin = window ? std::max(0, matched - match_window(g)) : 0;
    // Who holds a block holds those before it too, but for a window: what comes back to use is at
    // the end.
    for (int32_t k = matched - 1; k >= begin; --k) {
      const BlockId block = prefix_->block(match_.path[static_cast<size_t>(k)], g);
      if (pool.refs(block) > 0 && !window) break;
      revived += pool.is_cached(block);
    }
    const int64_t room = ledger_.available[i] - revived;
    const int64_t now = std::max<int64_t>(0, most_blocks(g, known) - (matched - begin)) +
                        (family - 1) * partial_blocks(req, g);
    const auto reason = [&](WaitCode code, int64_t needed) {
      return WaitReason{.code = code,
                        .group = g,
                        .needed = needed,
                        .free = pool.num_free(),
                        .evictable = pool.num_cached() - revived};
    };
    // The whole prompt has to fit, chunked or not: half-admitted prompts would only preempt each
    // other.
    if (now + ledger_.promised[i] > room)
      return reason(WaitCode::blocks, now + ledger_.promised[i]);
    if (alone || urgent) continue;
    if (config_.admission == Admission::peak) {
      const int64_t peak = future_peak(req, g);
      const int64_t capacity = pool.total() - 1 - num_pinned_;
      if (peak > capacity) return reason(WaitCode::reserve, peak);
      continue;
    }
    const double growth = ledger_.reserve[i] + expected_growth(req, g);
    const auto reserve = static_cast<int64_t>(std::ceil(growth));
    if (now + ledger_.promised[i] + reserve > room) {
      return reason(WaitCode::reserve, now + ledger_.promised[i] + reserve);
    }
    if (low_water_) {
      const int64_t mark = now + ledger_.promised[i] + kLowWaterBlocks * num_present();
      if (mark > room) return reason(WaitCode::low_water, mark);
    }
  }
  if (stats_.num_preempted > 0 && !alone && !urgent) return WaitReason{.code = WaitCode::low_water};
  return Admit{.matched_blocks = matched, .num_tokens = first};
}

// Blocks of a group that a req is expected to take beyond those for its known tokens, under the
// estimate in force.
double Scheduler::expected_growth(const Req& req, GroupId group) const {
  const auto i = static_cast<size_t>(group);
  const KVGroup& kv = config_.kv_groups[i];
  const int64_t left = req.length_limit - req.known_ahead;
  const int32_t family = 1 + num_siblings(req);
  if (config_.admission == Admission::greedy || left <= 0) return 0;
  if (config_.admission == Admission::guaranteed || config_.batching == Batching::static_batch) {
    return static_cast<double>(
        family * (most_blocks(group, req.length_limit - 1) - most_blocks(group, req.known_ahead)));
  }
  double tokens = static_cast<double>(std::min<int64_t>(left, kClippedOutput)) * ratio_.value();
  if (kv.kind == KVKind::window)
    tokens = std::min(tokens, static_cast<double>(std::max(0, kv.window - req.known_ahead)));
  return family * tokens / kv.block_size;
}

// Enters: seat, shared blocks, first chunk.
void Scheduler::admit(Req& req, const Admit& admit) {
  low_water_ = false;
  if (req.arrival_seq == urgent_seq_) urgent_seq_ = -1;
  const bool again = req.state != ReqState::waiting;
  dequeue(req);
  ++num_admissions_;
  if (req.state == ReqState::swapped) {
    begin_swap_in(req);
    refresh_available();
    for (GroupId g = 0; g < num_groups_; ++g)
      ledger_.reserve[static_cast<size_t>(g)] += expected_growth(req, g);
    return;
  }
  if (req.account.first_scheduled_time < 0) req.account.first_scheduled_time = now_;
  take_seat(req);

  const int32_t matched = admit.matched_blocks;
  for (GroupId g = 0; g < num_groups_; ++g) {
    const auto i = static_cast<size_t>(g);
    auto& table = req.tables[i];
    table.assign(static_cast<size_t>(matched), kNullBlock);
    const bool window = config_.kv_groups[i].kind == KVKind::window;
    const int32_t begin = window ? std::max(0, matched - match_window(g)) : 0;
    req.window_begins[i] = begin;
    for (int32_t k = begin; k < matched; ++k) {
      const BlockId block = prefix_->block(match_.path[static_cast<size_t>(k)], g);
      pools_[i].retain(block);
      if (planted(Bug::ref_leak)) pools_[i].retain(block);
      table[static_cast<size_t>(k)] = block;
      change_table(g, req.seat, k, block);
    }
  }
  for (const EntryId e : match_.path) prefix_->touch(e, !again, req.priority);
  req.computed = req.committed = matched * block_size_;
  req.published = matched;
  req.own_from = again ? std::min(req.own_from, matched) : matched;
  req.publish_at = (matched + 1) * block_size_;
  req.last_token = req.tokens.back();
  if (again) {
    req.account.recovered_tokens += req.computed;
  } else {
    req.account.cached_tokens = req.computed;
    stats_.cached_tokens += req.computed;
  }
  ++stats_.num_admitted;
  grow_tables(req, req.computed + admit.num_tokens);
  write_chunk_row(req, admit.num_tokens);

  if (req.known_ahead - req.computed > 1) chunks_.push_back(&req);
  refresh_available();
  for (GroupId g = 0; g < num_groups_; ++g) {
    const auto i = static_cast<size_t>(g);
    ledger_.promised[i] += std::max<int64_t>(
        0, most_blocks(g, req.known_ahead) - static_cast<int64_t>(req.tables[i].size()));
    ledger_.promised[i] += num_siblings(req) * partial_blocks(req, g);
    ledger_.reserve[i] += expected_growth(req, g);
  }
}

}  // namespace stoker
