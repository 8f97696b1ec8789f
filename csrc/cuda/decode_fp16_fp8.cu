// Decode attention: fp16 queries, e4m3 KV.
#include "cuda/decode_kernel.cuh"
#include "cuda/decode_run.h"

namespace stoker::cuda::decode {

// Four warps; as many stages as let two blocks share a multiprocessor (one at head size 256).
cudaError_t run_fp16_fp8(const DecodeParams& p, const LaunchOptions& how, int32_t* workers) {
  switch (p.head_dim) {
    case 64:
      return run<Traits<__half, __nv_fp8_e4m3, 64, 4, 8>>(p, how, workers);
    case 80:
      return run<Traits<__half, __nv_fp8_e4m3, 80, 4, 8>>(p, how, workers);
    case 96:
      return run<Traits<__half, __nv_fp8_e4m3, 96, 4, 6>>(p, how, workers);
    case 128:
      return run<Traits<__half, __nv_fp8_e4m3, 128, 4, 6>>(p, how, workers);
    case 256:
      return run<Traits<__half, __nv_fp8_e4m3, 256, 4, 3>>(p, how, workers);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace stoker::cuda::decode
