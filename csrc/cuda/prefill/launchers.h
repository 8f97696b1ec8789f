// The prefill kernels as functions, so that each is compiled in a file of its own.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/ops.h"

namespace stoker::cuda::prefill {

struct Params;
struct TensorMaps;

// T: __half or __nv_bfloat16; KV: the same or __nv_fp8_e4m3. num_workers 0: as many as the device
// runs at once.
template <typename T, typename KV>
cudaError_t launch_mma(const Params& p, int num_workers, const LaunchOptions& how);

template <typename T>
cudaError_t launch_wgmma(const Params& p, const TensorMaps& maps, int num_workers,
                         const LaunchOptions& how);

}  // namespace stoker::cuda::prefill
