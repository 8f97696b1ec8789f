// The streaming kernel of linear layers for few rows. Weights are the wide operand of the tensor
// cores (16 features) and rows of x the narrow one (8), so that one row costs what eight do.
//
// A row of weights is cut into kRanges ranges, at places that follow from its length alone. A
// warp multiplies 16 features by one range and the ranges' sums are added as a balanced tree: a row
// of the result has the same bits whatever batch it came in. Each warp copies its own weights
// (cp.async, kStages chunks deep) and never waits for another inside a unit. Weights depend on
// nothing: the ring fills before the kernel ahead in the stream has ended.
//
// x lies whole in shared memory. Where it is too large for that, the blocks of a cluster share the
// ranges of one unit, each with its slice of x, and read each other's sums (sm_90).
#pragma once

#include "cuda/common.cuh"
#include "cuda/linear.h"
#include "cuda/linear_launch.cuh"

namespace stoker::cuda::linear_rows {

inline constexpr int kRanges = 8;
inline constexpr int kWarps = kRanges;
inline constexpr int kThreads = kWarps * kWarp;
inline constexpr int kUnitRows = 16;     // features of a warp's tile
inline constexpr int kChunkBytes = 128;  // of a row of weights: a step of the ring
inline constexpr int kStageBytes = kUnitRows * kChunkBytes;
inline constexpr int kSumPitch = 20;  // floats of a row of 16 sums: no bank conflict when written

// A matrix of weights and how it is cut: units of kUnitRows * slices rows go round the clusters.
struct Weights {
  const void* data;
  int64_t stride;  // bytes
  int32_t row_bytes, chunks, features;
  int32_t units, slices;  // slices: blocks of a cluster
  bool gated;             // rows of a gate, then as many of up
};

struct KernelParams {
  LinearParams op;
  Weights weights;
  int32_t x_pitch;  // bytes of a row of x in shared memory
};

constexpr int ring_bytes(int stages) { return kWarps * stages * kStageBytes; }
constexpr int sum_bytes(int rows) { return 2 * kWarps * rows * kSumPitch * 4; }

// A warp's way through its part of the weights: unit after unit, chunk after chunk of its range.
struct Cursor {
  int unit, chunk;
  int begin, end;       // the range
  int tile;             // of the unit
  const char* from[4];  // this lane's 16 bytes of rows lane / 8 + 0, 4, 8, 12, at chunk 0

  __device__ __forceinline__ void start(const Weights& w, int warp, int lane) {
    const int ranges = kRanges / w.slices;
    const int range = int(blockIdx.x) % w.slices * ranges + warp % ranges;
    unit = int(blockIdx.x) / w.slices;
    tile = warp / ranges;
    begin = chunk = range * w.chunks / kRanges;
    end = (range + 1) * w.chunks / kRanges;
    seek(w, lane);
  }
  // A gated tile has 8 rows of the gate and the same 8 of up, so that a thread ends with both.
  __device__ __forceinline__ void seek(const Weights& w, int lane) {
    const int feature = (unit * w.slices + tile) * (w.gated ? 8 : 16) + (lane >> 3);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = w.gated ? min(feature + i % 2 * 4, w.features - 1) + i / 2 * w.features
                              : min(feature + i * 4, w.features - 1);
      from[i] = static_cast<const char*>(w.data) + row * w.stride + (lane & 7) * 16;
    }
  }
  __device__ __forceinline__ bool done(const Weights& w) const {
    return unit >= w.units || begin >= end;
  }
  __device__ __forceinline__ void advance(const Weights& w, int clusters, int lane) {
    if (++chunk < end) return;
    chunk = begin;
    unit += clusters;
    seek(w, lane);
  }
};

