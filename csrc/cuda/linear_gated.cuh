// The kernel of gated linear layers for 65 to 256 rows on Hopper: out = silu(x gate') * (x up'),
// by tiles of all rows and some features, whose width is chosen so that the tiles go up in the
// multiprocessors.
//
// A warpgroup multiplies 64 rows of x with a tile's weights, both from a ring in shared memory that
// one thread fills through the copy engine. The `share` blocks of a cluster have tiles side by
// side: each brings its part of x and the copy engine delivers it to all of them, since with many
// rows it is what L2 can deliver that runs out.
//
// Weights depend on nothing: the ring fills with them before the kernel ahead in the stream has
// ended.
#pragma once

#include <cuda.h>

#include "cuda/common.cuh"
#include "cuda/linear_gated.h"
#include "cuda/wgmma.cuh"
#include "cuda/wgmma_products.cuh"

namespace stoker::cuda::linear_gated {

inline constexpr int kChunk = 64;      // columns of a stage
inline constexpr int kRowBytes = 128;  // of a chunk
inline constexpr int kGroupRows = 64;  // of a warpgroup
inline constexpr int kGroupThreads = 128;
inline constexpr int kMostStages = 16;
inline constexpr int kBarrierBytes = 2 * kMostStages * 8;

struct Params {
  LinearParams op;
  CUtensorMap weights;  // [columns][8][gate, up][features / 8]
  CUtensorMap x;        // [columns][rows][1][1]
  int32_t chunks, rounds, stages;
  int32_t groups;  // warpgroups that multiply
  int32_t share;
};

constexpr int most_threads(int width) {
  return most_rows(width) / kGroupRows * kGroupThreads + kWarp;
}

// What lies where in shared memory, from a 1,024-byte boundary on. kWidth: weight rows of a tile.
template <int kWidth>
struct Place {
  static constexpr int kWeightBytes = kWidth * kRowBytes;  // of a stage

  uint32_t weights, x, x_bytes;  // x_bytes: of a stage
  uint32_t full, empty;          // barriers of the stages

  __device__ __forceinline__ Place(const Params& p, const char* memory) {
    x_bytes = uint32_t(p.groups * kGroupRows * kRowBytes);
    weights = (ptx::shared_address(memory) + 1023) / 1024 * 1024;
    x = weights + p.stages * kWeightBytes;
    full = x + p.stages * x_bytes;
    empty = full + kMostStages * 8;
  }
  // By one thread; the cluster synchronises afterwards.
  __device__ __forceinline__ void init_barriers(const Params& p) const {
    for (int i = 0; i < p.stages; ++i) {
      ptx::mbarrier_init(full + i * 8, 1);
      ptx::mbarrier_init(empty + i * 8, uint32_t(p.groups * (kGroupThreads / kWarp) * p.share));
    }
    ptx::mbarrier_init_fence();
  }
};

// A warp, of which one thread brings the weights and this block's part of x, chunk after chunk.
template <int kWidth>
__device__ __forceinline__ void bring(const Params& p, const Place<kWidth>& at) {
  constexpr int kWeightBytes = Place<kWidth>::kWeightBytes;
  const bool chosen = threadIdx.x % kWarp == 0;
  const int total = p.rounds * p.chunks, ahead = min(p.stages, total);
  const int part = int(blockIdx.x) % p.share, part_rows = p.groups * kGroupRows / p.share;
  const auto bring_weights = [&](int stage, int round, int chunk) {
    const int tile = int(blockIdx.x) + round * int(gridDim.x);
    ptx::mbarrier_arrive_expect(at.full + stage * 8, kWeightBytes + at.x_bytes);
    ptx::tensor_copy_4d(at.weights + stage * kWeightBytes, &p.weights, at.full + stage * 8,
                        chunk * kChunk, 0, 0, tile * (kWidth / 16));
  };
  const auto bring_x = [&](int stage, int chunk) {
    const uint32_t to = at.x + stage * at.x_bytes + part * part_rows * kRowBytes;
    if (p.share == 1)
      ptx::tensor_copy_4d(to, &p.x, at.full + stage * 8, chunk * kChunk, 0, 0, 0);
    else
      ptx::tensor_copy_4d_to(uint16_t((1 << p.share) - 1), to, &p.x, at.full + stage * 8,
                             chunk * kChunk, part * part_rows, 0, 0);
  };
  if (chosen) {
    ptx::tensor_map_prefetch(&p.weights);
    ptx::tensor_map_prefetch(&p.x);
    for (int i = 0; i < ahead; ++i) bring_weights(i, i / p.chunks, i % p.chunks);
  }
  __syncwarp();
  ptx::grid_dependency_wait();
  ptx::cluster_wait();  // the others' barriers stand
  if (chosen) {
    for (int i = 0; i < ahead; ++i) bring_x(i, i % p.chunks);
    RingCursor free;
    int round = ahead / p.chunks, chunk = ahead % p.chunks;
    for (int i = ahead; i < total; ++i) {
      ptx::mbarrier_wait(at.empty + free.stage * 8, free.parity);
      bring_weights(free.stage, round, chunk);
      bring_x(free.stage, chunk);
      free.advance(p.stages);
      if (++chunk == p.chunks) {
        chunk = 0;
        ++round;
      }
    }
  }
  __syncwarp();
}

// A warpgroup's way through the ring.
template <typename T, int kWidth>
struct Multiplier {
  const Params& p;
  const Place<kWidth>& at;
  RingCursor filled = {};

