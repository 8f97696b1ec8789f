// Cuts a gated product for the Hopper kernel of many rows and launches it.
#pragma once

#include <iterator>
#include <utility>

#include "cuda/linear_gated.cuh"
#include "cuda/linear_launch.cuh"

namespace stoker::cuda::linear_gated {

struct Device {
  int id = -1, shared_bytes = 0;
  int clusters[kMostShare + 1] = {};  // that run at once, by their size, a block a multiprocessor
};

// Asked for once a thread.
template <typename T, int kWidth>
cudaError_t ask(Device& device) {
  int id = 0;
  cudaError_t status = cudaGetDevice(&id);
  if (status != cudaSuccess || id == device.id) return status;
  const auto kernel = linear_gated_kernel<T, kWidth>;
  status = allow_all_shared_memory(kernel, id, &device.shared_bytes);
  for (int size = 1; status == cudaSuccess && size <= kMostShare; ++size)
    status = clusters_at_once(kernel, size, most_threads(kWidth), device.shared_bytes,
                              &device.clusters[size]);
  if (status == cudaSuccess) device.id = id;
  return status;
}

template <typename T, int kWidth>
cudaError_t run_width(const LinearParams& p, const LaunchOptions& how, int share) {
  static thread_local Device device;
  cudaError_t status = ask<T, kWidth>(device);
  if (status != cudaSuccess) return status;
  const int tiles = (2 * p.features + kWidth - 1) / kWidth;
  const int units = (tiles + share - 1) / share;
  const int clusters = units < device.clusters[share] ? units : device.clusters[share];
  Params kernel{.op = p,
                .weights = {},
                .x = {},
                .chunks = (p.columns + kChunk - 1) / kChunk,
                .rounds = (units + clusters - 1) / clusters,
                .stages = 0,
                .groups = int(p.rows + kGroupRows - 1) / kGroupRows,
                .share = share};
  const int stage = Place<kWidth>::kWeightBytes + kernel.groups * kGroupRows * kRowBytes;
  kernel.stages = (device.shared_bytes - 1024 - kBarrierBytes) / stage;
  if (kernel.stages > kMostStages) kernel.stages = kMostStages;
  status = encode_product(kernel.weights, kernel.x, p, kChunk, kWidth,
                          kernel.groups * kGroupRows / share);
  if (status != cudaSuccess) return status;
  const Launch where{.grid = dim3(unsigned(clusters * share)),
                     .block = dim3(unsigned(kernel.groups * kGroupThreads + kWarp)),
                     .shared_bytes = size_t(kernel.stages * stage + 1024 + kBarrierBytes),
                     .stream = how.stream,
                     .overlap = how.overlap,
                     .cluster = unsigned(share)};
  return launch(linear_gated_kernel<T, kWidth>, where, kernel);
}

template <typename T, size_t... i>
cudaError_t run_one_of(const LinearParams& p, const LaunchOptions& how, const Cut& cut,
                       std::index_sequence<i...>) {
  cudaError_t status = cudaErrorInvalidValue;
  (void)((cut.width == kWidths[i] &&
          (status = run_width<T, kWidths[i]>(p, how, cut.share), true)) ||
         ...);
  return status;
}
template <typename T>
cudaError_t run_cut(const LinearParams& p, const LaunchOptions& how, const Cut& cut) {
  return run_one_of<T>(p, how, cut, std::make_index_sequence<std::size(kWidths)>());
}

}  // namespace stoker::cuda::linear_gated
