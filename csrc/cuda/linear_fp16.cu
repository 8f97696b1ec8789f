// Linear layers for few rows: fp16 results, fp16 weights.
#include "cuda/linear_kernel.cuh"
#include "cuda/linear_run.h"

namespace stoker::cuda::linear_rows {

cudaError_t run_fp16(const KernelParams& p, const Launch& where, int stages) {
  return stages == kDeep ? run_stages<__half, false, kDeep>(p, where)
                         : run_stages<__half, false, kShallow>(p, where);
}

}  // namespace stoker::cuda::linear_rows
