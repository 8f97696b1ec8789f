// The Hopper prefill kernel for __nv_bfloat16, all head dims that it takes.
#include "cuda/prefill/wgmma_launch.cuh"

namespace stoker::cuda::prefill {

template cudaError_t launch_wgmma<__nv_bfloat16>(const Params& p, const TensorMaps& maps,
                                                 int num_workers, const LaunchOptions& how);

}  // namespace stoker::cuda::prefill
