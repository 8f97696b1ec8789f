// What a step would take on a device that does not exist: time as a function of tokens, context and
// bytes moved.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/ids.h"

namespace stoker::sim {

// step = max(min_step, per_token * tokens) + per_context_token * context tokens read + bytes moved
// / bandwidth
struct CostModel {
  double min_step_ns = 5e6;
  double per_token_ns = 25e3;
  double per_context_token_ns = 0.03e3;
  double swap_bytes_per_second = 55e9;
  double kv_bytes_per_token = 131e3;

  TimeNs step(int64_t tokens, int64_t context_tokens, int64_t tokens_moved) const {
    const double compute =
        tokens > 0 ? std::max(min_step_ns, per_token_ns * static_cast<double>(tokens)) : 0.0;
    const double attention = per_context_token_ns * static_cast<double>(context_tokens);
    const double copies =
        static_cast<double>(tokens_moved) * kv_bytes_per_token / swap_bytes_per_second * 1e9;
    return static_cast<TimeNs>(compute + attention + copies);
  }
};

}  // namespace stoker::sim