  // To everybody who brings something into that stage of this block.
  __device__ __forceinline__ void release(int which) const {
    const int lane = threadIdx.x % kWarp;
    if (which < 0 || lane >= p.share) return;
    if (p.share == 1)
      ptx::mbarrier_arrive(at.empty + which * 8);
    else
      ptx::mbarrier_arrive_at(at.empty + which * 8, uint32_t(lane));
  }
  __device__ __forceinline__ void multiply(float (&sum)[kWidth / 2]) {
    const uint32_t group = threadIdx.x / kGroupThreads * (kGroupRows * kRowBytes);
    int last = -1;
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
      const int stage = filled.stage;
      ptx::mbarrier_wait(at.full + stage * 8, filled.parity);
      const uint32_t a = at.x + stage * at.x_bytes + group;
      const uint32_t b = at.weights + stage * Place<kWidth>::kWeightBytes;
      ptx::wgmma_fence();
#pragma unroll
      for (int step = 0; step < kChunk / 16; ++step)
        ptx::Product<T, kWidth>::add(sum, ptx::swizzled_tile(a + step * 32, 0),
                                     ptx::swizzled_tile(b + step * 32, 0), chunk > 0 || step > 0);
      ptx::wgmma_commit();
      ptx::wgmma_wait<1>();
      release(last);
      last = stage;
      filled.advance(p.stages);
    }
    ptx::wgmma_wait<0>();
    release(last);
    ptx::pin(sum);
  }
};

// Writes what a thread has of a tile. Of each 16 weight rows (8 of the gate, then their 8 of up) it
// has features 2 (lane % 4) and the next, in two rows 8 apart.
template <typename T, int kWidth>
struct Writer {
  const LinearParams& op;
  const float (&sum)[kWidth / 2];
  int64_t row;
  int pair;

  __device__ __forceinline__ Writer(const LinearParams& params, const float (&sums)[kWidth / 2])
      : op(params), sum(sums) {
    const int lane = threadIdx.x % kWarp;
    row = int(threadIdx.x) / kWarp * 16 + lane / 4;
    pair = lane % 4;
  }
  // The two features of sixteen `i` in row `row` + 8 `half`. As two ops do it: the product is
  // rounded before the activation. Rows that are not there are zeros, and a division of zero takes
  // ten times as long.
  __device__ __forceinline__ uint32_t activated(int i, int half) const {
    if (row + 8 * half >= op.rows) return 0;
    Vec<T, 2> two;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float gate = to_float(from_float<T>(sum[8 * i + 2 * half + j]));
      const float up = to_float(from_float<T>(sum[8 * i + 4 + 2 * half + j]));
      two.at[j] = from_float<T>(gate / (1.0f + __expf(-gate)) * up);
    }
    return *reinterpret_cast<const uint32_t*>(&two);
  }
  template <typename Words>
  __device__ __forceinline__ void write(int half, int feature, Words words) const {
    if (row + 8 * half < op.rows && feature < op.features)
      *reinterpret_cast<Words*>(static_cast<T*>(op.out) + (row + 8 * half) * op.out_stride +
                                feature) = words;
  }
  __device__ __forceinline__ void write_tile(int tile) const {
    constexpr int kSixteens = kWidth / 16;
    const int first = tile * kSixteens * 8, odd = pair % 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // Of two sixteens neighbours exchange halves, so that 32 bytes of a row are written at once.
#pragma unroll
      for (int i = 0; i + 1 < kSixteens; i += 2) {
        const uint32_t low = activated(i, half), high = activated(i + 1, half);
        const uint32_t other = __shfl_xor_sync(0xffffffff, odd ? low : high, 1);
        write(half, first + (i + odd) * 8 + (pair - odd) * 2,
              odd ? make_uint2(other, high) : make_uint2(low, other));
      }
      if constexpr (kSixteens % 2 != 0)
        write(half, first + (kSixteens - 1) * 8 + pair * 2, activated(kSixteens - 1, half));
    }
  }
};

template <typename T, int kWidth>
__global__ void __launch_bounds__(most_threads(kWidth), 1)
    linear_gated_kernel(const __grid_constant__ Params p) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ char memory[];
  const Place<kWidth> at(p, memory);
  if (threadIdx.x == 0) at.init_barriers(p);
  __syncthreads();
  ptx::cluster_arrive_relaxed();
  ptx::grid_dependency_launch();  // what runs before the wait reads weights only
  if (int(threadIdx.x) >= p.groups * kGroupThreads) {
    bring(p, at);
  } else {
    ptx::grid_dependency_wait();
    ptx::cluster_wait();
    Multiplier<T, kWidth> multiplier{p, at};
    for (int round = 0; round < p.rounds; ++round) {
      float sum[kWidth / 2];
      multiplier.multiply(sum);
      Writer<T, kWidth>(p.op, sum).write_tile(int(blockIdx.x) + round * int(gridDim.x));
    }
  }
  // Nobody leaves while others still send here.
  ptx::cluster_arrive_relaxed();
  ptx::cluster_wait();
#endif
}

}  // namespace stoker::cuda::linear_gated
