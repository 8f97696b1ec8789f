// The mma.sync prefill kernel for __half, all head dims.
#include "cuda/prefill/mma_launch.cuh"

namespace stoker::cuda::prefill {

template cudaError_t launch_mma<__half, __half>(const Params& p, int num_workers,
                                                const LaunchOptions& how);

}  // namespace stoker::cuda::prefill
