// Where the loop's time comes from: the only clock that the engine reads. The scheduler is told the
// time, never asks.
#pragma once

#include <chrono>

#include "base/ids.h"

namespace stoker {

class Clock {
 public:
  virtual ~Clock() = default;
  // Nanoseconds, never falling. Called by the loop's thread.
  virtual TimeNs now() = 0;
};

// std::chrono::steady_clock, which is what Python's time.monotonic_ns() reads too.
class SteadyClock final : public Clock {
 public:
  TimeNs now() override {
    using std::chrono::duration_cast, std::chrono::nanoseconds, std::chrono::steady_clock;
    return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
  }
};

}  // namespace stoker
