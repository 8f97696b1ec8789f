// Draws a workload from a seed, and says what each of its reqs must answer.
#include <algorithm>
#include <bit>
#include <limits>

#include "workload.h"

namespace stoker::test {

namespace {

constexpr Token kEos = 2;

SchedulerConfig draw_config(Random& random) {
  SchedulerConfig config;
  config.block_size = random.pick<int32_t>({1, 2, 4, 4, 8, 16});
  config.max_num_seqs = random.between(1, 12);
  config.max_num_batched_tokens = config.max_num_seqs + random.between(0, 60);
  // From room for one middling req to room for nearly all.
  config.num_blocks = 1 + random.between(24, 320) / config.block_size;
  config.vocab_size = random.pick<int32_t>({4, 20, 1000});
  config.eos_token_ids = {kEos};
  config.enable_prefix_caching = random.chance(70);
  config.batching = random.pick<Batching>({Batching::continuous, Batching::continuous,
                                           Batching::prefill_first, Batching::static_batch});
  config.schedule_policy =
      random.pick<Policy>({Policy::fcfs, Policy::fcfs, Policy::lpm, Policy::dfs_weight, Policy::sjf,
                           Policy::lof, Policy::hrrn, Policy::random, Policy::priority,
                           Policy::priority, Policy::key, Policy::deadline, Policy::fair});
  config.admission =
      random.pick<Admission>({Admission::learned, Admission::guaranteed, Admission::greedy,
                              Admission::greedy, Admission::peak});
  config.head_of_line =
      random.pick<HeadOfLine>({HeadOfLine::strict, HeadOfLine::bypass, HeadOfLine::scan});
  config.bypass_limit = random.between(0, 3);
  if (random.chance(30)) config.aging_limit = random.between(1, 10);
  config.preemption_victim =
      random.pick<Victim>({Victim::least_progress, Victim::least_progress, Victim::newest,
                           Victim::lowest_priority, Victim::most_blocks});
  config.prefix_eviction =
      random.pick<Eviction>({Eviction::lru, Eviction::slru, Eviction::lfu, Eviction::priority});
  config.prefill_split = random.pick<PrefillSplit>({PrefillSplit::fcfs, PrefillSplit::equal});
  if (random.chance(15)) config.max_running_per_tenant = random.between(1, 4);
  if (random.chance(60)) {
    config.preemption = random.pick<Preemption>({Preemption::automatic, Preemption::swap});
    config.num_host_blocks =
        random.chance(40) ? random.between(2, 8) : 2 + random.between(0, config.num_blocks);
  }
  config.schedule_conservativeness = random.pick<double>({0.3, 1.0, 1.0});
  if (random.chance(30)) config.long_prefill_token_threshold = random.between(1, 20);
  config.seed = random.next();
  KVGroup group;
  group.block_size = config.block_size;
  group.num_blocks = config.num_blocks;
  group.num_host_blocks = config.num_host_blocks;
  // Around where a swap and a recompute cost the same.
  group.bytes_per_block = random.chance(30) ? 0 : config.block_size * random.between(1, 600000);
  config.kv_groups = {group};
  if (random.chance(10)) config.max_model_len = random.between(20, 120);
  return config;
}

sim::ScriptedConfig draw_executor(Random& random, const SchedulerConfig& config) {
  sim::ScriptedConfig executor;
  executor.groups = {{config.block_size, config.num_blocks, config.num_host_blocks, 0}};
  executor.overlap_depth = random.between(0, 3);
  executor.rule.vocab_size = config.vocab_size;
  executor.rule.eos = kEos;
  executor.rule.eos_per_mille = random.pick<uint32_t>({0, 20, 100});
  executor.eager_percent = random.pick<uint32_t>({0, 0, 50, 100});
  executor.max_transfer_delay = random.between(0, 3);
  executor.bytes_per_block = config.kv_groups[0].bytes_per_block;
  executor.cost.host_copy = 1e6;
  if (random.chance(10)) executor.row_failures_per_million = 5000;
  if (random.chance(15)) {
    for (int32_t i = random.chance(60) ? random.between(1, 4) : 15; i > 0; --i) {
      executor.failing_steps.push_back(random.between(1, 60));
    }
  }
  if (random.chance(2)) executor.fatal_step = random.between(1, 60);
  return executor;
}

// Several KV groups in place of the one: full ones and windows, each with a pool of its own.
void draw_groups(Random& random, SchedulerConfig& config, sim::ScriptedConfig& executor) {
  using enum KVKind;
  const auto kinds = random.pick<std::vector<KVKind>>({{window},
                                                       {window},
                                                       {full, window},
                                                       {full, window},
                                                       {window, full},
                                                       {full, window, window},
                                                       {window, window},
                                                       {full, latent}});
  KVGroup group = config.kv_groups[0];
  config.kv_groups.clear();
  executor.groups.clear();
  config.attention_windows.clear();
  const bool all_windows = std::find(kinds.begin(), kinds.end(), full) == kinds.end();
  if (all_windows && config.max_model_len == 0) config.max_model_len = random.between(20, 150);
  for (const KVKind kind : kinds) {
    group.kind = kind;
    if (!config.enable_prefix_caching) group.block_size = random.pick<int32_t>({1, 2, 4, 8, 16});
    group.window = kind == window ? random.between(1, 50) : 0;
    // A window's pool holds at least the window and one step of prefill.
    const int32_t least =
        kind == window ? group.window + config.max_num_batched_tokens + 2 * group.block_size : 24;
    group.num_blocks =
        2 + (least + random.between(0, random.pick<int32_t>({0, 20, 200}))) / group.block_size;
    if (group.num_host_blocks > 0) group.num_host_blocks = random.between(2, 2 + group.num_blocks);
    config.kv_groups.push_back(group);
    executor.groups.push_back(
        {group.block_size, group.num_blocks, group.num_host_blocks, group.window});
    config.attention_windows.push_back(group.window);
  }
  config.num_blocks = config.kv_groups[0].num_blocks;
  config.block_size = config.kv_groups[0].block_size;
  config.num_host_blocks = config.kv_groups[0].num_host_blocks;
}

}  // namespace

Workload draw(uint64_t seed) {
  Random random(sim::mix(seed));
  Workload w;
  w.seed = seed;
  w.config = draw_config(random);
  w.executor = draw_executor(random, w.config);
  const auto tokens = [&](int32_t count) {
    std::vector<Token> out(static_cast<size_t>(count));
    for (Token& t : out) t = random.between(0, w.config.vocab_size - 1);
    return out;
  };
  std::vector<std::vector<Token>> prefixes(1);
  for (int32_t i = random.between(0, 3); i > 0; --i)
    prefixes.push_back(tokens(random.between(1, 60)));
  const int32_t span = random.pick<int32_t>({0, 20, 150});
  // Where every req ends by its length, the work can be counted exactly.
  const bool by_length = random.chance(20);
  if (by_length) {
    w.executor.failing_steps.clear();
    w.executor.fatal_step = 0;
    w.executor.row_failures_per_million = 0;
    if (random.chance(60)) w.config.admission = Admission::greedy;
  }
  const bool aborts = !by_length && random.chance(40);
  const int32_t longest = random.pick<int32_t>({4, 20, 60});
  for (int32_t i = random.between(1, 30); i > 0; --i) {
    ReqSpec r;
    r.prompt = random.pick(prefixes);
    const std::vector<Token> own = tokens(random.between(r.prompt.empty() ? 1 : 0, 40));
    r.prompt.insert(r.prompt.end(), own.begin(), own.end());
    SamplingParams& p = r.params;
    p.max_tokens = random.between(1, longest);
    if (random.chance(20)) p.min_tokens = random.between(0, p.max_tokens);
    p.ignore_eos = by_length || random.chance(30);
    p.has_seed = true;
    p.seed = random.chance(30) ? 7 : random.next();  // equal seeds: equal prompts must answer alike
    if (!by_length && random.chance(30)) p.stop_token_ids = tokens(random.between(1, 3));
    if (random.chance(15)) p.n = random.between(2, 4);
    if (random.chance(10)) p.num_logprobs = random.between(0, 3);
    if (random.chance(10)) p.presence_penalty = 0.5F;  // sends context with the seat
    if (random.chance(15)) r.salt = random.chance(50) ? "a" : "b";
    r.priority = random.between(0, 3);
    r.tenant = random.pick<std::string>({"", "x", "y"});
    r.policy_key = random.between(0, 9);
    if (random.chance(30)) r.deadline_ttft = random.between(1, 100);
    if (random.chance(30)) r.deadline_tpot = random.between(1, 20);
    r.arrival_turn = span > 0 ? random.between(0, span) : 0;
    if (aborts && random.chance(30)) r.abort_turn = r.arrival_turn + random.between(0, 60);
    r.stream = random.chance(80);
    w.reqs.push_back(std::move(r));
  }
  // Drawn apart, so that what a seed stood for before stays.
  Random scoring(sim::mix(seed ^ 0x5C02ED));
  if (scoring.chance(40)) {
    for (ReqSpec& r : w.reqs) {
      if (scoring.chance(25)) r.params.prompt_logprobs = scoring.between(0, 2);
    }
  }
  if (scoring.chance(30)) {
    w.config.attention.num_decode_workers = scoring.pick<int32_t>({1, 2, 7, 32});
    w.config.attention.num_decode_heads = scoring.between(1, 4);
    w.config.attention.num_kv_heads = scoring.between(1, 2);
    w.config.attention.prefill_tile_tokens = scoring.pick<int32_t>({0, 16});
    w.config.attention.num_prefill_workers = scoring.between(1, 8);
  }
  Random urgent(sim::mix(seed ^ 0x04634E7));
  if (urgent.chance(60)) w.config.urgent_prefill_token_threshold = urgent.between(0, 12);
  Random groups(sim::mix(seed ^ 0x6709B5));
  if (groups.chance(30)) draw_groups(groups, w.config, w.executor);
  return w;
}

std::string Workload::describe() const {
  std::string groups;
  for (const KVGroup& group : config.kv_groups) {
    groups += " " + std::string(name_of(group.kind)) +
              (group.window > 0 ? "(" + std::to_string(group.window) + ")" : "") + " " +
              std::to_string(group.num_blocks) + "+" + std::to_string(group.num_host_blocks) + "x" +
              std::to_string(group.block_size);
  }
  return "seed " + std::to_string(seed) + ": " + std::to_string(reqs.size()) + " reqs, D " +
         std::to_string(executor.overlap_depth) + ", " + "blocks" + groups + ", seats " +
         std::to_string(config.max_num_seqs) + ", budget " +
         std::to_string(config.max_num_batched_tokens) + ", batching " +
         std::to_string(static_cast<int>(config.batching)) + ", policy " +
         std::to_string(static_cast<int>(config.schedule_policy)) + ", admission " +
         std::to_string(static_cast<int>(config.admission)) + ", cache " +
         std::to_string(static_cast<int>(config.enable_prefix_caching)) + ", preemption " +
         std::string(name_of(config.preemption)) + ", host blocks " +
         std::to_string(config.num_host_blocks) + ", failing " +
         std::to_string(executor.failing_steps.size()) + ", fatal " +
         std::to_string(executor.fatal_step);
}

int64_t max_model_len(const Workload& w) {
  if (w.config.max_model_len > 0) return w.config.max_model_len;
  int64_t most = std::numeric_limits<int32_t>::max();
  for (const KVGroup& group : w.config.kv_groups) {
    if (group.kind != KVKind::window)
      most = std::min(most, int64_t{group.num_blocks - 1} * group.block_size + 1);
  }
  return most;
}

int64_t length_limit(const Workload& w, const ReqSpec& req) {
  return std::min(static_cast<int64_t>(req.prompt.size()) + req.params.max_tokens,
                  max_model_len(w));
}

uint64_t child_seed(const ReqSpec& req, int32_t child) {
  // sim::mix adds the golden ratio once itself.
  const uint64_t step = static_cast<uint64_t>(child) * 0x9E3779B97F4A7C15ULL;
  return child == 0 ? req.params.seed : sim::mix(req.params.seed + step);
}

namespace {

// The hash of what a next token sees of `tokens`: all of them, or a window, in each KV group.
class Context {
 public:
  explicit Context(const std::vector<KVGroup>& groups) : groups_(groups) {}
  void add(Token token) {
    tokens_.push_back(token);
    whole_ = sim::extend_context(whole_, token, length() - 1);
  }
  int32_t length() const { return static_cast<int32_t>(tokens_.size()); }
  uint64_t hash() const {
    uint64_t all = 0;
    for (size_t g = 0; g < groups_.size(); ++g) {
      uint64_t part = whole_;
      if (groups_[g].kind == KVKind::window) {
        part = sim::kEmptyContext;
        for (int32_t p = std::max(0, length() - groups_[g].window); p < length(); ++p)
          part = sim::extend_context(part, tokens_[static_cast<size_t>(p)], p);
      }
      all = g == 0 ? part : sim::mix(all ^ std::rotl(part, static_cast<int>(g)));
    }
    return all;
  }

