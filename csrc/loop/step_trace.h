// What each of the last steps did and where its time went: a ring that costs next to nothing to
// write.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/ids.h"
#include "sched/step_events.h"

namespace stoker {

// One step. Times in nanoseconds on the loop's clock.
struct StepTrace {
  StepStats stats;       // as the scheduler planned it
  TimeNs began = 0;      // of the turn that scheduled it
  TimeNs committed = 0;  // when its result had been taken back
  int64_t receive_ns = 0, schedule_ns = 0, launch_ns = 0;
  int64_t collect_ns = 0;  // waiting for the device
  int64_t mask_ns = 0;     // making grammar masks and handing them over, while the device works
  int64_t commit_ns = 0;   // taking the result back, outbox included
  TimeNs device_ns = 0;    // as the executor measured it
  int32_t in_flight = 0;   // steps not committed when this one was launched
  int32_t status = 0;      // StepStatus
};

// The last `capacity` steps. One writer; who reads from another thread brings a lock.
class StepTraceRing {
 public:
  explicit StepTraceRing(size_t capacity) : ring_(capacity) {}

  void push(const StepTrace& trace) { ring_[pushed_++ % ring_.size()] = trace; }
  int64_t pushed() const { return static_cast<int64_t>(pushed_); }

  // The newest `count` at most, oldest first.
  std::vector<StepTrace> newest(size_t count) const {
    const size_t held = pushed_ < ring_.size() ? pushed_ : ring_.size();
    const size_t n = count < held ? count : held;
    std::vector<StepTrace> out;
    out.reserve(n);
    for (size_t i = pushed_ - n; i < pushed_; ++i) out.push_back(ring_[i % ring_.size()]);
    return out;
  }

 private:
  std::vector<StepTrace> ring_;
  size_t pushed_ = 0;
};

}  // namespace stoker
