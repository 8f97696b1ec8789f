// Chooses the instantiation of the decode kernel by types and head size.
#include "cuda/decode.h"

#include "cuda/decode_run.h"

namespace stoker::cuda {
namespace {

cudaError_t by_type(const DecodeParams& p, const LaunchOptions& how, int32_t* workers) {
  const bool fp8 = p.cache_type == Type::float8_e4m3fn;
  if (!fp8 && p.cache_type != p.type) return cudaErrorInvalidValue;
  if (p.type == Type::bfloat16)
    return fp8 ? decode::run_bf16_fp8(p, how, workers) : decode::run_bf16(p, how, workers);
  if (p.type == Type::float16)
    return fp8 ? decode::run_fp16_fp8(p, how, workers) : decode::run_fp16(p, how, workers);
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t decode_attention(const DecodeParams& p, const LaunchOptions& how) {
  return by_type(p, how, nullptr);
}

cudaError_t decode_workers(const DecodeParams& p, int32_t* workers) {
  return by_type(p, LaunchOptions{}, workers);
}

}  // namespace stoker::cuda
