// Gated linear layers for many rows on Hopper: bf16.
#include "cuda/linear_gated_launch.cuh"

namespace stoker::cuda::linear_gated {

cudaError_t run_bf16(const LinearParams& p, const LaunchOptions& how, const Cut& cut) {
  return run_cut<__nv_bfloat16>(p, how, cut);
}

}  // namespace stoker::cuda::linear_gated
