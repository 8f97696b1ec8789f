// Random workloads for the engine without Python: what is drawn, how it is run, and what must hold
// of it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "loop/engine_loop.h"
#include "sim/scripted_executor.h"

namespace stoker::test {

// splitmix64: the same numbers everywhere, unlike the standard library's distributions.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() { return sim::mix(state_++ * 0xD1B54A32D192ED03ULL); }
  // In [low, high].
  int32_t between(int32_t low, int32_t high) {
    return low + static_cast<int32_t>(next() % static_cast<uint64_t>(high - low + 1));
  }
  bool chance(int32_t percent) { return between(1, 100) <= percent; }
  template <typename T>
  T pick(const std::vector<T>& values) {
    return values[static_cast<size_t>(between(0, static_cast<int32_t>(values.size()) - 1))];
  }

 private:
  uint64_t state_;
};

struct ReqSpec {
  std::vector<Token> prompt;
  SamplingParams params;
  std::string salt;
  double priority = 0;
  std::string tenant;
  double policy_key = 0;
  TimeNs deadline_ttft = -1, deadline_tpot = -1;  // order only: nothing is dropped
  int32_t arrival_turn = 0;
  int32_t abort_turn = -1;  // -1: never
  bool stream = true;
};

struct Workload {
  uint64_t seed = 0;
  bool failing_plans = false;  // memory is short now and then while a plan is prepared
  SchedulerConfig config;
  sim::ScriptedConfig executor;
  std::vector<ReqSpec> reqs;
  std::string describe() const;
};

// What one seed stands for. Always the same.
Workload draw(uint64_t seed);

// The model's length where the workload leaves it open: what the KV pool holds, and one token that
// needs no KV.
int64_t max_model_len(const Workload& workload);
// The most tokens, prompt and answer, that a req may reach.
int64_t length_limit(const Workload& workload, const ReqSpec& req);
// Of child i of a req with n answers.
uint64_t child_seed(const ReqSpec& req, int32_t child);

// What a req alone on the pretend model would answer.
struct Expected {
  std::vector<Token> tokens;
  std::vector<float> scores;  // of the prompt's positions from 1 on, where the req asks for them
  FinishReason reason = FinishReason::none;
};
Expected expected_answer(const Workload& workload, const ReqSpec& req, uint64_t seed);

// The problems that running it showed, each beginning with the name of the check; empty: none.
// Stops at the first turn that shows any.
std::vector<std::string> run_by_turns(const Workload& workload);
// The same on the loop's own thread with a worker thread below and two threads that add and abort.
std::vector<std::string> run_on_threads(const Workload& workload);

}  // namespace stoker::test
