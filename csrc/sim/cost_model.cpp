// The noise of a step: a counted draw, so that a run repeats to the byte.
#include "sim/cost_model.h"

#include <bit>
#include <cmath>

namespace stoker::sim {

namespace {

// One of them; 0 if there is none.
double drawn(const std::vector<std::vector<double>>& of_size, size_t size, uint64_t draw) {
  if (size >= of_size.size() || of_size[size].empty()) return 0;
  return of_size[size][draw % of_size[size].size()];
}

}  // namespace

size_t CostModel::size_class(const StepWork& w) {
  const auto below = static_cast<uint64_t>(std::max<int64_t>(w.tokens, 1) - 1);
  const auto width = static_cast<size_t>(std::bit_width(below));
  const size_t quarter = width >= 3 ? (below >> (width - 3)) & 3 : 0;
  return 2 * (4 * width + quarter) + (w.chunk_rows > 0 ? 1 : 0);
}

TimeNs CostModel::time(const StepWork& w, uint64_t draw) const {
  double ratio = drawn(noise_of_size, size_class(w), draw);
  if (ratio == 0) ratio = noise.empty() ? 1 : noise[draw % noise.size()];
  return static_cast<TimeNs>(std::llround(std::max(device(w) * ratio, 1.0)));
}

TimeNs CostModel::launch_time(const StepWork& w, uint64_t draw) const {
  return static_cast<TimeNs>(std::llround(drawn(launch_of_size, size_class(w), draw)));
}

}  // namespace stoker::sim
