// The executor of the simulator: it computes nothing and takes, on a virtual clock, the time that
// the cost model says. Which token it "samples" follows from the seat's seed and the position
// alone; an answer ends where the workload says it does.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "loop/executor.h"
#include "sim/cost_model.h"
#include "sim/virtual_clock.h"

namespace stoker::sim {

// What a recorded step took: put in the place of the cost model, so that a recorded run can be
// repeated batch for batch.
struct RecordedTimes {
  TimeNs received;    // when its turn had read the inbox
  TimeNs collected;   // when its result was there
  int32_t in_flight;  // steps that were not collected when it was launched
};

class SimulatedExecutor final : public Executor {
 public:
  // A seat's seed is the number of its req in the workload; `answer_lens[number]` tokens and it
  // samples `eos`. Both `clock` and `answer_lens` must outlive it.
  SimulatedExecutor(const CostModel& cost, VirtualClock& clock,
                    std::span<const int32_t> answer_lens, int32_t overlap_depth, int32_t vocab_size,
                    Token eos, double slowness, uint64_t seed);

  int32_t overlap_depth() const override { return overlap_depth_; }
  std::byte* buffer(int32_t index, const BatchLayout& layout) override;
  void launch(const BatchBuffer& batch) override;
  void launch_sample(BatchId, const LateMasks&) override {}
  void collect(StepResult& result) override;
  bool ready() override { return !flights_.empty() && flights_.front().end <= clock_.now(); }

  // To be called after each turn of the loop: the host's time for taking results back passes.
  void end_turn();
  // Forgets steps in flight and buffers: a new loop starts.
  void restart();

  void replay(std::span<const RecordedTimes> steps) { recorded_ = steps; }
  // Before a turn of a replayed run: time passes to where the next step was scheduled, unless its
  // launch came after the collecting of what is in flight.
  void begin_recorded_turn();
  bool replaying() const { return !recorded_.empty(); }

  const StepWork& last_work() const { return work_; }
  int64_t num_steps() const { return num_steps_; }
  TimeNs busy() const { return busy_; }  // of the device

 private:
  struct Flight {
    BatchId batch_id;
    TimeNs end, took;
    const std::byte* batch;
    const BatchLayout* layout;
  };
  struct Seated {
    int32_t number = -1;
    int32_t last_position = -1;  // of the answer's last token
  };

  const CostModel cost_;
  VirtualClock& clock_;
  const std::span<const int32_t> answer_lens_;
  const int32_t overlap_depth_, vocab_size_;
  const Token eos_;
  const double slowness_;
  const uint64_t seed_;
  std::span<const RecordedTimes> recorded_;
  std::vector<std::unique_ptr<std::byte[], void (*)(void*)>> memory_;
  std::vector<Seated> seats_;
  std::deque<Flight> flights_;
  StepWork work_;
  TimeNs device_free_ = 0, busy_ = 0;
  double owed_ = 0;  // host time of results taken back in this turn
  int64_t num_steps_ = 0;
};

}  // namespace stoker::sim
