// What the step trace costs a step: everything that a turn of the loop does for it and would not do
// without, by itself.
//
//   g++ -O2 -std=c++20 -Icsrc benchmarks/step_trace.cpp -o build/step_trace && build/step_trace
#include <algorithm>
#include <cstdio>
#include <mutex>
#include <vector>

#include "loop/clock.h"
#include "loop/step_trace.h"

using namespace stoker;

int main() {
  constexpr int kSteps = 200'000, kRounds = 9;
  SteadyClock clock;
  StepTraceRing ring(1024);
  std::mutex mutex;
  StepStats stats;
  stats.num_groups = 1;
  std::vector<double> rounds;
  for (int round = 0; round < kRounds; ++round) {
    const TimeNs start = clock.now();
    for (int i = 0; i < kSteps; ++i) {
      stats.batch_id = i;
      StepTrace trace;
      trace.began = clock.now();
      const TimeNs received = clock.now();
      const TimeNs scheduled = clock.now();
      trace.launch_ns = clock.now() - scheduled;
      trace.stats = stats;
      trace.receive_ns = received - trace.began;
      trace.schedule_ns = scheduled - received;
      const TimeNs began = clock.now();
      const TimeNs collected = clock.now();
      trace.collect_ns = collected - began;
      trace.committed = clock.now();
      trace.commit_ns = trace.committed - collected;
      const std::lock_guard lock(mutex);
      ring.push(trace);
    }
    rounds.push_back(static_cast<double>(clock.now() - start) / kSteps);
  }
  std::sort(rounds.begin(), rounds.end());
  std::printf(
      "step trace: %.0f ns a step (median of %d rounds; best %.0f, worst %.0f), %zu bytes each\n",
      rounds[kRounds / 2], kRounds, rounds.front(), rounds.back(), sizeof(StepTrace));
  return ring.pushed() == int64_t{kSteps} * kRounds ? 0 : 1;
}
