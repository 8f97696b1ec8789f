// libFuzzer target: any bytes as an event log. They are refused with InvalidArgument, or run with
// every invariant checked after every event; and what runs, runs the same after redact().
//
// `event_log_fuzz --seeds FOLDER` writes logs of small random runs to begin from.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <memory>
#include <string>

#include "base/check.h"
#include "sched/event_log.h"
#include "sched/scheduler.h"

namespace stoker {
namespace {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  int32_t below(int32_t end) {
    uint64_t z = state_ += 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return static_cast<int32_t>((z ^ (z >> 31)) % static_cast<uint64_t>(end));
  }
  bool chance(int32_t percent) { return below(100) < percent; }

 private:
  uint64_t state_;
};

SchedulerConfig draw_config(Random& random) {
  SchedulerConfig config;
  config.block_size = 1 << random.below(4);
  config.num_blocks = 2 + (8 + random.below(80)) / config.block_size;
  config.max_num_seqs = 1 + random.below(6);
  config.max_num_batched_tokens = config.max_num_seqs + random.below(30);
  config.eos_token_ids = {2};
  config.overlap_depth = random.below(3);
  config.enable_prefix_caching = random.chance(80);
  config.batching = static_cast<Batching>(random.below(3));
  config.schedule_policy = static_cast<Policy>(random.below(11));
  config.admission = static_cast<Admission>(random.below(4));
  config.head_of_line = static_cast<HeadOfLine>(random.below(3));
  config.preemption_victim = static_cast<Victim>(random.below(4));
  config.prefix_eviction = static_cast<Eviction>(random.below(4));
  config.prefill_split = static_cast<PrefillSplit>(random.below(2));
  config.max_running_per_tenant = random.below(3);
  config.aging_limit = random.below(4);
  config.urgent_prefill_token_threshold = random.below(8);
  if (random.chance(50)) {
    config.num_host_blocks = 2 + random.below(config.num_blocks);
    config.preemption = random.chance(70) ? Preemption::swap : Preemption::automatic;
  }
  if (random.chance(30)) {  // a full group and a window, or two windows
    KVGroup group{.block_size = config.block_size, .num_host_blocks = config.num_host_blocks};
    group.kind = random.chance(50) ? KVKind::window : KVKind::full;
    config.max_model_len = 40;
    for (int32_t i = 0; i < 2; ++i) {
      group.window = group.kind == KVKind::window ? 1 + random.below(12) : 0;
      group.num_blocks =
          2 + (24 + config.max_num_batched_tokens + random.below(20)) / group.block_size;
      config.kv_groups.push_back(group);
      group.kind = KVKind::window;
    }
  }
  return config;
}

ReqPtr draw_req(Random& random, int32_t number) {
  auto req = std::make_shared<Req>();
  req->rid = "r" + std::to_string(number);
  const int32_t shared = random.below(12);
  for (int32_t i = 1 + random.below(20); i > 0; --i)
    req->tokens.push_back(i < shared ? 3 + i : 3 + random.below(9));
  std::reverse(req->tokens.begin(), req->tokens.end());
  req->prompt_len = req->known();
  req->priority = random.below(3);
  req->tenant = std::string(1, static_cast<char>('a' + random.below(3)));
  req->cache_salt = random.chance(20) ? "salt" : "";
  if (random.chance(30)) req->deadline_ttft = random.below(20);
  req->drop_when_late = random.chance(50);
  req->pool = random.chance(5);
  req->params.max_tokens = 1 + random.below(16);
  req->params.n = random.chance(10) ? 1 + random.below(3) : 1;
  req->params.repetition_penalty = random.chance(10) ? 1.1F : 1.0F;
  req->params.prompt_logprobs = !req->pool && random.chance(10) ? 1 : -1;
  return req;
}

// A run with made-up tokens, aborts, failed steps and all that an operator can do.
std::string recorded(uint64_t seed) {
  Random random(seed);
  Scheduler scheduler(draw_config(random));
  EventLog log(scheduler.config());
  scheduler.log_to(&log);
  const size_t bytes = (scheduler.layout().bytes() + 63) / 64 * 64;
  const std::unique_ptr<std::byte, decltype(&std::free)> memory(
      static_cast<std::byte*>(std::aligned_alloc(64, bytes)), &std::free);
  const BatchBuffer buffer(&scheduler.layout(), memory.get());
  std::deque<std::pair<BatchId, int32_t>> in_flight;
  std::deque<Ticket> copies;  // under way
  int32_t reqs = 0;
  for (TimeNs turn = 0; turn < 60; ++turn) {
    try {
      if (reqs < 8 && random.chance(50)) scheduler.add(draw_req(random, reqs++), turn);
      if (random.chance(5)) scheduler.abort("r" + std::to_string(random.below(8)), turn);
      if (random.chance(3)) scheduler.flush_cache();
      if (random.chance(3)) scheduler.pause(static_cast<Scheduler::Pause>(random.below(3)));
      if (random.chance(3)) scheduler.set_policy_key("r" + std::to_string(random.below(8)), 1.5);
      if (random.chance(3)) {
        const Token prefix[] = {3, 4, 5, 6};
        scheduler.pin_prefix(prefix);
      }
      if (random.chance(3)) scheduler.unpin_prefix(1);
      if (random.chance(3)) scheduler.set_rates(1 + random.below(1000), 1e-3);
    } catch (const InvalidArgument&) {
    }
    const int32_t depth = scheduler.config().overlap_depth;
    if (scheduler.steps_in_flight() <= depth && scheduler.schedule(turn, buffer)) {
      in_flight.emplace_back(buffer.header().batch_id, buffer.header().num_sampled_rows);
      for (const Transfer& copy : buffer.used<Transfer>(Section::transfers))
        copies.push_back(copy.ticket);
    }
    if (in_flight.empty() || (scheduler.steps_in_flight() <= depth && random.chance(50))) continue;
    StepResult result;
    result.batch_id = in_flight.front().first;
    if (random.chance(4)) result.status = StepStatus::failed;
    for (int32_t i = 0; i < in_flight.front().second; ++i)
      result.token_ids.push_back(2 + random.below(10));
    in_flight.pop_front();
    while (!copies.empty() && (in_flight.empty() || random.chance(60))) {
      result.finished_transfers.push_back(copies.front());
      copies.pop_front();
    }
    scheduler.commit(result, turn);
  }
  return log.bytes();
}

}  // namespace
}  // namespace stoker

extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
  if (*argc == 3 && std::strcmp((*argv)[1], "--seeds") == 0) {
    for (uint64_t seed = 1; seed <= 200; ++seed) {
      const std::string log = stoker::recorded(seed);
      std::ofstream file((*argv)[2] + ("/run-" + std::to_string(seed)), std::ios::binary);
      file.write(log.data(), static_cast<std::streamsize>(log.size()));
    }
    std::exit(0);
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  using namespace stoker;
  const std::string_view log(reinterpret_cast<const char*>(data), size);
  const ReplayOptions options{.check = true, .most = 1 << 12};
  try {
    const ReplayReport report = replay(log, options);
    const ReplayReport again = replay(redact(log), options);
    if (report.what.empty() && !again.what.empty()) {
      std::fprintf(stderr, "a redacted log came out differently: %s\n", again.what.c_str());
      std::abort();
    }
  } catch (const InvalidArgument&) {
  }
  return 0;
}
