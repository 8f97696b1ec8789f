// rope_and_cache: a warp a (token, head). It norms (if asked), rotates, and writes q in place or k
// and v to their slot, so that q, k and v are read once and nothing intermediate touches memory.
#include "cuda/common.cuh"
#include "cuda/ops.h"

namespace stoker::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxHead = 256;

template <typename T, typename Cache>
__device__ __forceinline__ Cache stored(float x, float scale) {
  // The cache holds what the model's type holds: rounded to it first.
  const float rounded = to_float(from_float<T>(x));
  if constexpr (sizeof(Cache) == 1)
    return from_float<Cache>(rounded / scale);  // saturates
  else
    return from_float<Cache>(rounded);
}

// The warp's head lies in `row` (float32, shared memory) between the steps, so that any rotary size
// works.
template <typename T, typename Cache>
__global__ void __launch_bounds__(kWarps* kWarp)
    rope_kernel(const __grid_constant__ RopeAndCacheParams p) {
  __shared__ float rows[kWarps][kMaxHead];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int heads = p.num_q_heads + 2 * p.num_kv_heads;
  const int64_t index = int64_t(blockIdx.x) * kWarps + warp;
  float* row = rows[warp];
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  if (index >= p.tokens * heads) return;
  const int64_t token = index / heads;
  const int slot = p.slots[token];
  if (slot < 0) return;
  int head = int(index % heads);
  const bool is_q = head < p.num_q_heads;
  const bool is_v = head >= p.num_q_heads + p.num_kv_heads;
  if (!is_q) head -= p.num_q_heads + (is_v ? p.num_kv_heads : 0);
  const T* from = is_q   ? static_cast<const T*>(p.q) + token * p.q_stride + head * p.q_head_stride
                  : is_v ? static_cast<const T*>(p.v) + token * p.v_stride + head * p.v_head_stride
                         : static_cast<const T*>(p.k) + token * p.k_stride + head * p.k_head_stride;
  const int block = slot / p.block_size, offset = slot % p.block_size;
  const int64_t in_block = (int64_t(head) * p.block_size + offset) * p.head_dim;
  const int pairs = p.head_dim / 2;  // head_dim is even
  if (is_v) {
    Cache* to = static_cast<Cache*>(p.v_cache) + block * p.v_block_stride + in_block;
    for (int i = lane; i < pairs; i += kWarp) {
      const auto x = *reinterpret_cast<const Vec<T, 2>*>(from + 2 * i);
      Vec<Cache, 2> y;
      y.at[0] = stored<T, Cache>(to_float(x.at[0]), p.v_scale);
      y.at[1] = stored<T, Cache>(to_float(x.at[1]), p.v_scale);
      *reinterpret_cast<Vec<Cache, 2>*>(to + 2 * i) = y;
    }
    return;
  }
  const float* cos = p.cos_sin + int64_t(p.positions[token]) * p.rotary_dim;
  const int half = p.rotary_dim / 2;
  float sum = 0.0f;
  for (int i = lane; i < pairs; i += kWarp) {
    const auto x = *reinterpret_cast<const Vec<T, 2>*>(from + 2 * i);
    const float2 wide = make_float2(to_float(x.at[0]), to_float(x.at[1]));
    sum = __fmaf_rn(wide.x, wide.x, __fmaf_rn(wide.y, wide.y, sum));
    *reinterpret_cast<float2*>(row + 2 * i) = wide;
  }
  __syncwarp();
  const T* weight = static_cast<const T*>(is_q ? p.q_norm : p.k_norm);
  if (weight) {
    const float scale = rsqrtf(warp_sum(sum) / float(p.head_dim) + p.eps);
    for (int d = lane; d < p.head_dim; d += kWarp) row[d] = row[d] * scale * to_float(weight[d]);
    __syncwarp();
  }
  auto rotated = [&](int d) {
    if (d >= p.rotary_dim) return row[d];
    const int i = d < half ? d : d - half;
    const float c = cos[i], s = cos[half + i];
    return d < half ? row[d] * c - row[d + half] * s : row[d] * c + row[i] * s;
  };
  if (is_q) {
    T* to = static_cast<T*>(p.q) + token * p.q_stride + head * p.q_head_stride;
    for (int i = lane; i < pairs; i += kWarp) {
      Vec<T, 2> y;
      y.at[0] = from_float<T>(rotated(2 * i));
      y.at[1] = from_float<T>(rotated(2 * i + 1));
      *reinterpret_cast<Vec<T, 2>*>(to + 2 * i) = y;
    }
  } else {
    Cache* to = static_cast<Cache*>(p.k_cache) + block * p.k_block_stride + in_block;
    for (int i = lane; i < pairs; i += kWarp) {
      Vec<Cache, 2> y;
      y.at[0] = stored<T, Cache>(rotated(2 * i), p.k_scale);
      y.at[1] = stored<T, Cache>(rotated(2 * i + 1), p.k_scale);
      *reinterpret_cast<Vec<Cache, 2>*>(to + 2 * i) = y;
    }
  }
}

template <typename T>
cudaError_t by_cache(const RopeAndCacheParams& p, const LaunchOptions& how) {
  const int64_t warps = p.tokens * (p.num_q_heads + 2 * p.num_kv_heads);
  const Launch where{.grid = dim3(unsigned((warps + kWarps - 1) / kWarps)),
                     .block = dim3(kWarps * kWarp),
                     .stream = how.stream,
                     .overlap = how.overlap};
  if (p.cache_type == Type::float8_e4m3fn) return launch(rope_kernel<T, __nv_fp8_e4m3>, where, p);
  if (p.cache_type != p.type) return cudaErrorInvalidValue;
  return launch(rope_kernel<T, T>, where, p);
}

}  // namespace

cudaError_t rope_and_cache(const RopeAndCacheParams& p, const LaunchOptions& how) {
  if (p.tokens == 0) return cudaSuccess;
  if (p.head_dim > kMaxHead || p.head_dim % 2 != 0) return cudaErrorInvalidValue;
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
