// rms_norm and add_rms_norm: a row's values stay in registers, so memory is read once and written
// once. The order of the sum depends on the row's length only.
#include "cuda/common.cuh"
#include "cuda/ops.h"

namespace stoker::cuda {
namespace {

// Adds over the block; every thread gets the same bits. `shared` holds a float for each warp.
__device__ __forceinline__ float block_sum(float x, float* shared) {
  x = warp_sum(x);
  const int warps = blockDim.x / kWarp;
  if (warps == 1) return x;
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = x;
  __syncthreads();
  float total = 0.0f;
  for (int i = 0; i < warps; ++i) total += shared[i];
  return total;
}

// One block a row, N elements a vector, at most kVectors vectors a thread.
template <typename T, int N, int kVectors, bool kResidual>
__global__ void __launch_bounds__(1024) norm_kernel(RmsNormParams p) {
  __shared__ float shared[32];
  const int64_t row = blockIdx.x;
  const int64_t outer = row / p.inner, inner = row % p.inner;
  const T* x = static_cast<const T*>(p.x) + outer * p.x_outer_stride + inner * p.x_inner_stride;
  T* out = static_cast<T*>(p.out) + outer * p.out_outer_stride + inner * p.out_inner_stride;
  const T* weight = static_cast<const T*>(p.weight);
  const int step = blockDim.x * N;
  const int first = threadIdx.x * N;
  // The weights do not come from the kernel ahead.
  Vec<T, N> w[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i)
    if (first + i * step < p.hidden)
      w[i] = *reinterpret_cast<const Vec<T, N>*>(weight + first + i * step);
  ptx::grid_dependency_launch();
  ptx::grid_dependency_wait();

  Vec<T, N> values[kVectors];
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int column = first + i * step;
    if (column >= p.hidden) continue;
    values[i] = *reinterpret_cast<const Vec<T, N>*>(x + column);
    if constexpr (kResidual) {
      T* residual = static_cast<T*>(p.residual) + row * p.residual_stride + column;
      const auto before = *reinterpret_cast<const Vec<T, N>*>(residual);
#pragma unroll
      for (int j = 0; j < N; ++j)
        values[i].at[j] = from_float<T>(to_float(before.at[j]) + to_float(values[i].at[j]));
      *reinterpret_cast<Vec<T, N>*>(residual) = values[i];
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float value = to_float(values[i].at[j]);
      sum = __fmaf_rn(value, value, sum);
    }
  }
  const float scale = rsqrtf(block_sum(sum, shared) / float(p.hidden) + p.eps);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int column = first + i * step;
    if (column >= p.hidden) continue;
    Vec<T, N> result;
#pragma unroll
    for (int j = 0; j < N; ++j)
      result.at[j] = from_float<T>(to_float(values[i].at[j]) * scale * to_float(w[i].at[j]));
    *reinterpret_cast<Vec<T, N>*>(out + column) = result;
  }
}

// Any length: the row is read twice. A thread reads only what it wrote itself.
template <typename T, bool kResidual>
__global__ void __launch_bounds__(256) norm_plain_kernel(RmsNormParams p) {
  __shared__ float shared[32];
  const int64_t row = blockIdx.x;
  const int64_t outer = row / p.inner, inner = row % p.inner;
  const T* x = static_cast<const T*>(p.x) + outer * p.x_outer_stride + inner * p.x_inner_stride;
  T* out = static_cast<T*>(p.out) + outer * p.out_outer_stride + inner * p.out_inner_stride;
  T* residual = static_cast<T*>(p.residual) + row * p.residual_stride;
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  float sum = 0.0f;
  for (int column = threadIdx.x; column < p.hidden; column += blockDim.x) {
    float value = to_float(x[column]);
    if constexpr (kResidual) {
      const T added = from_float<T>(to_float(residual[column]) + value);
      residual[column] = added;
      value = to_float(added);
    }
    sum = __fmaf_rn(value, value, sum);
  }
  const float scale = rsqrtf(block_sum(sum, shared) / float(p.hidden) + p.eps);
  for (int column = threadIdx.x; column < p.hidden; column += blockDim.x) {
    const float value = to_float(kResidual ? residual[column] : x[column]);
    out[column] = from_float<T>(value * scale * to_float(static_cast<const T*>(p.weight)[column]));
  }
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <typename T, bool kResidual>
cudaError_t launch_norm(const RmsNormParams& p, const LaunchOptions& how) {
  constexpr int N = 16 / sizeof(T);
  Launch where{.grid = dim3(unsigned(p.outer * p.inner)),
               .block = dim3(256),
               .stream = how.stream,
               .overlap = how.overlap};
  const int64_t strides = p.out_outer_stride | p.out_inner_stride | p.x_outer_stride |
                          p.x_inner_stride | (kResidual ? p.residual_stride : 0);
  const bool vectors = p.hidden % N == 0 && strides % N == 0 && aligned(p.out) && aligned(p.x) &&
                       aligned(p.weight) && (!kResidual || aligned(p.residual));
  const int count = p.hidden / N;  // vectors a row
  if (!vectors || count > 4096) return launch(norm_plain_kernel<T, kResidual>, where, p);
  const int per_thread = count <= 1024 ? 1 : count <= 2048 ? 2 : 4;
  const int threads = ((count + per_thread - 1) / per_thread + kWarp - 1) / kWarp * kWarp;
  where.block = dim3(unsigned(threads));
  if (per_thread == 1) return launch(norm_kernel<T, N, 1, kResidual>, where, p);
  if (per_thread == 2) return launch(norm_kernel<T, N, 2, kResidual>, where, p);
  return launch(norm_kernel<T, N, 4, kResidual>, where, p);
}

template <typename T>
cudaError_t dispatch_norm(const RmsNormParams& p, const LaunchOptions& how) {
  return p.residual ? launch_norm<T, true>(p, how) : launch_norm<T, false>(p, how);
}

}  // namespace

cudaError_t rms_norm(const RmsNormParams& p, const LaunchOptions& how) {
  if (p.outer * p.inner == 0) return cudaSuccess;
  switch (p.type) {
    case Type::float32:
      return dispatch_norm<float>(p, how);
    case Type::float16:
      return dispatch_norm<__half>(p, how);
    case Type::bfloat16:
      return dispatch_norm<__nv_bfloat16>(p, how);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace stoker::cuda