template <typename T, bool kFp8, int kTiles>
struct Sums {
  float at[kTiles][2][4];  // even and odd steps: two chains

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int i = 0; i < 8; ++i) at[tile][i / 4][i % 4] = 0.0f;
  }

  // One chunk of 16 rows of weights, times the chunk of x whose rows this lane reads at x_rows.
  __device__ __forceinline__ void add(uint32_t weights, const uint32_t (&x_rows)[kTiles],
                                      uint32_t x_offset, int lane) {
    uint32_t a[4][4];
    const uint32_t row = weights + (lane & 15) * kChunkBytes;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      ptx::ldmatrix_x4(a[i], row + (((2 * i + (lane >> 4)) ^ (lane & 7)) << 4));
    if constexpr (kFp8) {
      // Every e4m3 value is exact in fp16. 16 bytes are a step; both operands have the same order
      // of elements within it.
      uint32_t wide[8][4];
#pragma unroll
      for (int step = 0; step < 8; ++step) {
        const uint32_t low = a[step / 2][step % 2 * 2], high = a[step / 2][step % 2 * 2 + 1];
        wide[step][0] = half2_of_e4m3(low & 0xffffu);
        wide[step][1] = half2_of_e4m3(high & 0xffffu);
        wide[step][2] = half2_of_e4m3(low >> 16);
        wide[step][3] = half2_of_e4m3(high >> 16);
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t b[4];
          ptx::ldmatrix_x4(b, x_rows[tile] + x_offset + half * 64);
#pragma unroll
          for (int i = 0; i < 4; ++i)
            ptx::mma_m16n8k16<__half>(at[tile][i % 2], wide[4 * half + i],
                                      half2_of_e4m3(b[i] & 0xffffu), half2_of_e4m3(b[i] >> 16));
        }
      }
    } else {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          uint32_t b[4];
          ptx::ldmatrix_x4(b, x_rows[tile] + x_offset + half * 64);
          ptx::mma_m16n8k16<T>(at[tile][0], a[2 * half], b[0], b[1]);
          ptx::mma_m16n8k16<T>(at[tile][1], a[2 * half + 1], b[2], b[3]);
        }
      }
    }
  }

  // To shared memory: [rows][kSumPitch].
  __device__ __forceinline__ void put(float* to, int rows, int lane) const {
    const int feature = lane >> 2;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = tile * 8 + 2 * (lane & 3) + i % 2;
        if (row < rows) to[row * kSumPitch + feature + i / 2 * 8] = at[tile][0][i] + at[tile][1][i];
      }
    }
  }
};

// x [rows, this slice] to shared memory by the whole block, zeros past the end.
__device__ __forceinline__ void load_x(char* to, int pitch, const char* from, int64_t stride,
                                       int rows, int begin, int end, int row_bytes) {
  const int share = rows == 1 ? kThreads : rows == 2 ? kThreads / 2 : rows <= 4 ? 64 : kWarp;
  constexpr int kAhead = 8;
  for (int row = threadIdx.x / share; row < rows; row += kThreads / share) {
    const char* x = from + row * stride;
    char* line = to + row * pitch - begin;
    for (int at = begin + int(threadIdx.x) % share * 16; at < end; at += kAhead * share * 16) {
      uint4 held[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int byte = at + i * share * 16;
        held[i] = make_uint4(0, 0, 0, 0);
        if (byte < min(end, row_bytes)) held[i] = __ldcg(reinterpret_cast<const uint4*>(x + byte));
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int byte = at + i * share * 16;
        if (byte < end) *reinterpret_cast<uint4*>(line + byte) = held[i];
      }
    }
  }
}

