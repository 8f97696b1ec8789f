// The ops that one pass over memory does: gated activations, token gather, block copies.
#include "cuda/common.cuh"
#include "cuda/ops.h"

namespace stoker::cuda {
namespace {

template <Activation kind>
__device__ __forceinline__ float activate(float x) {
  if constexpr (kind == Activation::silu) return x / (1.0f + __expf(-x));
  // 0.5 x (1 + tanh(u)) = x sigmoid(2u)
  const float u = 0.7978845608028654f * (x + 0.044715f * x * x * x);
  return x / (1.0f + __expf(-2.0f * u));
}

template <typename T, int N, Activation kind>
__global__ void __launch_bounds__(256) gated_kernel(GatedParams p) {
  const int64_t row = blockIdx.y;
  const int column = (blockIdx.x * 256 + threadIdx.x) * N;
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  if (column >= p.width) return;
  const T* x = static_cast<const T*>(p.x) + row * p.x_stride + column;
  T* out = static_cast<T*>(p.out) + row * p.out_stride + column;
  const auto gate = *reinterpret_cast<const Vec<T, N>*>(x);
  const auto up = *reinterpret_cast<const Vec<T, N>*>(x + p.width);
  Vec<T, N> result;
#pragma unroll
  for (int i = 0; i < N; ++i)
    result.at[i] = from_float<T>(activate<kind>(to_float(gate.at[i])) * to_float(up.at[i]));
  *reinterpret_cast<Vec<T, N>*>(out) = result;
}

bool aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

template <typename T, Activation kind>
cudaError_t launch_gated(const GatedParams& p, const LaunchOptions& how) {
  constexpr int wide = 16 / sizeof(T);
  const bool vectors = p.width % wide == 0 && p.x_stride % wide == 0 && p.out_stride % wide == 0 &&
                       aligned(p.x, 16) && aligned(p.out, 16);
  const int per_block = 256 * (vectors ? wide : 1);
  // The grid's second dimension holds at most 65535 rows.
  for (int64_t begin = 0; begin < p.rows; begin += 65535) {
    GatedParams part = p;
    part.rows = p.rows - begin < 65535 ? p.rows - begin : 65535;
    part.x = static_cast<const T*>(p.x) + begin * p.x_stride;
    part.out = static_cast<T*>(p.out) + begin * p.out_stride;
    const Launch where{.grid = dim3((p.width + per_block - 1) / per_block, unsigned(part.rows)),
                       .block = dim3(256),
                       .stream = how.stream,
                       .overlap = how.overlap};
    const cudaError_t status = vectors ? launch(gated_kernel<T, wide, kind>, where, part)
                                       : launch(gated_kernel<T, 1, kind>, where, part);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

template <typename T>
cudaError_t dispatch_gated(const GatedParams& p, const LaunchOptions& how) {
  return p.activation == Activation::silu ? launch_gated<T, Activation::silu>(p, how)
                                          : launch_gated<T, Activation::gelu_tanh>(p, how);
}

__global__ void __launch_bounds__(256) gather_kernel(GatherTokensParams p) {
  const int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x;
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  if (i >= p.count) return;
  const int32_t token = p.token_ids[i];
  p.out[i] = token >= 0 ? token : p.last_token[-1 - token];
}

template <typename V>
__global__ void __launch_bounds__(256) copy_kernel(CopyBlocksParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  const int64_t vectors = p.block_bytes / int64_t(sizeof(V));
  constexpr int kAhead = 4;  // loads in flight a thread
  for (int64_t pair = blockIdx.y; pair < p.count; pair += gridDim.y) {
    const V* from = reinterpret_cast<const V*>(static_cast<const char*>(p.source) +
                                               p.pairs[2 * pair] * p.source_stride_bytes);
    V* to = reinterpret_cast<V*>(static_cast<char*>(p.destination) +
                                 p.pairs[2 * pair + 1] * p.destination_stride_bytes);
    const int64_t step = int64_t(gridDim.x) * 256;
    for (int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x; i < vectors; i += step * kAhead) {
      V held[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a)
        if (i + a * step < vectors) held[a] = from[i + a * step];
#pragma unroll
      for (int a = 0; a < kAhead; ++a)
        if (i + a * step < vectors) to[i + a * step] = held[a];
    }
  }
}

}  // namespace

cudaError_t gated_activation(const GatedParams& p, const LaunchOptions& how) {
  if (p.rows == 0 || p.width == 0) return cudaSuccess;
  switch (p.type) {
    case Type::float32:
      return dispatch_gated<float>(p, how);
    case Type::float16:
      return dispatch_gated<__half>(p, how);
    case Type::bfloat16:
      return dispatch_gated<__nv_bfloat16>(p, how);
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t gather_tokens(const GatherTokensParams& p, const LaunchOptions& how) {
  if (p.count == 0) return cudaSuccess;
  const Launch where{.grid = dim3(unsigned((p.count + 255) / 256)),
                     .block = dim3(256),
                     .stream = how.stream,
                     .overlap = how.overlap};
  return launch(gather_kernel, where, p);
}

cudaError_t copy_blocks(const CopyBlocksParams& p, const LaunchOptions& how) {
  if (p.count == 0 || p.block_bytes == 0) return cudaSuccess;
  const bool wide = p.block_bytes % 16 == 0 && p.source_stride_bytes % 16 == 0 &&
                    p.destination_stride_bytes % 16 == 0 && aligned(p.source, 16) &&
                    aligned(p.destination, 16);
  const int64_t unit = wide ? 16 : 1;
  const int64_t per_block = 256 * 4 * unit;
  int64_t x = (p.block_bytes + per_block - 1) / per_block;
  int64_t y = p.count;
  const int64_t most = p.max_blocks_of_grid > 0 ? p.max_blocks_of_grid : 132 * 16;
  if (x > most) x = most;
  if (x * y > most) y = most / x > 0 ? most / x : 1;
  const Launch where{.grid = dim3(unsigned(x), unsigned(y)),
                     .block = dim3(256),
                     .stream = how.stream,
                     .overlap = how.overlap};
  return wide ? launch(copy_kernel<uint4>, where, p) : launch(copy_kernel<uint8_t>, where, p);
}

cudaError_t swap_blocks(const CopyBlocksParams& p, const LaunchOptions& how) {
  const bool dense =
      p.source_stride_bytes == p.block_bytes && p.destination_stride_bytes == p.block_bytes;
  for (int64_t i = 0; i < p.count;) {
    const int64_t source = p.pairs[2 * i], destination = p.pairs[2 * i + 1];
    int64_t run = 1;
    while (dense && i + run < p.count && p.pairs[2 * (i + run)] == source + run &&
           p.pairs[2 * (i + run) + 1] == destination + run)
      ++run;
    const cudaError_t status = cudaMemcpyAsync(
        static_cast<char*>(p.destination) + destination * p.destination_stride_bytes,
        static_cast<const char*>(p.source) + source * p.source_stride_bytes,
        size_t(run * p.block_bytes), cudaMemcpyDefault, how.stream);
    if (status != cudaSuccess) return status;
    i += run;
  }
  return cudaSuccess;
}

}  // namespace stoker::cuda
