// Starts an engine's steps: one copy up, graph launches, an event at either end. What it starts was
// captured elsewhere; what a step needs was decided elsewhere (sched/step_stager.h).
#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

namespace stoker::cuda {

enum class StepGraph : int32_t { none, decode, mixed, head };

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

  cudaError_t begin(size_t entry);
  cudaError_t upload(size_t entry, const Upload& what);
  cudaError_t replay(StepGraph kind, int32_t bucket);
  cudaError_t end(size_t entry);
  // Until the step in `entry` is done.
  cudaError_t wait(size_t entry, float* milliseconds);
  bool is_done(size_t entry) const;

 private:
  struct Entry {
    const std::byte* host;
    cudaEvent_t began, ended;
  };

  std::byte* device_;
  cudaStream_t stream_;
  int device_index_;
  std::vector<Entry> entries_;
  std::array<std::map<int32_t, cudaGraphExec_t>, 4> graphs_;  // by kind, then bucket
};

}  // namespace stoker::cuda
