// Picks and launches the mma.sync prefill kernel for a head dim.
#pragma once

#include "cuda/prefill/launchers.h"
#include "cuda/prefill/mma_kernel.cuh"

namespace stoker::cuda::prefill {

template <typename T, typename KV, int kHeadDim>
cudaError_t launch_mma_shaped(const Params& p, int num_workers, const LaunchOptions& how) {
  auto* kernel = mma_kernel<T, KV, kHeadDim>;
  constexpr int kBytes = MmaShape<kHeadDim>::kSharedBytes;
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  if (num_workers == 0) {
    int device = 0, processors = 0, blocks = 0;
    if ((error = cudaGetDevice(&device)) != cudaSuccess) return error;
    if ((error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device)) !=
        cudaSuccess)
      return error;
    if ((error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kMmaThreads,
                                                               kBytes)) != cudaSuccess)
      return error;
    num_workers = processors * blocks;
  }
  return launch(kernel, {dim3(num_workers), dim3(kMmaThreads), kBytes, how.stream, how.overlap}, p);
}

template <typename T, typename KV>
cudaError_t launch_mma(const Params& p, int num_workers, const LaunchOptions& how) {
  switch (p.head_dim) {
    case 64:
      return launch_mma_shaped<T, KV, 64>(p, num_workers, how);
    case 80:
      return launch_mma_shaped<T, KV, 80>(p, num_workers, how);
    case 96:
      return launch_mma_shaped<T, KV, 96>(p, num_workers, how);
    case 128:
      return launch_mma_shaped<T, KV, 128>(p, num_workers, how);
    case 256:
      return launch_mma_shaped<T, KV, 256>(p, num_workers, how);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace stoker::cuda::prefill
