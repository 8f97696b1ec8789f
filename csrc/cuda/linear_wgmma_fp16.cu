// Linear layers for 17 to 64 rows on Hopper: fp16.
#include "cuda/linear_wgmma_launch.cuh"

namespace stoker::cuda::linear_wgmma {

cudaError_t run_fp16(const LinearParams& p, const LaunchOptions& how) {
  return run_typed<__half>(p, how);
}

}  // namespace stoker::cuda::linear_wgmma
