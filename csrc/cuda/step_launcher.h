// Starts an engine's steps: one copy up, graph launches, an event at either end. What it starts was
// captured elsewhere; what a step needs was decided elsewhere (sched/step_stager.h).
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace stoker::cuda {

// whole: decode and head of as many rows.
enum class StepGraph : int32_t { none, decode, mixed, head, whole };

struct Upload {
  int64_t body = 0;  // bytes from the begin
  int64_t table_begin = 0, table_bytes = 0;
  int64_t seat_begin = 0, seat_bytes = 0;
};

// Not thread-safe. Every call but `wait` returns while the device works.
class StepLauncher {
 public:
  // Copies go to `device`, everything to `stream`.
  StepLauncher(std::byte* device, cudaStream_t stream, int device_index)
      : device_(device), stream_(stream), device_index_(device_index) {}
  ~StepLauncher();
  StepLauncher(const StepLauncher&) = delete;
  StepLauncher& operator=(const StepLauncher&) = delete;

  // A ring entry: pinned memory that outlives this.
  cudaError_t add_entry(const std::byte* host);
  // Instantiates a captured graph; replaces the bucket's last one.
  cudaError_t set_graph(StepGraph kind, int32_t bucket, cudaGraph_t graph);
  void drop_graphs(StepGraph kind);

  cudaError_t begin(size_t entry);
  cudaError_t upload(size_t entry, const Upload& what);
  cudaError_t replay(StepGraph kind, int32_t bucket);
  cudaError_t end(size_t entry);
  // All of a step that graphs do. outs 0: no head. Every call of the runtime costs what it has to
  // bring back into the processor's caches after milliseconds of waiting: where there is a graph of
  // the whole step it is one copy, one graph and one event.
  cudaError_t launch(size_t entry, StepGraph kind, int32_t tokens, int32_t outs,
                     const Upload& what);
  // Until the step in `entry` is done.
  cudaError_t wait(size_t entry, float* milliseconds);
  bool is_done(size_t entry) const;

 private:
  using Clock = std::chrono::steady_clock;

  struct Entry {
    const std::byte* host;
    cudaEvent_t began, ended;
    // Of a step without an event at its begin: that of the step before, and when it was launched.
    cudaEvent_t before;
    Clock::time_point launched;
  };

  cudaGraphExec_t find(StepGraph kind, int32_t bucket) const;

  std::byte* device_;
  cudaStream_t stream_;
  int device_index_;
  std::vector<Entry> entries_;
  std::array<std::map<int32_t, cudaGraphExec_t>, 5> graphs_;  // by kind, then bucket
  cudaEvent_t newest_ = nullptr;  // at the end of the step that was launched last
};

}  // namespace stoker::cuda
