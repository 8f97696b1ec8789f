// How reqs come in and are taken away: the checks at the door, the queue, abort.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>

#include "base/check.h"
#include "sched/scheduler.h"

namespace stoker {
namespace {

constexpr TimeNs kMostDeadline = TimeNs{1} << 61;

uint64_t mix_seed(uint64_t seed, uint64_t sequence) {
  uint64_t z = seed + (sequence + 1) * 0x9e3779b97f4a7c15ULL;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

// How a refusal begins; made into text only where there is one.
struct About {
  const Req& req;
  template <typename Text>
  friend std::string operator+(const About& about, Text&& rest) {
    return "req '" + about.req.rid + "': " + std::forward<Text>(rest);
  }
};

}  // namespace

int64_t Scheduler::blocks_for(GroupId group, int64_t tokens) const {
  const auto size = static_cast<uint32_t>(config_.kv_groups[static_cast<size_t>(group)].block_size);
  return (static_cast<uint32_t>(tokens) + size - 1) / size;  // a 64-bit division costs thrice that
}

// The most blocks of a group that a req of this length ever holds at once.
int64_t Scheduler::most_blocks(GroupId group, int64_t tokens) const {
  const KVGroup& kv = config_.kv_groups[static_cast<size_t>(group)];
  const int64_t all = blocks_for(group, tokens);
  if (kv.kind != KVKind::window) return all;
  return std::min(all, blocks_for(group, int64_t{kv.window} + config_.max_num_batched_tokens) + 1);
}

// can_ever_fit: whether the req could run alone to its end. Throws InvalidArgument with the numbers
// if not.
void Scheduler::validate(const Req& req) const {
  const About who{req};
  // Within these, sums of tokens over weights stay numbers that can be told apart.
  if (!(req.tenant_weight >= 1e-6 && req.tenant_weight <= 1e6))
    throw InvalidArgument(who + "tenant_weight must be above 0 (1e-6 to 1e6), not " +
                          std::to_string(req.tenant_weight));
  if (!std::isfinite(req.priority) || !std::isfinite(req.policy_key))
    throw InvalidArgument(who + "priority and policy key must be finite numbers");
  for (const TimeNs deadline : {req.deadline_ttft, req.deadline_tpot}) {
    if (deadline < -1 || deadline > kMostDeadline)
      throw InvalidArgument(who + "a deadline must be 0 to 2^61 nanoseconds, or -1 for none; not " +
                            std::to_string(deadline));
  }
  if (req.state != ReqState::created) throw InvalidArgument(who + "was added before");
  if (req.prompt_len == 0) throw InvalidArgument(who + "the prompt is empty");
  const int32_t room = req.pool ? 0 : 1;
  if (req.prompt_len + room > config_.max_model_len) {
    throw InvalidArgument(who + "a prompt of " + std::to_string(req.prompt_len) +
                          " tokens leaves no room for an answer within max_model_len = " +
                          std::to_string(config_.max_model_len));
  }
  if (req.params.max_tokens != -1 && req.params.max_tokens < 1) {
    throw InvalidArgument(who + "max_tokens must be at least 1, not " +
                          std::to_string(req.params.max_tokens));
  }
  if (req.params.n < 1 || req.params.n > config_.max_num_seqs) {
    throw InvalidArgument(who +
                          "n must be 1 to max_num_seqs = " + std::to_string(config_.max_num_seqs) +
                          ", not " + std::to_string(req.params.n));
  }
  if (req.params.min_tokens < 0) {
    throw InvalidArgument(who + "min_tokens must be at least 0, not " +
                          std::to_string(req.params.min_tokens));
  }
  if (req.largest_token < 0 || (config_.vocab_size > 0 && req.largest_token >= config_.vocab_size))
    check_tokens(req);
  const size_t extra = 2 * req.params.logit_bias.size() + req.params.stop_token_ids.size() +
                       config_.eos_token_ids.size();
  if (extra > static_cast<size_t>(kMaxSeatExtraWords)) {
    throw InvalidArgument(who + "too many biased or stop tokens: " + std::to_string(extra) +
                          " words, at most " + std::to_string(kMaxSeatExtraWords));
  }
  check_fits(req, 0);
}

void Scheduler::check_tokens(const Req& req) const {
  const About who{req};
  const Token size = config_.vocab_size;
  for (const Token token : req.tokens) {
    if (size == 0 && token < 0) throw InvalidArgument(who + "token ids must not be negative");
    if (size > 0 && (token < 0 || token >= size))
      throw InvalidArgument(who + "token id " + std::to_string(token) +
                            " is outside the vocabulary of " + std::to_string(size));
  }
}

void Scheduler::check_fits(const Req& req, int64_t pinned) const {
  const About who{req};
  const int32_t room = req.pool ? 0 : 1;
  const int64_t wanted = req.params.max_tokens == -1
                             ? req.prompt_len + room
                             : std::min<int64_t>(int64_t{req.prompt_len} + req.params.max_tokens,
                                                 config_.max_model_len);
  for (GroupId g = 0; g < num_groups_; ++g) {
    const int64_t need = most_blocks(g, wanted - room);
    const int64_t have = pools_[static_cast<size_t>(g)].total() - 1 - pinned;
    if (need > have) {
      throw InvalidArgument(who + "can never fit: a prompt of " + std::to_string(req.prompt_len) +
                            " tokens and " + std::to_string(wanted - req.prompt_len) +
                            " new ones need " + std::to_string(need) + " KV blocks of " +
                            std::to_string(config_.kv_groups[static_cast<size_t>(g)].block_size) +
                            " tokens; there are " + std::to_string(have));
    }
  }
}

void Scheduler::add(const ReqPtr& req, TimeNs now) {
  now_ = std::max(now_, now);
  prefetch(*req);
  validate(*req);
  if (num_pinned_ > 0) check_fits(*req, num_pinned_);
  if (by_rid_.contains(req->rid) || children_.contains(req->rid)) {
    throw InvalidArgument("req '" + req->rid + "': the rid is in use");
  }
  const int32_t n = req->params.n;
  if (config_.max_queued_reqs > 0 && num_waiting() + n > config_.max_queued_reqs) {
    throw InvalidArgument(
        "req '" + req->rid + "': the queue is full (" + std::to_string(num_waiting()) +
        " waiting, max_queued_reqs = " + std::to_string(config_.max_queued_reqs) + ")");
  }
  if (config_.max_queued_per_tenant > 0) {
    const auto it = tenant_indices_.find(req->tenant);
    const int32_t queued =
        it == tenant_indices_.end() ? 0 : tenants_[static_cast<size_t>(it->second)].queued;
    if (queued + n > config_.max_queued_per_tenant) {
      throw InvalidArgument("req '" + req->rid + "': tenant '" + req->tenant + "' has " +
                            std::to_string(queued) + " reqs waiting; max_queued_per_tenant = " +
                            std::to_string(config_.max_queued_per_tenant));
    }
  }
  if (n == 1) {
    if (log_ != nullptr) log_->add(*req, now);
    enroll(req, now);
    return;
  }
  std::vector<ReqPtr> children;
  const uint64_t base = req->params.has_seed
                            ? req->params.seed
                            : mix_seed(config_.seed, static_cast<uint64_t>(next_seq_));
  for (int32_t i = 0; i < n; ++i) {
    auto child = std::make_shared<Req>(*req);
    child->rid = req->rid + "/" + std::to_string(i);
    child->parent_rid = req->rid;
    child->params.n = 1;
    child->params.has_seed = true;
    child->params.seed = i == 0 ? base : mix_seed(base, static_cast<uint64_t>(i));
    if (by_rid_.contains(child->rid))
      throw InvalidArgument("req '" + child->rid + "': the rid is in use");
    children.push_back(std::move(child));
  }
  if (log_ != nullptr) log_->add(*req, now);
  Req* const leader = may_fork(*req) ? children[0].get() : nullptr;
  for (const ReqPtr& child : children) enroll(child, now, child.get() == leader ? nullptr : leader);
  req->state = ReqState::running;  // stands for its children from now on
  children_.emplace(req->rid, std::move(children));
}

void Scheduler::enroll(const ReqPtr& ptr, TimeNs now, Req* leader) {
  Req& req = *ptr;
  if (free_ids_.empty()) {
    req.id = static_cast<ReqId>(reqs_.size());
    reqs_.push_back(ptr);
  } else {
    req.id = free_ids_.back();
    free_ids_.pop_back();
    reqs_[static_cast<size_t>(req.id)] = ptr;
  }
  waiting_.enroll(req.id);
  by_rid_.emplace(req.rid, &req);
  req.arrival_seq = next_seq_++;
  req.seed = req.params.has_seed ? req.params.seed
                                 : mix_seed(config_.seed, static_cast<uint64_t>(req.arrival_seq));
  int64_t limit = config_.max_model_len;
  if (req.pool) {
    limit = int64_t{req.prompt_len} + 1;  // its end is an output too, though no token
  } else if (req.params.max_tokens >= 0) {
    limit = std::min<int64_t>(limit, int64_t{req.prompt_len} + req.params.max_tokens);
  } else {
    for (GroupId g = 0; g < num_groups_; ++g) {
      const KVGroup& kv = config_.kv_groups[static_cast<size_t>(g)];
      if (kv.kind != KVKind::window)
        limit = std::min(limit, int64_t{kv.num_blocks - 1} * kv.block_size + 1);
    }
  }
  req.length_limit = static_cast<int32_t>(limit);
  req.known_ahead = req.known();
  req.next_score = req.scored = req.params.prompt_logprobs >= 0 ? 1 : kNoScores;
  req.plain = req.samples_alone();
  num_unready_ += !req.grammar_ready;
  req.stops = ((!req.params.ignore_eos || req.grammar != 0) && !config_.eos_token_ids.empty()) ||
              !req.params.stop_token_ids.empty();
  req.tenant_index = tenant_of(req);
  req.tokens.reserve(
      static_cast<size_t>(std::min<int64_t>(limit, int64_t{req.prompt_len} + kReservedOutput)));
  req.tables.assign(static_cast<size_t>(num_groups_), {});
  req.host_tables.assign(host_pools_.empty() ? 0 : static_cast<size_t>(num_groups_), {});
  reserve_tables(req, static_cast<int32_t>(
                          std::min<int64_t>(limit, int64_t{req.prompt_len} + kReservedOutput)));
  req.window_begins.assign(static_cast<size_t>(num_groups_), 0);
  if (prefix_) req.prefix_root = prefix_->enter(req.cache_salt);
  req.account.arrival_time = now;
  expect_urgent(req);
  req.state = ReqState::waiting;
  if (req.drop_when_late && req.deadline_ttft >= 0)
    expiring_.insert({now + req.deadline_ttft, {req.arrival_seq, req.id}});
  if (leader != nullptr) {
    attach(req, *leader);
  } else {
    enqueue(req);
  }
}

// Runs `job` on the req, or on all children of one with n > 1 that have not ended. False: there is
// no such req.
template <typename Job>
bool Scheduler::each_of(std::string_view rid, Job&& job) {
  const std::string name(rid);
  if (const auto family = children_.find(name); family != children_.end()) {
    const std::vector<ReqPtr> members = family->second;
    for (const ReqPtr& child : members) {
      if (!child->finished()) job(*child);
    }
    return true;
  }
  const auto it = by_rid_.find(name);
  if (it == by_rid_.end()) return false;
  job(*it->second);
  return true;
}

bool Scheduler::abort(std::string_view rid, TimeNs now) {
  now_ = std::max(now_, now);
  if (log_ != nullptr) log_->abort(rid, now);
  return each_of(rid, [this](Req& req) { finish(req, FinishReason::abort); });
}

bool Scheduler::fail(std::string_view rid, const std::string& why, TimeNs now) {
  now_ = std::max(now_, now);
  if (log_ != nullptr) log_->fail(rid, why, now);
  return each_of(rid, [&](Req& req) { finish(req, FinishReason::error, why); });
}

bool Scheduler::grammar_ready(std::string_view rid) {
  if (log_ != nullptr) log_->grammar_ready(rid);
  return each_of(rid, [this](Req& req) {
    num_unready_ -= !req.grammar_ready;
    req.grammar_ready = true;
  });
}

}  // namespace stoker
