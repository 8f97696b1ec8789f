// Linear layers for few rows: which kernel takes a product, how the streaming one cuts it, and the
// plain kernel for any shape; the quantisation of rows to e4m3.
#include "cuda/linear.h"

#include "cuda/common.cuh"
#include "cuda/linear_gated.h"
#include "cuda/linear_kernel.cuh"
#include "cuda/linear_run.h"
#include "cuda/linear_wgmma.h"
#include "cuda/tensor_map.h"

namespace stoker::cuda {
namespace {

using namespace linear_rows;

constexpr int kMaxRows = 64;  // of one launch of the streaming kernel
constexpr int kFewRows = 16;  // up to which it is the faster one on Hopper too

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

struct Device {
  int id = -1;
  int shared_bytes = 0;  // that a block may have
  int alone_bytes = 0;   // of shared memory that a block takes so that no other fits beside it
  int multiprocessors = 0;
  bool clusters = false;
};

struct Cut {
  int slices = 0;  // 0: does not fit
  int stages = 0, bytes = 0, x_pitch = 0;
};
// One slice where x fits, a deep ring where there is room and weights enough for it; neither
// changes a bit. A block has its multiprocessor for itself: two of one launch on one and none on
// another would halve the pace of both.
Cut best_cut(int rows, const Weights& w, const Device& device) {
  const int most_slices = device.clusters ? kRanges : 1;
  const int units = (w.features + kUnitRows - 1) / kUnitRows * (w.gated ? 2 : 1);
  const int rounds = (units + device.multiprocessors - 1) / device.multiprocessors;
  const bool few = rounds * w.chunks <= 8 * kRanges;  // a warp's chunks: the deep ring does not pay
  Cut cut;
  auto fits = [&](int slices, int stages) {
    const int pitch = (w.chunks + slices - 1) / slices * kChunkBytes + 16;
    const int bytes = ring_bytes(stages) + sum_bytes(rows) + rows * pitch;
    if (bytes > device.shared_bytes) return false;
    cut = {slices, stages, bytes > device.alone_bytes ? bytes : device.alone_bytes, pitch};
    return true;
  };
  if (fits(1, few ? kShallow : kDeep) || fits(1, kShallow)) return cut;
  for (int stages : {kDeep, kShallow})
    for (int slices = 2; slices <= most_slices; slices *= 2)
      if (fits(slices, stages)) return cut;
  return cut;
}

// For many rows of a gated layer: the width with the least work for the busiest multiprocessor,
// where a tile costs about 16 weight rows beside its own. Sharing x pays where it is more than the
// weights, and the layer long enough to lose the blocks' waiting for each other in it.
linear_gated::Cut gated_cut(int rows, const LinearParams& p, const Device& device) {
  linear_gated::Cut best{.width = 0, .share = rows > 128 && p.columns >= 2048 ? 2 : 1};
  int least = 0;
  for (const int width : linear_gated::kWidths) {
    const int tiles = (2 * p.features + width - 1) / width;
    const int rounds = (tiles + device.multiprocessors - 1) / device.multiprocessors;
    const int cost = rounds * (width + 16);
    if (rows > linear_gated::most_rows(width) || (best.width != 0 && cost >= least)) continue;
    least = cost;
    best.width = width;
  }
  return best;
}

cudaError_t this_device(Device& device);

cudaError_t stream_weights(const LinearParams& p, const LaunchOptions& how, bool* fits) {
  const bool fp8 = p.weight_scale != nullptr;
  Device device;
  cudaError_t status = this_device(device);
  if (status != cudaSuccess) return status;
  const int element = fp8 ? 1 : 2;
  KernelParams kernel{.op = p,
                      .weights = {.data = p.weight,
                                  .stride = p.weight_stride * element,
                                  .row_bytes = p.columns * element,
                                  .chunks = (p.columns * element + kChunkBytes - 1) / kChunkBytes,
                                  .features = p.features,
                                  .units = 0,
                                  .slices = 1,
                                  .gated = p.gated},
                      .x_pitch = 0};
  Weights& w = kernel.weights;
  const bool wgmma = !fp8 && p.features % 8 == 0 && is_hopper();
  int64_t done = 0;
  while (done < p.rows) {
    int rows = int(p.rows - done < kMaxRows ? p.rows - done : kMaxRows);
    if (wgmma && rows > kFewRows) {
      const bool gated = p.gated && p.bias == nullptr && p.rows - done > kMaxRows &&
                         aligned(p.out) && p.out_stride % 8 == 0;
      if (gated)
        rows =
            int(p.rows - done < linear_gated::kMostRows ? p.rows - done : linear_gated::kMostRows);
      LinearParams part = p;
      part.rows = rows;
      part.x = static_cast<const char*>(p.x) + done * p.x_stride * 2;
      part.out = static_cast<char*>(p.out) + done * p.out_stride * 2;
      const bool bf16 = p.type == Type::bfloat16;
      if (gated) {
        const auto cut = gated_cut(rows, p, device);
        status =
            bf16 ? linear_gated::run_bf16(part, how, cut) : linear_gated::run_fp16(part, how, cut);
      } else {
        status = bf16 ? linear_wgmma::run_bf16(part, how) : linear_wgmma::run_fp16(part, how);
      }
      if (status != cudaSuccess) return status;
      *fits = true;
      done += rows;
      continue;
    }
    Cut cut = best_cut(rows, w, device);
    while (cut.slices == 0 && rows > 1) {
      rows = rows > 8 ? (rows / 2 + 7) / 8 * 8 : rows - 1;
      cut = best_cut(rows, w, device);
    }
    *fits = cut.slices != 0;
    if (!*fits) return cudaSuccess;
    const int unit_features = (w.gated ? kUnitRows / 2 : kUnitRows) * cut.slices;
    w.slices = cut.slices;
    w.units = (w.features + unit_features - 1) / unit_features;
    kernel.x_pitch = cut.x_pitch;
    kernel.op.rows = rows;
    kernel.op.x = static_cast<const char*>(p.x) + done * p.x_stride * element;
    kernel.op.out = static_cast<char*>(p.out) + done * p.out_stride * 2;
    if (fp8) kernel.op.x_scale = p.x_scale + done;
    const Launch where{.grid = dim3(1),
                       .block = dim3(kThreads),
                       .shared_bytes = size_t(cut.bytes),
                       .stream = how.stream,
                       .overlap = how.overlap,
                       .cluster = unsigned(cut.slices)};
    if (p.type == Type::bfloat16)
      status = fp8 ? run_bf16_fp8(kernel, where, cut.stages) : run_bf16(kernel, where, cut.stages);
    else
      status = fp8 ? run_fp16_fp8(kernel, where, cut.stages) : run_fp16(kernel, where, cut.stages);
    if (status != cudaSuccess) return status;
    done += rows;
  }
  return cudaSuccess;
}

// A warp a feature, row after row.
template <typename T, typename W>
__global__ void __launch_bounds__(256) plain_kernel(LinearParams p) {
  const int feature = int(blockIdx.x) * 8 + int(threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  if (feature >= p.features) return;
  for (int64_t row = blockIdx.y; row < p.rows; row += gridDim.y) {
    const W* x = static_cast<const W*>(p.x) + row * p.x_stride;
    auto product = [&](int64_t weight_row) {
      const W* weight = static_cast<const W*>(p.weight) + weight_row * p.weight_stride;
      float sum = 0.0f;
      for (int i = lane; i < p.columns; i += kWarp)
        sum = __fmaf_rn(to_float(x[i]), to_float(weight[i]), sum);
      sum = warp_sum(sum);
      return p.weight_scale ? sum * p.x_scale[row] * p.weight_scale[weight_row] : sum;
    };
    float y = product(feature);
    if (p.bias) y += to_float(static_cast<const T*>(p.bias)[feature]);
    if (p.gated) {
      const float gate = to_float(from_float<T>(y));
      const float up = to_float(from_float<T>(product(int64_t(p.features) + feature)));
      y = gate / (1.0f + __expf(-gate)) * up;
    }
    if (lane == 0) static_cast<T*>(p.out)[row * p.out_stride + feature] = from_float<T>(y);
  }
}

template <typename T>
cudaError_t run_plain(const LinearParams& p, const LaunchOptions& how) {
  const Launch where{
      .grid = dim3(unsigned((p.features + 7) / 8), unsigned(p.rows < 65535 ? p.rows : 65535)),
      .block = dim3(256),
      .stream = how.stream,
      .overlap = how.overlap};
  return p.weight_scale ? launch(plain_kernel<T, __nv_fp8_e4m3>, where, p)
                        : launch(plain_kernel<T, T>, where, p);
}

// A block a row; the second reading comes from the caches.
template <typename T, int N>
__global__ void __launch_bounds__(256) quantize_kernel(QuantizeRowsParams p) {
  __shared__ float shared[8];
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
  __nv_fp8_e4m3* out = static_cast<__nv_fp8_e4m3*>(p.out) + row * p.out_stride;
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  float most = 0.0f;
  for (int i = int(threadIdx.x) * N; i < p.width; i += 256 * N) {
    const auto held = *reinterpret_cast<const Vec<T, N>*>(x + i);
#pragma unroll
    for (int j = 0; j < N; ++j) most = fmaxf(most, fabsf(to_float(held.at[j])));
  }
  most = warp_max(most);
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = most;
  __syncthreads();
#pragma unroll
  for (int w = 0; w < 8; ++w) most = fmaxf(most, shared[w]);
  const float scale = most > 0.0f ? __fmul_rn(most, 1.0f / 448.0f) : 1.0f;
  for (int i = int(threadIdx.x) * N; i < p.width; i += 256 * N) {
    const auto held = *reinterpret_cast<const Vec<T, N>*>(x + i);
    Vec<__nv_fp8_e4m3, N> result;
#pragma unroll
    for (int j = 0; j < N; ++j)
      result.at[j] = from_float<__nv_fp8_e4m3>(__fdiv_rn(to_float(held.at[j]), scale));
    *reinterpret_cast<Vec<__nv_fp8_e4m3, N>*>(out + i) = result;
  }
  if (threadIdx.x == 0) p.scale[row] = scale;
}

template <typename T>
cudaError_t run_quantize(const QuantizeRowsParams& p, const LaunchOptions& how) {
  constexpr int wide = 16 / sizeof(T);
  const bool vectors = p.width % wide == 0 && p.x_stride % wide == 0 && p.out_stride % wide == 0 &&
                       aligned(p.x) && aligned(p.out);
  const Launch where{.grid = dim3(unsigned(p.rows)),
                     .block = dim3(256),
                     .stream = how.stream,
                     .overlap = how.overlap};
  return vectors ? launch(quantize_kernel<T, wide>, where, p)
                 : launch(quantize_kernel<T, 1>, where, p);
}

cudaError_t this_device(Device& device) {
  static thread_local Device known;
  int id = 0;
  cudaError_t status = cudaGetDevice(&id);
  if (status != cudaSuccess) return status;
  if (known.id != id) {
    status =
        cudaDeviceGetAttribute(&known.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
    int shared_of_all = 0;
    if (status == cudaSuccess)
      status =
          cudaDeviceGetAttribute(&shared_of_all, cudaDevAttrMaxSharedMemoryPerMultiprocessor, id);
    if (status == cudaSuccess)
      status = cudaDeviceGetAttribute(&known.multiprocessors, cudaDevAttrMultiProcessorCount, id);
    known.alone_bytes = shared_of_all / 2;
    if (status == cudaSuccess)
      status = compiled_for_clusters(quantize_kernel<float, 1>, &known.clusters);
    if (status != cudaSuccess) return status;
    known.id = id;
  }
  device = known;
  return cudaSuccess;
}

}  // namespace

cudaError_t linear(const LinearParams& p, const LaunchOptions& how) {
  if (p.rows == 0 || p.features == 0) return cudaSuccess;
  const int64_t wide = p.weight_scale ? 16 : 8;  // elements of 16 bytes
  if (p.type != Type::float32 && p.columns % wide == 0 && p.x_stride % wide == 0 &&
      p.weight_stride % wide == 0 && aligned(p.x) && aligned(p.weight)) {
    bool fits = false;
    const cudaError_t status = stream_weights(p, how, &fits);
    if (status != cudaSuccess || fits) return status;
  }
  switch (p.type) {
    case Type::float32:
      return run_plain<float>(p, how);
    case Type::float16:
      return run_plain<__half>(p, how);
    case Type::bfloat16:
      return run_plain<__nv_bfloat16>(p, how);
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t quantize_rows(const QuantizeRowsParams& p, const LaunchOptions& how) {
  if (p.rows == 0) return cudaSuccess;
  switch (p.type) {
    case Type::float32:
      return run_quantize<float>(p, how);
    case Type::float16:
      return run_quantize<__half>(p, how);
    case Type::bfloat16:
      return run_quantize<__nv_bfloat16>(p, how);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace stoker::cuda
