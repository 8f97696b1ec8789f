// rope_and_cache: norms heads (if asked), rotates, and writes q in place or k and v to their slot,
// so that q, k and v are read once and nothing intermediate touches memory. Two kernels: a lane 8
// elements where sizes and strides let 16 bytes move at once, and a warp a (token, head) for any
// other.
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

// Lanes of a head, a power of two; the last ones have nothing where head_dim / 8 is none.
template <int kLanes>
__device__ __forceinline__ float head_sum(float x) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset >>= 1)
    x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

// Eight elements as float, and back: 16 bytes.
template <typename T>
__device__ __forceinline__ void unpack(float (&to)[8], const T* from) {
  const auto held = *reinterpret_cast<const Vec<T, 8>*>(from);
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i] = to_float(held.at[i]);
}
template <typename T>
__device__ __forceinline__ uint4 pack8(const float (&x)[8]) {
  return make_uint4(pack2<T>(x[0], x[1]), pack2<T>(x[2], x[3]), pack2<T>(x[4], x[5]),
                    pack2<T>(x[6], x[7]));
}
// As the cache holds them.
template <typename T, typename Cache>
__device__ __forceinline__ void store8(Cache* to, const float (&x)[8], float scale) {
  if constexpr (sizeof(Cache) == 2) {
    *reinterpret_cast<uint4*>(to) = pack8<T>(x);
  } else {
    Vec<Cache, 8> out;
#pragma unroll
    for (int i = 0; i < 8; ++i) out.at[i] = stored<T, Cache>(x[i], scale);
    *reinterpret_cast<Vec<Cache, 8>*>(to) = out;
  }
}

// A warp has kHeads * 32 / kLanes heads of one token; their loads are in flight together and share
// the lane's cosines.
template <typename T, typename Cache, int kLanes, int kHeads>
__global__ void __launch_bounds__(kWarps* kWarp)
    rope_vector_kernel(const __grid_constant__ RopeAndCacheParams p) {
  constexpr int kAtOnce = kWarp / kLanes;
  const int heads = p.num_q_heads + 2 * p.num_kv_heads;
  const unsigned warps_of_token = unsigned(heads + kAtOnce * kHeads - 1) / (kAtOnce * kHeads);
  const unsigned index = blockIdx.x * kWarps + threadIdx.x / kWarp;
  const unsigned token = index / warps_of_token;
  const int lane = threadIdx.x % kLanes, element = lane * 8;
  const int first =
      int(index - token * warps_of_token) * kAtOnce * kHeads + int(threadIdx.x % kWarp) / kLanes;
  const bool live = element < p.head_dim;
  // Weights do not come from the kernel ahead.
  const bool normed = p.q_norm || p.k_norm;
  float q_weight[8], k_weight[8];
  auto load_weight = [&](float (&weight)[8], const void* from) {
#pragma unroll
    for (int i = 0; i < 8; ++i) weight[i] = 1.0f;
    if (from && live) unpack<T>(weight, static_cast<const T*>(from) + element);
  };
  if (normed) {
    load_weight(q_weight, p.q_norm);
    load_weight(k_weight, p.k_norm);
  }
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  if (token >= p.tokens) return;
  const int slot = p.slots[token], position = p.positions[token];
  T* const q = static_cast<T*>(p.q) + token * p.q_stride + element;
  const T* const k = static_cast<const T*>(p.k) + token * p.k_stride + element;
  const T* const v = static_cast<const T*>(p.v) + token * p.v_stride + element;
  const int first_k = p.num_q_heads, first_v = p.num_q_heads + p.num_kv_heads;
  Vec<T, 8> held[kHeads];
#pragma unroll
  for (int i = 0; i < kHeads; ++i) {
    const int head = first + i * kAtOnce;
    const T* from = head < first_k   ? q + head * p.q_head_stride
                    : head < first_v ? k + (head - first_k) * p.k_head_stride
                                     : v + (head - first_v) * p.v_head_stride;
    if (head < heads && live) held[i] = *reinterpret_cast<const Vec<T, 8>*>(from);
  }
  if (slot < 0) return;
  // y = x cos +- partner sin, the partner half a rotary size away: lanes below `half` first.
  const int half = p.rotary_dim / 16;
  const bool rotates = lane < 2 * half;
  const int partner = int(threadIdx.x % kWarp) + (!rotates ? 0 : lane < half ? half : -half);
  float cos[8], sin[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) cos[i] = 1.0f, sin[i] = 0.0f;
  if (rotates) {
    const float* table =
        p.cos_sin + int64_t(position) * p.rotary_dim + (lane < half ? element : element - half * 8);
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      const auto c = *reinterpret_cast<const Vec<float, 4>*>(table + i);
      const auto s = *reinterpret_cast<const Vec<float, 4>*>(table + half * 8 + i);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        cos[i + j] = c.at[j];
        sin[i + j] = lane < half ? -s.at[j] : s.at[j];
      }
    }
  }
  const unsigned block = unsigned(slot) / unsigned(p.block_size);
  const int in_block = (slot - int(block) * p.block_size) * p.head_dim + element;
  const int head_size = p.block_size * p.head_dim;
  const float share = 1.0f / float(p.head_dim);
  Cache* const k_to = static_cast<Cache*>(p.k_cache) + block * p.k_block_stride + in_block;
  Cache* const v_to = static_cast<Cache*>(p.v_cache) + block * p.v_block_stride + in_block;
