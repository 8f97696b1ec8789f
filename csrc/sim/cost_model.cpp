// The noise of a step: a counted draw, so that a run repeats to the byte.
#include "sim/cost_model.h"

#include <bit>
#include <cmath>

namespace stoker::sim {

size_t CostModel::size_class(const StepWork& w) {
  const auto width = static_cast<size_t>(std::bit_width(static_cast<uint64_t>(w.tokens)));
  return 2 * width + (w.chunk_rows > 0 ? 1 : 0);
}

TimeNs CostModel::time(const StepWork& w, uint64_t draw) const {
  const size_t size = size_class(w);
  const bool known = size < noise_of_size.size() && !noise_of_size[size].empty();
  const std::vector<double>& ratios = known ? noise_of_size[size] : noise;
  double ns = device(w);
  if (!ratios.empty()) ns *= ratios[draw % ratios.size()];
  return static_cast<TimeNs>(std::llround(std::max(ns, 1.0)));
}

}  // namespace stoker::sim
