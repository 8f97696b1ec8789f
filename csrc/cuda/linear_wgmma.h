// Linear layers for 17 to 64 rows on Hopper, in the bits of the streaming kernel: 16-bit, features
// in whole eights, aligned as that kernel wants it. A file each.
#pragma once

#include "cuda/linear.h"

namespace stoker::cuda::linear_wgmma {

cudaError_t run_bf16(const LinearParams& p, const LaunchOptions& how);
cudaError_t run_fp16(const LinearParams& p, const LaunchOptions& how);

}  // namespace stoker::cuda::linear_wgmma