#pragma unroll
  for (int i = 0; i < kHeads; ++i) {
    const int head = first + i * kAtOnce;
    const bool here = head < heads && live;
    float x[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = 0.0f;
    if (here) unpack<T>(x, held[i].at);
    // Where some of the warp's heads are q or k all lanes shuffle; v's are left as they are.
    if (__any_sync(0xffffffffu, head < first_v)) {
      if (normed) {
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < 8; ++j) sum = __fmaf_rn(x[j], x[j], sum);
        const float scale = rsqrtf(head_sum<kLanes>(sum) * share + p.eps);
        const bool is_q = head < first_k;
        if (is_q ? p.q_norm != nullptr : head < first_v && p.k_norm) {
#pragma unroll
          for (int j = 0; j < 8; ++j) x[j] = x[j] * scale * (is_q ? q_weight[j] : k_weight[j]);
        }
      }
      float other[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) other[j] = __shfl_sync(0xffffffffu, x[j], partner);
      if (rotates && head < first_v) {
#pragma unroll
        for (int j = 0; j < 8; ++j) x[j] = __fmaf_rn(x[j], cos[j], __fmul_rn(other[j], sin[j]));
      }
    }
    if (!here) continue;
    if (head < first_k)
      *reinterpret_cast<uint4*>(q + head * p.q_head_stride) = pack8<T>(x);
    else if (head < first_v)
      store8<T>(k_to + (head - first_k) * head_size, x, p.k_scale);
    else
      store8<T>(v_to + (head - first_v) * head_size, x, p.v_scale);
  }
}

bool aligned(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

bool takes_vectors(const RopeAndCacheParams& p) {
  const int64_t strides = p.q_stride | p.q_head_stride | p.k_stride | p.k_head_stride | p.v_stride |
                          p.v_head_stride | p.k_block_stride | p.v_block_stride;
  return p.type != Type::float32 && p.head_dim % 8 == 0 && p.rotary_dim % 16 == 0 &&
         strides % 8 == 0 && aligned(p.q, 16) && aligned(p.k, 16) && aligned(p.v, 16) &&
         aligned(p.k_cache, 16) && aligned(p.v_cache, 16) && aligned(p.cos_sin, 16) &&
         aligned(p.q_norm, 16) && aligned(p.k_norm, 16);
}

template <typename T, typename Cache, int kLanes>
cudaError_t run_vectors(const RopeAndCacheParams& p, const LaunchOptions& how) {
  // Few tokens spread over warps; many share what a warp loads.
  constexpr int kMany = 4;
  const int heads = p.num_q_heads + 2 * p.num_kv_heads, at_once = kWarp / kLanes;
  const bool many = p.tokens * heads / (at_once * kMany) >= 132 * 16;
  const int each = at_once * (many ? kMany : 1);
  const int64_t warps = p.tokens * ((heads + each - 1) / each);
  const Launch where{.grid = dim3(unsigned((warps + kWarps - 1) / kWarps)),
                     .block = dim3(kWarps * kWarp),
                     .stream = how.stream,
                     .overlap = how.overlap};
  return many ? launch(rope_vector_kernel<T, Cache, kLanes, kMany>, where, p)
              : launch(rope_vector_kernel<T, Cache, kLanes, 1>, where, p);
}

template <typename T, typename Cache>
cudaError_t by_lanes(const RopeAndCacheParams& p, const LaunchOptions& how) {
  if (p.head_dim <= 64) return run_vectors<T, Cache, 8>(p, how);
  if (p.head_dim <= 128) return run_vectors<T, Cache, 16>(p, how);
  return run_vectors<T, Cache, 32>(p, how);
}

template <typename T>
cudaError_t by_cache(const RopeAndCacheParams& p, const LaunchOptions& how) {
  const bool fp8 = p.cache_type == Type::float8_e4m3fn;
  if (!fp8 && p.cache_type != p.type) return cudaErrorInvalidValue;
  if constexpr (sizeof(T) == 2) {
    if (takes_vectors(p)) return fp8 ? by_lanes<T, __nv_fp8_e4m3>(p, how) : by_lanes<T, T>(p, how);
  }
  const int64_t warps = p.tokens * (p.num_q_heads + 2 * p.num_kv_heads);
  const Launch where{.grid = dim3(unsigned((warps + kWarps - 1) / kWarps)),
                     .block = dim3(kWarps * kWarp),
                     .stream = how.stream,
                     .overlap = how.overlap};
  if (fp8) return launch(rope_kernel<T, __nv_fp8_e4m3>, where, p);
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
