// The noise of a step: a quantile by a counted draw, so that a run repeats to the byte.
#include "sim/cost_model.h"

#include <cmath>

namespace stoker::sim {

TimeNs CostModel::time(const StepWork& w, uint64_t draw) const {
  double ns = device(w);
  if (noise.size() > 1) {
    const double at =
        static_cast<double>(draw >> 11) * 0x1p-53 * static_cast<double>(noise.size() - 1);
    const auto low = static_cast<size_t>(at);
    ns *= noise[low] + (at - static_cast<double>(low)) * (noise[low + 1] - noise[low]);
  }
  return static_cast<TimeNs>(std::llround(std::max(ns, 1.0)));
}

}  // namespace stoker::sim
