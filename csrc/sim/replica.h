// One simulated engine: the very loop and scheduler that serve, on a clock and an executor that
// pretend.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "loop/engine_loop.h"
#include "sim/simulated_executor.h"
#include "sim/workload.h"

namespace stoker::sim {

struct ReplicaConfig {
  SchedulerConfig scheduler;
  CostModel cost;
  int32_t overlap_depth = 1;
  double slowness = 1;  // its steps take so many times as long
  uint64_t seed = 0;
};

class Replica {
 public:
  enum class State : int8_t { off, starting, up, draining, failed };

  Replica(ReplicaConfig config, const Workload& workload);

  State state = State::off;
  TimeNs since = 0;        // in this state
  TimeNs paid = 0;         // time in any state but off
  TimeNs held = 0;         // up to here the course of its lines is written down
  bool scheduled = false;  // a turn of it stands in the simulation's order
  TimeNs fails_at = -1;    // the engine that runs now
  bool doomed = false;     // fails when its step is over
  int64_t num_reqs = 0, num_tokens = 0, num_failures = 0;
  BatchId counted = 0;  // newest step whose tokens were added up

  void start(TimeNs now);  // an engine with nothing cached
  void stop();             // the engine and all its reqs are gone
  bool running() const { return loop_ != nullptr; }
  TimeNs now() { return clock_.now(); }

  void add(size_t number, TimeNs now);
  // One turn of the loop; false: it had nothing to do. What it told is in news(), its tokens at
  // told_at().
  bool turn();
  // Where a recorded run is repeated: the time at which the next turn begins.
  void begin_recorded_turn() { executor_.begin_recorded_turn(); }
  const Outputs& news() const { return news_; }
  TimeNs told_at() const { return told_at_; }
  // The workload's number of a req that news() names.
  int32_t number_of(ReqKey key) const { return numbers_[static_cast<size_t>(key)]; }
  // Reqs that were given and have not ended, in the order they came.
  std::vector<int32_t> unfinished(const std::vector<int8_t>& reasons,
                                  const std::vector<int32_t>& where, int32_t self) const;
  bool has_unfinished() const { return loop_ != nullptr && loop_->has_unfinished(); }

  EngineLoop& loop() { return *loop_; }
  SimulatedExecutor& executor() { return executor_; }

 private:
  ReplicaConfig config_;
  const Workload& workload_;
  VirtualClock clock_;
  SimulatedExecutor executor_;
  std::unique_ptr<EngineLoop> loop_;
  std::vector<int32_t> numbers_;  // by ReqKey
  Outputs news_;
  TimeNs told_at_ = 0;
};

}  // namespace stoker::sim
