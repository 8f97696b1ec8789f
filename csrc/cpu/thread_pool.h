// Runs a loop on several threads. The threads are torch's own OpenMP team where torch has loaded
// one (its threads spin for a while after each of torch's loops, and a second pool would fight them
// for the cores), else a small pool of ours.
//
// Any thread may call, several at once. In a forked child everything runs on the caller's thread:
// OpenMP teams do not survive fork.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace stoker::cpu {

// How many threads a loop may use: what set_num_threads said, else what OpenMP would take on this
// thread, else all cores.
int num_threads();
// 0: the default again. Throws InvalidArgument when negative.
void set_num_threads(int count);

// "torch" or "own". Set it by name for tests and measurements ("auto": the default); throws
// InvalidArgument.
const char* thread_pool();
void set_thread_pool(const char* name);

// 64-byte aligned memory of the calling thread, at least `bytes`; the next call on the same thread
// may hand it out again.
std::byte* thread_scratch(size_t bytes);
// The same for what a caller shares with the threads of its loop, which may be its own.
std::byte* caller_scratch(size_t bytes);

namespace detail {
void run_on_threads(int threads, void (*body)(void*), void* context);
}  // namespace detail

class TaskCounter {
 public:
  explicit TaskCounter(int64_t count) : count_(count) {}
  // The next task, or -1.
  int64_t next() {
    const int64_t task = __atomic_fetch_add(&next_, 1, __ATOMIC_RELAXED);
    return task < count_ ? task : -1;
  }

 private:
  alignas(64) int64_t next_ = 0;
  int64_t count_;
};

// body(task) for each task in [0, tasks), each on some thread, in no order; returns when all are
// done. The body must not throw. `work_ns` is a guess of what it all costs on one thread: small
// work stays on the caller's thread.
template <typename Body>
void parallel_for(int64_t tasks, double work_ns, Body&& body) {
  // Below this a wake-up costs more than it brings.
  constexpr double kMinNsPerThread = 15e3;
  int threads = 1;
  if (tasks > 1 && work_ns > 2 * kMinNsPerThread) {
    threads = num_threads();
    if (double(threads) * kMinNsPerThread > work_ns) threads = int(work_ns / kMinNsPerThread);
    if (threads > tasks) threads = int(tasks);
  }
  if (threads <= 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task);
    return;
  }
  struct Context {
    TaskCounter counter;
    std::remove_reference_t<Body>* body;
  } context{TaskCounter(tasks), &body};
  detail::run_on_threads(
      threads,
      [](void* raw) {
        auto& shared = *static_cast<Context*>(raw);
        for (int64_t task; (task = shared.counter.next()) >= 0;) (*shared.body)(task);
      },
      &context);
}

// The same over rows [0, rows), handed out in runs: body(begin, end).
template <typename Body>
void parallel_rows(int64_t rows, double work_ns, Body&& body) {
  const int64_t parts = rows < 64 ? rows : 64;
  if (parts <= 1 || work_ns < 30e3) {
    if (rows > 0) body(int64_t{0}, rows);
    return;
  }
  parallel_for(parts, work_ns,
               [&](int64_t part) { body(rows * part / parts, rows * (part + 1) / parts); });
}

}  // namespace stoker::cpu
