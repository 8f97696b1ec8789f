// Paged attention at any shape and type, for float32 and for shapes that the fast kernels do not
// take: one block a (token, query head), scores in float32, an online softmax over chunks of KV.
// Clear, not fast.
#include "cuda/common.cuh"
#include "cuda/decode.h"

namespace stoker::cuda {
namespace {

constexpr int kThreads = 128;

template <typename T, typename KV>
__global__ void __launch_bounds__(kThreads)
    plain_kernel(const __grid_constant__ PlainAttentionParams p) {
  extern __shared__ float shared[];  // query [head_dim], scores [kThreads]
  float* query = shared;
  float* scores = shared + p.head_dim;
  __shared__ float reduced[2][kThreads / kWarp];
  const int64_t token = blockIdx.x;
  const int head = blockIdx.y, kv_head = head / (p.num_q_heads / p.num_kv_heads);
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  // The row that holds the token: the last one that begins at or before it.
  int64_t low = 0, high = p.rows;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (p.row_indptr[middle] <= token ? low : high) = middle;
  }
  const int row_end = p.row_indptr[low + 1];
  if (token < p.row_indptr[0] || token >= row_end || p.row_kv_len[low] <= 0) return;
  const int end = p.row_kv_len[low] - (row_end - 1 - int(token));
  const int begin = p.window > 0 && end > p.window ? end - p.window : 0;
  const int32_t* table = p.block_table + p.row_seat[low] * p.table_stride;
  const T* q = static_cast<const T*>(p.q) + token * p.q_stride + head * p.q_head_stride;
  for (int d = threadIdx.x; d < p.head_dim; d += kThreads) query[d] = to_float(q[d]);
  __syncthreads();

  const KV* k_cache = static_cast<const KV*>(p.k_cache);
  const KV* v_cache = static_cast<const KV*>(p.v_cache);
  const int64_t in_block = int64_t(kv_head) * p.block_size * p.head_dim;
  float top = -kInfinity, sum = 0.0f;
  float result[2] = {0.0f, 0.0f};  // of elements threadIdx.x and threadIdx.x + kThreads
  for (int chunk = begin; chunk < end; chunk += kThreads) {
    const int position = chunk + threadIdx.x;
    float score = -kInfinity;
    if (position < end) {
      const int64_t block = table[position / p.block_size];
      const KV* k = k_cache + block * p.k_block_stride + in_block +
                    int64_t(position % p.block_size) * p.head_dim;
      float dot = 0.0f;
      for (int d = 0; d < p.head_dim; ++d) dot = __fmaf_rn(query[d], to_float(k[d]), dot);
      score = dot * p.scale * p.k_scale;
      if (p.soft_cap > 0.0f) score = p.soft_cap * tanhf(score / p.soft_cap);
    }
    const float warp_top = warp_max(score);
    if (threadIdx.x % kWarp == 0) reduced[0][threadIdx.x / kWarp] = warp_top;
    __syncthreads();
    float chunk_top = top;
    for (int w = 0; w < kThreads / kWarp; ++w) chunk_top = fmaxf(chunk_top, reduced[0][w]);
    const float weight = position < end ? expf(score - chunk_top) : 0.0f;
    scores[threadIdx.x] = weight;
    const float warp_total = warp_sum(weight);
    if (threadIdx.x % kWarp == 0) reduced[1][threadIdx.x / kWarp] = warp_total;
    __syncthreads();
    const float shrink = expf(top - chunk_top);
    top = chunk_top;
    sum *= shrink;
    for (int w = 0; w < kThreads / kWarp; ++w) sum += reduced[1][w];
    const int count = min(kThreads, end - chunk);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int d = threadIdx.x + i * kThreads;
      if (d >= p.head_dim) continue;
      float total = result[i] * shrink;
      for (int j = 0; j < count; ++j) {
        const int t = chunk + j;
        const int64_t block = table[t / p.block_size];
        const KV* v =
            v_cache + block * p.v_block_stride + in_block + int64_t(t % p.block_size) * p.head_dim;
        total = __fmaf_rn(scores[j], to_float(v[d]), total);
      }
      result[i] = total;
    }
    __syncthreads();
  }
  T* out = static_cast<T*>(p.out) + token * p.out_stride + head * p.out_head_stride;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int d = threadIdx.x + i * kThreads;
    if (d < p.head_dim) out[d] = from_float<T>(result[i] / sum * p.v_scale);
  }
}

template <typename T>
cudaError_t by_cache(const PlainAttentionParams& p, const LaunchOptions& how) {
  const Launch where{.grid = dim3(unsigned(p.tokens), unsigned(p.num_q_heads)),
                     .block = dim3(kThreads),
                     .shared_bytes = size_t(p.head_dim + kThreads) * sizeof(float),
                     .stream = how.stream,
                     .overlap = how.overlap};
  if (p.cache_type == Type::float8_e4m3fn) return launch(plain_kernel<T, __nv_fp8_e4m3>, where, p);
  if (p.cache_type != p.type) return cudaErrorInvalidValue;
  return launch(plain_kernel<T, T>, where, p);
}

}  // namespace

cudaError_t plain_attention(const PlainAttentionParams& p, const LaunchOptions& how) {
  if (p.tokens == 0 || p.rows == 0) return cudaSuccess;
  if (p.head_dim > 2 * kThreads) return cudaErrorInvalidValue;
  switch (p.type) {
    case Type::float32:
      return by_cache<float>(p, how);
    case Type::float16:
      return by_cache<__half>(p, how);
    case Type::bfloat16:
      return by_cache<__nv_bfloat16>(p, how);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace stoker::cuda
