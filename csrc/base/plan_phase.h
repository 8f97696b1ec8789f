// Where a thread stands in Scheduler::schedule(). Tests that replace operator new ask it: memory
// may be short while a plan is prepared, and none is asked for while it is decided. In normal
// builds nothing is left of it.
#pragma once

#include <cstdint>

namespace stoker {

enum class PlanPhase : int8_t { none, preparing, deciding };

#ifdef STOKER_PLANTED_BUGS
inline PlanPhase& plan_phase() {
  static thread_local PlanPhase phase = PlanPhase::none;
  return phase;
}
class InPlanPhase {
 public:
  explicit InPlanPhase(PlanPhase phase) { plan_phase() = phase; }
  ~InPlanPhase() { plan_phase() = PlanPhase::none; }
  InPlanPhase(const InPlanPhase&) = delete;
  InPlanPhase& operator=(const InPlanPhase&) = delete;
};
#else
struct InPlanPhase {
  explicit InPlanPhase(PlanPhase) {}
};
#endif

}  // namespace stoker