template <typename T, bool kFp8, int kTiles, int kStages>
__global__ void __launch_bounds__(kThreads, kTiles <= 4 ? 2 : 1)
    linear_kernel(const __grid_constant__ KernelParams p) {
  extern __shared__ __align__(128) char shared[];
  const LinearParams& op = p.op;
  const Weights& w = p.weights;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int rows = int(op.rows);
  float* sums = reinterpret_cast<float*>(shared + ring_bytes(kStages));
  char* x_shared = shared + ring_bytes(kStages) + sum_bytes(rows);
  const uint32_t ring = ptx::shared_address(shared) + warp * kStages * kStageBytes;

  const int slices = w.slices, slice = int(blockIdx.x) % slices;
  const int clusters = int(gridDim.x) / slices;
  const int ranges = kRanges / slices;  // of the block
  const int slice_begin = slice * ranges * w.chunks / kRanges;
  const int slice_end = (slice + 1) * ranges * w.chunks / kRanges;

  Cursor copied;
  copied.start(w, warp, lane);
  const int begin = copied.begin, end = copied.end;
  uint32_t to[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = (lane >> 3) + 4 * i;
    to[i] = ring + row * kChunkBytes + (((lane & 7) ^ (row & 7)) << 4);
  }
  // x without slices: each warp brings its own range, chunk by chunk beside its weights.
  const char* x_from = static_cast<const char*>(op.x);
  const int64_t x_stride = op.x_stride * (kFp8 ? 1 : 2);
  int x_chunk = end;  // none is due yet
  auto issue_x = [&] {
    if (x_chunk >= end) return;
    for (int i = lane; i < rows * 8; i += kWarp) {
      const int row = i >> 3, byte = x_chunk * kChunkBytes + (i & 7) * 16;
      ptx::cp_async16(ptx::shared_address(x_shared) + row * p.x_pitch + byte,
                      x_from + row * x_stride + byte, byte < w.row_bytes);
    }
    ++x_chunk;
  };
  auto issue = [&](int stage) {
    if (!copied.done(w)) {
      const int at = copied.chunk * kChunkBytes;
      const bool valid = at + (lane & 7) * 16 < w.row_bytes;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        ptx::cp_async16(to[i] + stage * kStageBytes, copied.from[i] + at, valid);
      copied.advance(w, clusters, lane);
    }
    issue_x();
    ptx::cp_async_commit();
  };

  // What runs before the wait reads weights only, so the kernel after may start at any time.
  ptx::grid_dependency_launch();
#pragma unroll 1
  for (int stage = 0; stage < kStages; ++stage) issue(stage);
  ptx::grid_dependency_wait();
  if (slices == 1) {
    // A group of copies each, as the ring's: the loop's wait for a chunk of weights is one for x
    // too.
    x_chunk = begin;
    for (int stage = 0; stage < kStages; ++stage) {
      issue_x();
      ptx::cp_async_commit();
    }
  } else {
    load_x(x_shared, p.x_pitch, x_from, x_stride, rows, slice_begin * kChunkBytes,
           slice_end * kChunkBytes, w.row_bytes);
    __syncthreads();
  }
  uint32_t x_rows[kTiles];  // rows past the last are copies of it; nobody looks at their sums
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
    x_rows[i] = ptx::shared_address(x_shared) + min(i * 8 + (lane & 7), rows - 1) * p.x_pitch +
                (lane >> 3) * 16 - slice_begin * kChunkBytes;

  // Block `slice` of the cluster adds up the unit's tile of that number.
  auto finish = [&](int unit, const float* parts) {
    const int width = w.gated ? kUnitRows / 2 : kUnitRows;  // features of a tile
    const int first = (unit * slices + slice) * width;
    for (int i = threadIdx.x; i < width * rows; i += kThreads) {
      const int row = w.gated ? i >> 3 : i >> 4, feature = i & (width - 1);
      if (first + feature >= op.features) continue;
      auto total = [&](int column) {
        float part[kRanges];
#pragma unroll
        for (int r = 0; r < kRanges; ++r) {
          const float* from =
              parts + ((slice * ranges + r % ranges) * rows + row) * kSumPitch + column;
          part[r] = slices == 1 ? *from : ptx::load_cluster(from, uint32_t(r / ranges));
        }
        return ((part[0] + part[1]) + (part[2] + part[3])) +
               ((part[4] + part[5]) + (part[6] + part[7]));
      };
      auto scaled = [&](float sum, int weight_row) {
        if constexpr (kFp8) sum = sum * op.x_scale[row] * op.weight_scale[weight_row];
        return sum;
      };
      float y = scaled(total(feature), first + feature);
      if (op.bias) y += to_float(static_cast<const T*>(op.bias)[first + feature]);
      if (w.gated) {
        // As two ops do it: the product is rounded before the activation.
        const float gate = to_float(from_float<T>(y));
        const float up =
            to_float(from_float<T>(scaled(total(feature + 8), op.features + first + feature)));
        y = gate / (1.0f + __expf(-gate)) * up;
      }
      static_cast<T*>(op.out)[row * op.out_stride + first + feature] = from_float<T>(y);
    }
  };

  int stage = 0, buffer = 0, unfinished = -1;
  const int buffer_size = kWarps * rows * kSumPitch;
  for (int unit = int(blockIdx.x) / slices; unit < w.units; unit += clusters) {
    Sums<T, kFp8, kTiles> acc;
    acc.clear();
    for (int chunk = begin; chunk < end; ++chunk) {
      ptx::cp_async_wait<kStages - 1>();
      __syncwarp();
      acc.add(ring + stage * kStageBytes, x_rows, chunk * kChunkBytes, lane);
      __syncwarp();
      issue(stage);
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    // Sums lie in two buffers: who writes the second has read the first. A cluster's blocks meet a
    // unit later, so that none waits for another's weights.
    if (unfinished >= 0) {
      ptx::cluster_wait();
      finish(unfinished, sums + (buffer ^ 1) * buffer_size);
    }
    acc.put(sums + buffer * buffer_size + warp * rows * kSumPitch, rows, lane);
    if (slices == 1) {
      __syncthreads();
      finish(unit, sums + buffer * buffer_size);
    } else {
      ptx::cluster_arrive();
      unfinished = unit;
    }
    buffer ^= 1;
  }
  ptx::cp_async_wait<0>();
  if (slices > 1) {
    if (unfinished >= 0) {
      ptx::cluster_wait();
      finish(unfinished, sums + (buffer ^ 1) * buffer_size);
    }
    ptx::cluster_arrive();  // nobody leaves while its sums are read
    ptx::cluster_wait();
  }
}

// Launches on as many clusters as the device runs at once with a block a multiprocessor; asks the
// device once a thread.
template <typename T, bool kFp8, int kTiles, int kStages>
cudaError_t run_tiles(const KernelParams& p, Launch where) {
  const auto kernel = linear_kernel<T, kFp8, kTiles, kStages>;
  static thread_local int known_device = -1;
  static thread_local int clusters_of[kRanges + 1];  // by slices, 0: not asked yet
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  int& clusters = clusters_of[p.weights.slices];
  if (known_device != device || clusters == 0) {
    int most = 0;
    status = allow_all_shared_memory(kernel, device, &most);
    if (status != cudaSuccess) return status;
    if (known_device != device)
      for (int& count : clusters_of) count = 0;
    status = p.weights.slices == 1
                 ? cudaDeviceGetAttribute(&clusters, cudaDevAttrMultiProcessorCount, device)
                 : clusters_at_once(kernel, p.weights.slices, kThreads, most, &clusters);
    if (status != cudaSuccess) return status;
    known_device = device;
  }
  const Weights& w = p.weights;
  where.grid = dim3(unsigned(w.slices * (w.units < clusters ? w.units : clusters)));
  return launch(kernel, where, p);
}

template <typename T, bool kFp8, int kStages>
cudaError_t run_stages(const KernelParams& p, const Launch& where) {
  if (p.op.rows <= 8) return run_tiles<T, kFp8, 1, kStages>(p, where);
  if (p.op.rows <= 16) return run_tiles<T, kFp8, 2, kStages>(p, where);
  if (p.op.rows <= 32) return run_tiles<T, kFp8, 4, kStages>(p, where);
  return run_tiles<T, kFp8, 8, kStages>(p, where);
}

}  // namespace stoker::cuda::linear_rows
