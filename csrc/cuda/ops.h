// What the CUDA ops take: raw pointers, sizes and a stream. One struct and one function an op
// family.
//
// Nothing here allocates, synchronises or throws: a function launches on the given stream and
// returns a cudaError_t. Sizes are checked by the caller (csrc/bind). Strides are in elements, the
// last dimension is contiguous. Semantics are those of stoker.ops (docs/interfaces.md,
// python/stoker/ops/reference.py).
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace stoker::cuda {

enum class Type : int32_t { float32, float16, bfloat16, float8_e4m3fn };

constexpr int64_t type_bytes(Type type) {
  return type == Type::float32 ? 4 : type == Type::float8_e4m3fn ? 1 : 2;
}

// Every op takes one: where to launch, and whether its blocks may start before the kernel ahead has
// ended.
struct LaunchOptions {
  cudaStream_t stream = nullptr;
  bool overlap = true;
};

// rms_norm (residual == nullptr) and add_rms_norm. Rows are [outer][inner]: [T, H] has inner 1,
// per-head norms inner Hq.
struct RmsNormParams {
  void* out;
  void* residual;
  const void* x;
  const void* weight;
  int64_t outer, inner;
  int64_t out_outer_stride, out_inner_stride;
  int64_t x_outer_stride, x_inner_stride;
  int64_t residual_stride;
  int32_t hidden;
  float eps;
  Type type;
};
cudaError_t rms_norm(const RmsNormParams& p, const LaunchOptions& how);

enum class Activation : int32_t { silu, gelu_tanh };

// out[t, f] = activation(x[t, f]) * x[t, width + f]
struct GatedParams {
  void* out;
  const void* x;
  int64_t rows;
  int64_t out_stride, x_stride;
  int32_t width;
  Activation activation;
  Type type;
};
cudaError_t gated_activation(const GatedParams& p, const LaunchOptions& how);

struct RopeAndCacheParams {
  void* q;
  const void* k;
  const void* v;
  const int32_t* positions;
  const float* cos_sin;
  void* k_cache;
  void* v_cache;
  const int32_t* slots;
  const void* q_norm;  // nullptr: none
  const void* k_norm;
  int64_t tokens;
  int64_t q_stride, q_head_stride, k_stride, k_head_stride, v_stride, v_head_stride;
  int64_t k_block_stride, v_block_stride;
  int32_t num_q_heads, num_kv_heads, head_dim, rotary_dim, block_size;
  float eps, k_scale, v_scale;
  Type type, cache_type;
};
cudaError_t rope_and_cache(const RopeAndCacheParams& p, const LaunchOptions& how);

struct GatherTokensParams {
  int32_t* out;
  const int32_t* token_ids;
  const int32_t* last_token;
  int64_t count;
};
cudaError_t gather_tokens(const GatherTokensParams& p, const LaunchOptions& how);

// Blocks of `block_bytes` dense bytes from one pool to another (or the same), `pairs` [n][2] on the
// device. A pool may be pinned host memory: the kernel reads and writes it over the link.
struct CopyBlocksParams {
  void* destination;
  const void* source;
  const int32_t* pairs;
  int64_t count;
  int64_t block_bytes;
  int64_t destination_stride_bytes, source_stride_bytes;
  int32_t max_blocks_of_grid;  // 0: as many as help; a small number leaves the device to others
};
cudaError_t copy_blocks(const CopyBlocksParams& p, const LaunchOptions& how);

// The same by the copy engines, `pairs` on the host: a copy for each run of neighbouring blocks.
cudaError_t swap_blocks(const CopyBlocksParams& p, const LaunchOptions& how);

// Decode rows of paged attention: see decode.h. Prefill chunks: see prefill.h.

}  // namespace stoker::cuda
