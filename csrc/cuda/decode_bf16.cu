// Decode attention: bf16 queries, bf16 KV.
#include "cuda/decode_kernel.cuh"
#include "cuda/decode_run.h"

namespace stoker::cuda::decode {

// Four warps; as many stages as let two blocks share a multiprocessor (one at head size 256).
cudaError_t run_bf16(const DecodeParams& p, const LaunchOptions& how, int32_t* workers) {
  switch (p.head_dim) {
    case 64:
      return run<Traits<__nv_bfloat16, __nv_bfloat16, 64, 4, 6>>(p, how, workers);
    case 80:
      return run<Traits<__nv_bfloat16, __nv_bfloat16, 80, 4, 4>>(p, how, workers);
    case 96:
      return run<Traits<__nv_bfloat16, __nv_bfloat16, 96, 4, 3>>(p, how, workers);
    case 128:
      return run<Traits<__nv_bfloat16, __nv_bfloat16, 128, 4, 3>>(p, how, workers);
    case 256:
      return run<Traits<__nv_bfloat16, __nv_bfloat16, 256, 4, 3>>(p, how, workers);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace stoker::cuda::decode