 private:
  const std::vector<KVGroup>& groups_;
  std::vector<Token> tokens_;
  uint64_t whole_ = sim::kEmptyContext;
};

}  // namespace

Expected expected_answer(const Workload& w, const ReqSpec& req, uint64_t seed) {
  const SamplingParams& p = req.params;
  std::vector<Token> stop = p.stop_token_ids;
  if (!p.ignore_eos) {
    stop.insert(stop.end(), w.config.eos_token_ids.begin(), w.config.eos_token_ids.end());
  }
  Context context(w.config.kv_groups);
  Expected answer;
  for (Token t : req.prompt) {
    if (p.prompt_logprobs >= 0 && context.length() > 0)
      answer.scores.push_back(sim::score(context.hash()));
    context.add(t);
  }
  const int32_t prompt = context.length();
  for (;;) {
    const uint64_t seen = context.hash();
    const int32_t position = context.length();
    if (sim::row_fails(seen, seed, position, w.executor.row_failures_per_million)) {
      answer.reason = FinishReason::error;
      return answer;
    }
    const Token t = sim::sample(w.executor.rule, seen, seed, position, prompt + p.min_tokens, stop);
    answer.tokens.push_back(t);
    context.add(t);
    const auto outputs = static_cast<int32_t>(answer.tokens.size());
    if (outputs >= p.min_tokens && std::find(stop.begin(), stop.end(), t) != stop.end()) {
      answer.reason = FinishReason::stop;
      return answer;
    }
    if (context.length() >= length_limit(w, req)) {
      answer.reason = FinishReason::length;
      return answer;
    }
  }
}

}  // namespace stoker::test
