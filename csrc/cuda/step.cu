// Small kernels at a step's two ends.
#include "cuda/step.h"

#include "cuda/common.cuh"

namespace stoker::cuda {
namespace {

constexpr int kThreads = 256, kBlocks = 16;

__global__ void __launch_bounds__(kThreads)
    begin_kernel(const __grid_constant__ BeginStepParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  const int first = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  const int step = static_cast<int>(gridDim.x) * kThreads;
  const int changes = p.front->num_table_changes;
  const TableChange* list = p.front->changes_inline ? p.front->changes : p.table_changes;
  for (int i = first; i < changes; i += step) {
    const TableChange c = list[i];
    p.tables[c.group * p.group_stride + c.seat * p.seat_stride + c.index] = c.block;
  }
  const int words = p.front->num_seat_changes * kSeatWords;
  for (int i = first; i < words; i += step) {
    const int change = i / kSeatWords;
    const int64_t seat = p.seat_changes[change * kSeatWords];
    p.records[seat * kSeatWords + (i - change * kSeatWords)] = p.seat_changes[i];
  }
}

__global__ void __launch_bounds__(kThreads) end_kernel(const __grid_constant__ EndStepParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= p.count) return;
  const int32_t token = p.sampled[i];
  p.last_token[p.seats[i]] = max(token, 0);
  if (p.front->result != nullptr) p.front->result[i] = token;
}

}  // namespace

cudaError_t begin_step(const BeginStepParams& p, const LaunchOptions& how) {
  return launch(begin_kernel, {dim3(kBlocks), dim3(kThreads), 0, how.stream, how.overlap}, p);
}

cudaError_t end_step(const EndStepParams& p, const LaunchOptions& how) {
  if (p.count == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((p.count + kThreads - 1) / kThreads);
  return launch(end_kernel, {dim3(blocks), dim3(kThreads), 0, how.stream, how.overlap}, p);
}

}  // namespace stoker::cuda
