// Gated linear layers for many rows on Hopper: fp16.
#include "cuda/linear_gated_launch.cuh"

namespace stoker::cuda::linear_gated {

cudaError_t run_fp16(const LinearParams& p, const LaunchOptions& how, const Cut& cut) {
  return run_cut<__half>(p, how, cut);
}

}  // namespace stoker::cuda::linear_gated
