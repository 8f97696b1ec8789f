// The mma.sync prefill kernel for __half, KV in e4m3, all head dims.
#include "cuda/prefill/mma_launch.cuh"

namespace stoker::cuda::prefill {

template cudaError_t launch_mma<__half, __nv_fp8_e4m3>(const Params& p, int num_workers,
                                                       const LaunchOptions& how);

}  // namespace stoker::cuda::prefill
