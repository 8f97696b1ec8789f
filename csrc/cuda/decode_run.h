// The decode kernel's instantiations, a file for each pair of types; `workers` != nullptr asks for
// the grid only.
#pragma once

#include "cuda/decode.h"

namespace stoker::cuda::decode {

cudaError_t run_bf16(const DecodeParams& p, const LaunchOptions& how, int32_t* workers);
cudaError_t run_fp16(const DecodeParams& p, const LaunchOptions& how, int32_t* workers);
cudaError_t run_bf16_fp8(const DecodeParams& p, const LaunchOptions& how, int32_t* workers);
cudaError_t run_fp16_fp8(const DecodeParams& p, const LaunchOptions& how, int32_t* workers);

}  // namespace stoker::cuda::decode
