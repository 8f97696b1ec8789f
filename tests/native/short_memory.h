// operator new of the test binaries: counts what a plan asks for while it is decided, and can be
// made to fail while one is prepared.
#pragma once

#include <atomic>
#include <cstdint>

namespace stoker::test {

// Allocations while a step was decided, on any thread: there are to be none.
inline std::atomic<int64_t> asked_while_deciding{0};

// Of this thread.
struct ShortMemory {
  int32_t fails_in = -1;  // allocations of prepared plans from now on; -1: none fails
  int32_t failures = 0;   // one after another
  int64_t failed = 0;     // so far
};
inline ShortMemory& short_memory() {
  static thread_local ShortMemory memory;
  return memory;
}

}  // namespace stoker::test
