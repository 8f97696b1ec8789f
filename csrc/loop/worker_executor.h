// Makes any executor overlap: each step runs on a thread of its own, so that the loop schedules the
// next one meanwhile.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "loop/executor.h"

namespace stoker {

// Runs inner.launch(), launch_sample() and collect() of one step after the other on an owned
// thread. `inner` must outlive it and is touched by that thread alone from the first launch on. The
// destructor waits for the step that runs and joins.
class WorkerExecutor final : public Executor {
 public:
  explicit WorkerExecutor(Executor& inner, int32_t overlap_depth = 1);
  ~WorkerExecutor() override;
  WorkerExecutor(const WorkerExecutor&) = delete;
  WorkerExecutor& operator=(const WorkerExecutor&) = delete;

  int32_t overlap_depth() const override { return overlap_depth_; }
  std::byte* buffer(int32_t index, const BatchLayout& layout) override;
  void launch(const BatchBuffer& batch) override;
  void launch_sample(BatchId batch_id, const LateMasks& late) override;
  void collect(StepResult& result) override;
  bool ready() override;

  // Waits for the step that runs and joins the thread, which the destructor does otherwise. Steps
  // that were launched and not begun are lost, and nothing may be collected any more.
  void stop();

 private:
  void run();

  Executor& inner_;
  const int32_t overlap_depth_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<BatchBuffer> queued_;  // launched, not begun
  std::deque<StepResult> done_;     // finished, not collected
  std::deque<StepResult> spare_;    // results whose memory is used again
  BatchId late_for_ = 0;            // the newest step whose masks came
  LateMasks late_;
  bool stop_ = false;
  std::thread thread_;  // last: it starts when everything else is there
};

}  // namespace stoker
