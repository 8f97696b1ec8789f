// Linear layers for few rows: fp16 results, e4m3 x and weights.
#include "cuda/linear_kernel.cuh"
#include "cuda/linear_run.h"

namespace stoker::cuda::linear_rows {

cudaError_t run_fp16_fp8(const KernelParams& p, const Launch& where, int stages) {
  return stages == kDeep ? run_stages<__half, true, kDeep>(p, where)
                         : run_stages<__half, true, kShallow>(p, where);
}

}  // namespace stoker::cuda::linear_rows
