// Time that passes only when somebody says so.
#pragma once

#include <algorithm>

#include "loop/clock.h"

namespace stoker::sim {

class VirtualClock final : public Clock {
 public:
  TimeNs now() override { return now_; }
  void advance(TimeNs by) { now_ += by; }
  // Never backwards.
  void advance_to(TimeNs time) { now_ = std::max(now_, time); }

 private:
  TimeNs now_ = 0;
};

}  // namespace stoker::sim
