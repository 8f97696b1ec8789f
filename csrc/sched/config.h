// How a Scheduler is set up. Checked once, when the scheduler is made.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "sched/attention_plan.h"
#include "sched/per_group.h"

namespace stoker {

inline constexpr int32_t kMaxOverlapDepth = 7;
// Words of seat_data that a req may need besides its tokens: two a biased token, one a stop token.
inline constexpr int32_t kMaxSeatExtraWords = 4096;

enum class KVKind : int32_t { full, window, latent, state };

// Layers that share one kind of KV memory.
struct KVGroup {
  KVKind kind = KVKind::full;
  int32_t window = 0;           // tokens, for KVKind::window
  int32_t block_size = 16;      // positions a block
  int32_t num_blocks = 0;       // block 0, the null block, included
  int32_t num_host_blocks = 0;  // for swapped reqs, its null block included; below 2: none
  int64_t bytes_per_block = 0;  // what a swap costs is judged by it
  std::vector<int32_t> layers;
};

enum class Batching : int32_t {
  continuous,     // decodes first, the rest of the step to prefill, mixed
  prefill_first,  // prefill steps and decode steps apart, prefill first
  static_batch,   // nobody enters until the last of the running batch is done
};

enum class Policy : int32_t {
  fcfs,
  lpm,
  dfs_weight,
  sjf,
  lof,
  hrrn,
  random,
  priority,
  key,
  deadline,
  fair
};

enum class Admission : int32_t {
  learned,     // reserve a learned share of what the running reqs may still produce
  guaranteed,  // reserve all of it: never preempts
  greedy,      // reserve nothing
  peak,        // exact future peak of what is running, by the learned lengths
};

// What the prefix cache evicts first; see eviction.h.
enum class Eviction : int32_t { lru, slru, lfu, priority };
inline constexpr int32_t kEvictionLevels = 8;

// Who steps aside when KV runs out.
enum class Victim : int32_t { least_progress, newest, lowest_priority, most_blocks };

// What becomes of the KV of who steps aside.
enum class Preemption : int32_t {
  automatic,  // whichever is expected to be quicker
  retract,    // given up and computed again
  swap,       // moved to host memory and back, as long as there is room
};

// What happens behind the first req that does not fit.
enum class HeadOfLine : int32_t {
  strict,  // nobody overtakes it
  bypass,  // bypass_limit reqs may overtake it, then nobody
  scan,    // whoever fits goes; ageing alone keeps it from starving
};

// How prompts under way share a step's prefill tokens.
enum class PrefillSplit : int32_t { fcfs, equal };

struct SchedulerConfig {
  int32_t num_blocks = 0;       // of the one full group, where kv_groups is empty; block 0 included
  int32_t num_host_blocks = 0;  // of that group
  int32_t block_size = 16;
  std::vector<KVGroup> kv_groups;
  int32_t max_num_seqs = 256;
  int32_t max_num_batched_tokens = 8192;
  int32_t max_model_len = 0;  // 0: what the KV pool holds
  int32_t vocab_size = 0;     // 0: not checked
  std::vector<Token> eos_token_ids;
  int32_t overlap_depth = 0;  // D: steps that may be in flight while the next one is scheduled
  bool enable_prefix_caching = true;
  Batching batching = Batching::continuous;
  Policy schedule_policy = Policy::fcfs;
  Admission admission = Admission::learned;
  double schedule_conservativeness = 1.0;
  HeadOfLine head_of_line = HeadOfLine::strict;
  int32_t bypass_limit = 16;
  // A waiting req that so many later ones were admitted before goes to the front, whatever the
  // policy. 0: never.
  int32_t aging_limit = 4096;
  Preemption preemption = Preemption::automatic;
  Victim preemption_victim = Victim::least_progress;
  Eviction prefix_eviction = Eviction::lru;
  PrefillSplit prefill_split = PrefillSplit::fcfs;
  int32_t max_running_per_tenant = 0;        // 0: no limit
  int32_t max_queued_per_tenant = 0;         // 0: no limit
  int32_t long_prefill_token_threshold = 0;  // most prefill tokens of one req a step; 0: no cap
  // Under the policies `priority` and `deadline`: most prefill tokens a step that go to reqs which
  // urgent ones outrank, as long as more urgent ones are to be expected; 0: no bound. Who comes
  // while a step is under way waits for its end, so this is how long.
  int32_t urgent_prefill_token_threshold = 256;
  int32_t max_queued_reqs = 0;  // 0: no limit
  uint64_t seed = 0;            // for the seeds of reqs that bring none, and the policy `random`
  // What the executor's attention kernels want a work list for; num_decode_workers 0: no list is
  // written. One list for each of `attention_windows`, in their order, in place of
  // attention.window; empty: one.
  AttentionGeometry attention;
  std::vector<int32_t> attention_windows;
};

// Fills what follows from the rest (kv_groups, max_model_len) and throws InvalidArgument on what
// cannot work.
SchedulerConfig validated(SchedulerConfig config);

// Names as users write them: "prefill_first", "dfs-weight", "learned" ... Throw InvalidArgument
// naming what is allowed.
Batching batching_of(std::string_view name);
Policy policy_of(std::string_view name);
Admission admission_of(std::string_view name);
KVKind kv_kind_of(std::string_view name);
Eviction eviction_of(std::string_view name);
Victim victim_of(std::string_view name);
Preemption preemption_of(std::string_view name);
HeadOfLine head_of_line_of(std::string_view name);
PrefillSplit prefill_split_of(std::string_view name);
std::string_view name_of(Eviction value);
std::string_view name_of(Victim value);
std::string_view name_of(Preemption value);
std::string_view name_of(HeadOfLine value);
std::string_view name_of(PrefillSplit value);
std::string_view name_of(Batching value);
std::string_view name_of(Policy value);
std::string_view name_of(Admission value);
std::string_view name_of(KVKind value);

}  // namespace stoker
