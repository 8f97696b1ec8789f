// What _cuda lends _core: how a step is started and waited for, as plain functions, since the two
// modules share no C++ types. Python carries it between them in a capsule.
#pragma once

#include <cstddef>
#include <cstdint>

namespace stoker {

// Each returns nullptr, or what went wrong, as text that stays. Called without the GIL.
struct StepCalls {
  void* launcher;
  const char* (*launch)(void* launcher, size_t entry, int32_t graph, int32_t tokens, int32_t outs,
                        int64_t body, int64_t table_begin, int64_t table_bytes, int64_t seat_begin,
                        int64_t seat_bytes);
  const char* (*wait)(void* launcher, size_t entry, float* milliseconds);
};
inline constexpr const char* kStepCallsName = "stoker.step_calls";

}  // namespace stoker
