// Picks and launches the Hopper prefill kernel for a head dim.
#pragma once

#include "cuda/prefill/launchers.h"
#include "cuda/prefill/wgmma_kernel.cuh"

namespace stoker::cuda::prefill {

template <typename T, int kHeadDim, bool kSoftCap>
cudaError_t launch_wgmma_shaped(const Params& p, const TensorMaps& maps, int num_workers,
                                const LaunchOptions& how) {
  auto* kernel = wgmma_kernel<T, kHeadDim, kSoftCap>;
  constexpr int kBytes = WgmmaShape<kHeadDim>::kSharedBytes;
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  if (num_workers == 0) {
    int device = 0;
    if ((error = cudaGetDevice(&device)) != cudaSuccess) return error;
    error = cudaDeviceGetAttribute(&num_workers, cudaDevAttrMultiProcessorCount, device);
    if (error != cudaSuccess) return error;
  }
  num_workers = num_workers < kMaxPrefillWorkers ? num_workers : kMaxPrefillWorkers;
  return launch(kernel, {dim3(num_workers), dim3(kWgmmaThreads), kBytes, how.stream, how.overlap},
                p, maps);
}

template <typename T, bool kSoftCap>
cudaError_t launch_wgmma_capped(const Params& p, const TensorMaps& maps, int num_workers,
                                const LaunchOptions& how) {
  switch (p.head_dim) {
    case 64:
      return launch_wgmma_shaped<T, 64, kSoftCap>(p, maps, num_workers, how);
    case 80:
      return launch_wgmma_shaped<T, 80, kSoftCap>(p, maps, num_workers, how);
    case 96:
      return launch_wgmma_shaped<T, 96, kSoftCap>(p, maps, num_workers, how);
    case 128:
      return launch_wgmma_shaped<T, 128, kSoftCap>(p, maps, num_workers, how);
    default:
      return cudaErrorInvalidValue;
  }
}

template <typename T>
cudaError_t launch_wgmma(const Params& p, const TensorMaps& maps, int num_workers,
                         const LaunchOptions& how) {
  return p.soft_cap > 0.0f ? launch_wgmma_capped<T, true>(p, maps, num_workers, how)
                           : launch_wgmma_capped<T, false>(p, maps, num_workers, how);
}

}  // namespace stoker::cuda::prefill
