// Linear layers for few rows: bf16 results, bf16 weights.
#include "cuda/linear_kernel.cuh"
#include "cuda/linear_run.h"

namespace stoker::cuda::linear_rows {

cudaError_t run_bf16(const KernelParams& p, const Launch& where, int stages) {
  return stages == kDeep ? run_stages<__nv_bfloat16, false, kDeep>(p, where)
                         : run_stages<__nv_bfloat16, false, kShallow>(p, where);
}

}  // namespace stoker::cuda::linear_rows
