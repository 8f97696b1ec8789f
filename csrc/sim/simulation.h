// A run in virtual time: reqs come, a router hands them to replicas, replicas take turns in the
// order of their clocks. One engine is a fleet of one.
//
// Nothing here decides what a step holds: that is the scheduler's, in the loop that serves. What
// happens at one moment happens in this order: fleet events, arrivals, turns (by replica). A
// replica's turn may end later than it begins; the router learns what ended in it when that time
// has come.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <queue>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "sim/measures.h"
#include "sim/replica.h"
#include "sim/router.h"

namespace stoker::sim {

struct FleetConfig {
  int32_t num_replicas = 1;
  Routing routing = Routing::round_robin;
  double slow_share = 0;                  // so many of the replicas are slow nodes,
  double slow_factor = 1;                 // whose steps take so many times as long
  TimeNs mean_time_between_failures = 0;  // of one replica; 0: none fails
  TimeNs repair_time = 60'000'000'000;
  // Scaling: max_replicas 0 keeps num_replicas. Else every scale_interval as many replicas are
  // wanted as give each `target_load` unanswered reqs.
  int32_t min_replicas = 1, max_replicas = 0;
  double target_load = 32;
  TimeNs scale_interval = 10'000'000'000;
  TimeNs startup_time = 30'000'000'000;
  TimeNs scale_down_delay = 60'000'000'000;  // fewer are wanted for so long before any goes
};

struct SimulationConfig {
  SchedulerConfig scheduler;
  CostModel cost;
  FleetConfig fleet;
  int32_t overlap_depth = 1;
  uint64_t seed = 0;
  bool record = false;                  // keep the step trace of replica 0
  std::vector<RecordedTimes> replayed;  // repeat these steps' times; one replica
};

// Sums over all replicas.
struct Totals {
  int64_t turns = 0, steps = 0, prefill_tokens = 0, recomputed_tokens = 0, output_tokens = 0;
  int64_t preemptions = 0, failures = 0, resent = 0, scale_ups = 0, scale_downs = 0;
  TimeNs end = 0;           // when the last req ended
  TimeNs replica_time = 0;  // that replicas were paid for
  TimeNs device_busy = 0;
};

class Simulation {
 public:
  // Throws InvalidArgument for a configuration or a workload that cannot work.
  Simulation(SimulationConfig config, Workload workload);
  Simulation(const Simulation&) = delete;
  Simulation& operator=(const Simulation&) = delete;

  // The reqs that the engine would refuse, with its reason: (number, why). At most `limit`.
  std::vector<std::pair<size_t, std::string>> impossible(size_t limit);
  // Goes on for so many turns at most. True: all reqs have ended.
  bool run(int64_t turns);

  size_t num_ended() const { return num_ended_; }
  const Workload& workload() const { return workload_; }
  const ReqMeasures& reqs() const { return reqs_; }
  const Histogram& gaps() const { return gaps_; }
  const Course& course() const { return course_; }
  Totals totals() const;
  const std::vector<std::unique_ptr<Replica>>& replicas() const { return replicas_; }
  Recording take_recording();

 private:
  enum class Event : int8_t { fail, ready, tick };
  using Control = std::tuple<TimeNs, Event, int32_t>;
  using Coming = std::pair<TimeNs, int32_t>;  // when, which req
  using Turn = std::pair<TimeNs, int32_t>;    // when, which replica
  template <typename T>
  using Order = std::priority_queue<T, std::vector<T>, std::greater<>>;

  void arrive(TimeNs now, int32_t number);
  void route(TimeNs now, int32_t number);
  void take_turn(TimeNs now, int32_t index);
  void measure(Replica& replica, int32_t index);
  void end_req(int32_t index, TimeNs now, int32_t number);
  void hold(Replica& replica, TimeNs until);
  void schedule(int32_t index, TimeNs at);

  // fleet.cpp
  void happen(const Control& control);
  void set_state(int32_t index, Replica::State state, TimeNs now);
  void fail(int32_t index, TimeNs now);
  void plan_failure(int32_t index, TimeNs now);
  void scale(TimeNs now);
  void send_waiting(TimeNs now);
  bool fleet_can_change() const;

  const SimulationConfig config_;
  const Workload workload_;
  Router router_;
  std::vector<std::unique_ptr<Replica>> replicas_;
  std::vector<int32_t> up_;                        // indices of those that take reqs, rising
  std::vector<int32_t> load_;                      // by replica, as the router sees it
  std::vector<std::vector<int32_t>> unseen_ends_;  // by replica: ended, but the router knows later
  std::vector<int32_t> homeless_;                  // came while no replica was up
  size_t next_open_ = 0;
  Order<Coming> coming_;  // of a closed loop, and what is sent again
  Order<Turn> turns_;
  Order<Control> controls_;
  int32_t next_user_req_ = 0;
  size_t num_ended_ = 0;
  uint64_t draws_ = 0;
  TimeNs fewer_since_ = -1;
  ReqMeasures reqs_;
  Histogram gaps_;
  Course course_;
  Totals totals_;
};

}  // namespace stoker::sim
