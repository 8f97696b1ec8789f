// Decode attention: fp16 queries, fp16 KV.
#include "cuda/decode_kernel.cuh"
#include "cuda/decode_run.h"

namespace stoker::cuda::decode {

// Four warps; as many stages as let two blocks share a multiprocessor (one at head size 256).
cudaError_t run_fp16(const DecodeParams& p, const LaunchOptions& how, int32_t* workers) {
  switch (p.head_dim) {
    case 64:
      return run<Traits<__half, __half, 64, 4, 6>>(p, how, workers);
    case 80:
      return run<Traits<__half, __half, 80, 4, 4>>(p, how, workers);
    case 96:
      return run<Traits<__half, __half, 96, 4, 3>>(p, how, workers);
    case 128:
      return run<Traits<__half, __half, 128, 4, 3>>(p, how, workers);
    case 256:
      return run<Traits<__half, __half, 256, 4, 3>>(p, how, workers);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace stoker::cuda::decode
