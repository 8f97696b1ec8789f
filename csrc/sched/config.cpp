// Checks and defaults of SchedulerConfig.
#include "sched/config.h"

#include <algorithm>
#include <array>
#include <limits>

#include "base/check.h"

namespace stoker {
namespace {

void require(bool holds, const std::string& what) {
  if (!holds) throw InvalidArgument(what);
}

void at_least(const char* field, int64_t value, int64_t least) {
  require(value >= least, std::string(field) + " must be at least " + std::to_string(least) +
                              ", not " + std::to_string(value));
}

constexpr std::array<std::string_view, 3> kBatchings = {"continuous", "prefill_first", "static"};
constexpr std::array<std::string_view, 11> kPolicies = {
    "fcfs",   "lpm",      "dfs-weight", "sjf",      "lof", "hrrn",
    "random", "priority", "key",        "deadline", "fair"};
constexpr std::array<std::string_view, 4> kAdmissions = {"learned", "guaranteed", "greedy", "peak"};
constexpr std::array<std::string_view, 4> kKVKinds = {"full", "window", "latent", "state"};

constexpr std::array<std::string_view, 4> kEvictions = {"lru", "slru", "lfu", "priority"};
constexpr std::array<std::string_view, 4> kVictims = {"least_progress", "newest", "lowest_priority",
                                                      "most_blocks"};
constexpr std::array<std::string_view, 3> kPreemptions = {"auto", "retract", "swap"};
constexpr std::array<std::string_view, 3> kHeadsOfLine = {"strict", "bypass", "scan"};
constexpr std::array<std::string_view, 2> kPrefillSplits = {"fcfs", "equal"};

template <typename Enum, size_t N>
Enum find(const std::array<std::string_view, N>& names, std::string_view name, const char* field) {
  std::string allowed;
  for (size_t i = 0; i < N; ++i) {
    if (names[i] == name) return static_cast<Enum>(i);
    allowed += (i ? ", " : "") + std::string(names[i]);
  }
  throw InvalidArgument(std::string(field) + " must be one of " + allowed + "; not '" +
                        std::string(name) + "'");
}

}  // namespace

Batching batching_of(std::string_view name) { return find<Batching>(kBatchings, name, "batching"); }
Policy policy_of(std::string_view name) { return find<Policy>(kPolicies, name, "schedule_policy"); }
Admission admission_of(std::string_view name) {
  return find<Admission>(kAdmissions, name, "admission");
}
KVKind kv_kind_of(std::string_view name) { return find<KVKind>(kKVKinds, name, "KVGroup.kind"); }
Eviction eviction_of(std::string_view name) {
  return find<Eviction>(kEvictions, name, "prefix_eviction");
}
Victim victim_of(std::string_view name) {
  return find<Victim>(kVictims, name, "preemption_victim");
}
Preemption preemption_of(std::string_view name) {
  return find<Preemption>(kPreemptions, name, "preemption");
}
HeadOfLine head_of_line_of(std::string_view name) {
  return find<HeadOfLine>(kHeadsOfLine, name, "head_of_line");
}
PrefillSplit prefill_split_of(std::string_view name) {
  return find<PrefillSplit>(kPrefillSplits, name, "prefill_split");
}
std::string_view name_of(Eviction value) { return kEvictions[static_cast<size_t>(value)]; }
std::string_view name_of(Victim value) { return kVictims[static_cast<size_t>(value)]; }
std::string_view name_of(Preemption value) { return kPreemptions[static_cast<size_t>(value)]; }
std::string_view name_of(HeadOfLine value) { return kHeadsOfLine[static_cast<size_t>(value)]; }
std::string_view name_of(PrefillSplit value) { return kPrefillSplits[static_cast<size_t>(value)]; }
std::string_view name_of(Batching value) { return kBatchings[static_cast<size_t>(value)]; }
std::string_view name_of(Policy value) { return kPolicies[static_cast<size_t>(value)]; }
std::string_view name_of(Admission value) { return kAdmissions[static_cast<size_t>(value)]; }
std::string_view name_of(KVKind value) { return kKVKinds[static_cast<size_t>(value)]; }

SchedulerConfig validated(SchedulerConfig config) {
  if (config.kv_groups.empty()) {
    at_least("num_blocks", config.num_blocks, 2);
    at_least("block_size", config.block_size, 1);
    KVGroup group;
    group.block_size = config.block_size;
    group.num_blocks = config.num_blocks;
    group.num_host_blocks = config.num_host_blocks;
    config.kv_groups.push_back(group);
  }
  require(config.kv_groups.size() <= static_cast<size_t>(kMaxKVGroups),
          "at most " + std::to_string(kMaxKVGroups) + " KV groups are supported, not " +
              std::to_string(config.kv_groups.size()));
  int64_t capacity = std::numeric_limits<int32_t>::max();
  for (const KVGroup& group : config.kv_groups) {
    at_least("KVGroup.block_size", group.block_size, 1);
    at_least("KVGroup.num_blocks", group.num_blocks, 2);
    at_least("KVGroup.num_host_blocks", group.num_host_blocks, 0);
    at_least("KVGroup.bytes_per_block", group.bytes_per_block, 0);
    require(config.preemption != Preemption::swap || group.num_host_blocks >= 2,
            "preemption=swap needs host memory: num_host_blocks is " +
                std::to_string(group.num_host_blocks) + "; at least 2 (one is the null block)");
    require(group.kind != KVKind::state, "KV groups of kind `state` are not built yet");
    if (group.kind == KVKind::window) at_least("KVGroup.window", group.window, 1);
    require(group.block_size == config.kv_groups[0].block_size || !config.enable_prefix_caching,
            "KV groups with different block sizes need enable_prefix_caching=False");
    if (group.kind != KVKind::window) {
      capacity = std::min<int64_t>(capacity, int64_t{group.num_blocks - 1} * group.block_size + 1);
    }
  }
  config.num_blocks = config.kv_groups[0].num_blocks;
  config.num_host_blocks = config.kv_groups[0].num_host_blocks;
  config.block_size = config.kv_groups[0].block_size;
  at_least("max_num_seqs", config.max_num_seqs, 1);
  at_least("max_num_batched_tokens", config.max_num_batched_tokens, 1);
  require(config.max_num_batched_tokens >= config.max_num_seqs,
          "max_num_batched_tokens (" + std::to_string(config.max_num_batched_tokens) +
              ") must be at least max_num_seqs (" + std::to_string(config.max_num_seqs) +
              "): every running req takes one token a step");
  at_least("max_model_len", config.max_model_len, 0);
  if (config.max_model_len == 0) {
    config.max_model_len = static_cast<int32_t>(std::min<int64_t>(capacity, 1 << 20));
  }
  at_least("max_model_len", config.max_model_len, 2);
  require(config.overlap_depth >= 0 && config.overlap_depth < kMaxOverlapDepth,
          "overlap_depth must be 0 to " + std::to_string(kMaxOverlapDepth - 1) + ", not " +
              std::to_string(config.overlap_depth));
  for (const KVGroup& group : config.kv_groups) {
    if (group.kind != KVKind::window) continue;
    const int64_t widest = std::min<int64_t>(config.max_model_len,
                                             int64_t{group.window} + config.max_num_batched_tokens);
    require((widest + group.block_size - 1) / group.block_size + 1 <= group.num_blocks - 1 ||
                int64_t{group.num_blocks - 1} * group.block_size >= config.max_model_len,
            "a window group of " + std::to_string(group.num_blocks) +
                " blocks cannot hold its window of " + std::to_string(group.window) +
                " tokens and one step of prefill");
  }
  at_least("bypass_limit", config.bypass_limit, 0);
  at_least("aging_limit", config.aging_limit, 0);
  at_least("max_running_per_tenant", config.max_running_per_tenant, 0);
  at_least("max_queued_per_tenant", config.max_queued_per_tenant, 0);
  require(config.schedule_conservativeness >= 0, "schedule_conservativeness must not be negative");
  at_least("long_prefill_token_threshold", config.long_prefill_token_threshold, 0);
  at_least("urgent_prefill_token_threshold", config.urgent_prefill_token_threshold, 0);
  at_least("max_queued_reqs", config.max_queued_reqs, 0);
  for (const int32_t window : config.attention_windows) at_least("attention_windows", window, 0);
  return config;
}

}  // namespace stoker
