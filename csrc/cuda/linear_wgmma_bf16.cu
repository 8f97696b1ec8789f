// Linear layers for 17 to 64 rows on Hopper: bf16.
#include "cuda/linear_wgmma_launch.cuh"

namespace stoker::cuda::linear_wgmma {

cudaError_t run_bf16(const LinearParams& p, const LaunchOptions& how) {
  return run_typed<__nv_bfloat16>(p, how);
}

}  // namespace stoker::cuda::linear_wgmma
