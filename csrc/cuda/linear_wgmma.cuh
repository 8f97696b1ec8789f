// The linear kernel for 17 to 64 rows on Hopper: weights stream through the copy engine into
// shared memory, from where warpgroups multiply 64 features at a time with all rows.
//
// The kSlices blocks of a cluster have one tile of features and a range of columns each, at the
// same places as in linear_kernel.cuh, with the same two chains of sums in a range and the same
// tree over the ranges: the bits are that kernel's, whatever the number of rows. Each block sends
// each other one a part of its sums, straight into its shared memory, where a barrier counts the
// bytes; nobody waits for anything else. Two buffers suffice: who sends a tile's sums has those of
// the tile before from everybody, and they were sent after the one before that was read.
//
// Weights depend on nothing: the ring fills before the kernel ahead in the stream has ended. x
// comes beside the weights chunk by chunk, and stays where a block's columns of it fit into shared
// memory.
#pragma once

#include <cuda.h>

#include "cuda/common.cuh"
#include "cuda/linear.h"
#include "cuda/wgmma.cuh"
#include "cuda/wgmma_products.cuh"

namespace stoker::cuda::linear_wgmma {

inline constexpr int kRanges = 8;       // of columns, as in linear_kernel.cuh
inline constexpr int kChunk = 64;       // columns of a stage
inline constexpr int kRowBytes = 128;   // of a chunk
inline constexpr int kTile = 128;       // features, 64 of each warpgroup
inline constexpr int kConsumers = 256;  // threads
inline constexpr int kMostStages = 14;

struct Params {
  LinearParams op;
  CUtensorMap weights;  // [columns][8][gate, up][features / 8]
  CUtensorMap x;        // [columns][rows][1][1]
  int32_t chunks, units;
  int32_t stages, x_slots, buffers;  // buffers: for other blocks' sums
  bool resident;                     // x stays
};

// Shared memory from a 1,024-byte boundary on.
template <int kRows>
struct Layout {
  static constexpr int kWeightBytes = kTile * kRowBytes;  // of a stage
  static constexpr int kXBytes = kRows * kRowBytes;
  static constexpr int kSumBytes = kTile * kRows * 4;  // of a buffer
  static constexpr int kBarrierBytes = (2 * kMostStages + 2) * 8;
  static constexpr int bytes(int stages, int x_slots, int buffers) {
    return stages * kWeightBytes + x_slots * kXBytes + buffers * kSumBytes + kBarrierBytes + 1024;
  }
};

// Where this block stands in its cluster, and what lies where in its shared memory.
template <int kRows, int kSlices>
struct Place {
  int slice, clusters, first_unit;
  int begin, own;  // chunks of its ranges
  uint32_t weights, x;
  char* sums;                     // of other blocks
  uint32_t full, empty, arrived;  // barriers: of the stages, of the buffers of sums

  __device__ __forceinline__ Place(const Params& p, char* shared) {
    using L = Layout<kRows>;
    slice = int(blockIdx.x) % kSlices;
    clusters = int(gridDim.x) / kSlices;
    first_unit = int(blockIdx.x) / kSlices;
    begin = cut(p, slice * (kRanges / kSlices));
    own = cut(p, (slice + 1) * (kRanges / kSlices)) - begin;
    shared += (1024 - ptx::shared_address(shared) % 1024) % 1024;
    weights = ptx::shared_address(shared);
    x = weights + p.stages * L::kWeightBytes;
    sums = shared + p.stages * L::kWeightBytes + p.x_slots * L::kXBytes;
    full = ptx::shared_address(sums) + p.buffers * L::kSumBytes;
    empty = full + kMostStages * 8;
    arrived = empty + kMostStages * 8;
  }
  static __device__ __forceinline__ int cut(const Params& p, int range) {
    return range * p.chunks / kRanges;
  }
  // By one thread; the block synchronises afterwards.
  __device__ __forceinline__ void init_barriers(const Params& p) const {
    for (int i = 0; i < p.stages; ++i) {
      ptx::mbarrier_init(full + i * 8, 1);
      ptx::mbarrier_init(empty + i * 8, kConsumers / kWarp);
    }
    for (int i = 0; i < 2; ++i) ptx::mbarrier_init(arrived + i * 8, 1);
    ptx::mbarrier_init_fence();
  }
};

// One thread: weights and x of all tiles of this block, chunk after chunk.
template <int kRows, int kSlices>
__device__ __forceinline__ void bring(const Params& p, const Place<kRows, kSlices>& at) {
  using L = Layout<kRows>;
  const int rounds = (p.units - at.first_unit + at.clusters - 1) / at.clusters;
  const int total = rounds * at.own;
  const auto wants_x = [&](int i) { return !p.resident || i < at.own; };
  const auto bring_weights = [&](int i) {
    const int stage = i % p.stages, unit = at.first_unit + i / at.own * at.clusters;
    ptx::mbarrier_arrive_expect(at.full + stage * 8,
                                L::kWeightBytes + (wants_x(i) ? L::kXBytes : 0));
    ptx::tensor_copy_4d(at.weights + stage * L::kWeightBytes, &p.weights, at.full + stage * 8,
                        (at.begin + i % at.own) * kChunk, 0, 0,
                        unit * (kTile / 8) / (p.op.gated ? 2 : 1));
  };
  const auto bring_x = [&](int i) {
    const int stage = i % p.stages;
    if (wants_x(i))
      ptx::tensor_copy_4d(at.x + (p.resident ? i : stage) * L::kXBytes, &p.x, at.full + stage * 8,
                          (at.begin + i % at.own) * kChunk, 0, 0, 0);
  };
  ptx::tensor_map_prefetch(&p.weights);
  ptx::tensor_map_prefetch(&p.x);
  const int ahead = min(p.stages, total);
  for (int i = 0; i < ahead; ++i) bring_weights(i);
  ptx::grid_dependency_wait();
  for (int i = 0; i < ahead; ++i) bring_x(i);
  for (int i = ahead; i < total; ++i) {
    ptx::mbarrier_wait(at.empty + i % p.stages * 8, i / p.stages % 2 ^ 1);
    bring_weights(i);
    bring_x(i);
  }
}

// A warpgroup's way through the ring.
template <typename T, int kRows, int kSlices>
struct Multiplier {
  static constexpr int kSums = kRows / 2;  // of a thread

  const Params& p;
  const Place<kRows, kSlices>& at;
  RingCursor filled = {};

  __device__ __forceinline__ void release(int which) const {
    if (which >= 0 && threadIdx.x % kWarp == 0) ptx::mbarrier_arrive(at.empty + which * 8);
  }
  __device__ __forceinline__ void multiply(float (&total)[kSums], int range) {
    using L = Layout<kRows>;
    float sum[2][kSums];  // of even and odd steps
#pragma unroll
    for (int i = 0; i < kSums; ++i) sum[0][i] = sum[1][i] = 0.0f;
    const int end = at.cut(p, range + 1) - at.begin;
    int last = -1;
    for (int chunk = at.cut(p, range) - at.begin; chunk < end; ++chunk) {
      const int stage = filled.stage;
      ptx::mbarrier_wait(at.full + stage * 8, filled.parity);
      const uint32_t a =
          at.weights + stage * L::kWeightBytes + threadIdx.x / 128 * (kTile / 2 * kRowBytes);
      const uint32_t b = at.x + (p.resident ? chunk : stage) * L::kXBytes;
      ptx::wgmma_fence();
#pragma unroll
      for (int step = 0; step < kChunk / 16; ++step)
        ptx::Product<T, kRows>::add(sum[step % 2], ptx::swizzled_tile(a + step * 32, 0),
                                    ptx::swizzled_tile(b + step * 32, 0));
      ptx::wgmma_commit();
      ptx::wgmma_wait<1>();
      release(last);
      last = stage;
      filled.advance(p.stages);
    }
    ptx::wgmma_wait<0>();
    release(last);
    ptx::pin(sum[0]);
    ptx::pin(sum[1]);
#pragma unroll
    for (int i = 0; i < kSums; ++i) total[i] = sum[0][i] + sum[1][i];
  }
  // The ranges [first, first + kCount), added up as a balanced tree.
  template <int kCount>
  __device__ __forceinline__ void add_ranges(float (&total)[kSums], int first) {
    if constexpr (kCount == 1) {
      multiply(total, first);
    } else {
      add_ranges<kCount / 2>(total, first);
      float right[kSums];
      add_ranges<kCount / 2>(right, first + kCount / 2);
#pragma unroll
      for (int i = 0; i < kSums; ++i) total[i] += right[i];
    }
  }
};

// Pair q of a thread's sums: row 8 (q / 2) + 2 (lane % 4) + q % 2 of x, features lane / 4 and 8
// further on of its warp's sixteen, or a gate and its up.
__device__ __forceinline__ constexpr int sum_of_pair(int q, int half) {
  return 4 * (q / 2) + q % 2 + 2 * half;
}
template <typename T>
__device__ __forceinline__ void write_pair(const LinearParams& op, int unit, int q, float low,
                                           float high) {
  const int lane = threadIdx.x % kWarp, row = 8 * (q / 2) + 2 * (lane & 3) + q % 2;
  if (row >= op.rows) return;
  const int sixteen = unit * (kTile / 16) + int(threadIdx.x) / kWarp;
  T* out = static_cast<T*>(op.out) + row * op.out_stride;
  const auto biased = [&](float y, int feature) {
    return from_float<T>(op.bias ? y + to_float(static_cast<const T*>(op.bias)[feature]) : y);
  };
  if (op.gated) {
    // As two ops do it: the product is rounded before the activation.
    const int feature = sixteen * 8 + lane / 4;
    if (feature >= op.features) return;
    const float gate = to_float(biased(low, feature)), up = to_float(from_float<T>(high));
    out[feature] = from_float<T>(gate / (1.0f + __expf(-gate)) * up);
  } else {
    const int feature = sixteen * 16 + lane / 4;
    if (feature < op.features) out[feature] = biased(low, feature);
    if (feature + 8 < op.features) out[feature + 8] = biased(high, feature + 8);
  }
}

// Sums on their way between the blocks of a cluster: each thread's pairs of all slices end with the
// thread of its number in the block that adds them up.
template <typename T, int kRows, int kSlices>
struct Exchange {
  static constexpr int kPart = kRows / 2 / kSlices;  // sums of a thread for one block
  static constexpr int kPiece = kPart < 4 ? kPart : 4;

  const Params& p;
  const Place<kRows, kSlices>& at;

  __device__ __forceinline__ int buffer(int round) const { return round & (p.buffers - 1); }
  __device__ __forceinline__ char* place(int round, int from, int piece) const {
    return at.sums + buffer(round) * Layout<kRows>::kSumBytes +
           ((from * (kPart / kPiece) + piece) * kConsumers + int(threadIdx.x)) * kPiece * 4;
  }
  __device__ __forceinline__ void send(const float (&total)[kRows / 2], int round) const {
    const uint32_t barrier = at.arrived + buffer(round) * 8;
    if (threadIdx.x == 0) ptx::mbarrier_arrive_expect(barrier, Layout<kRows>::kSumBytes);
#pragma unroll
    for (int to = 0; to < kSlices; ++to)
#pragma unroll
      for (int piece = 0; piece < kPart / kPiece; ++piece) {
        float part[kPiece];
#pragma unroll
        for (int i = 0; i < kPiece; ++i)
          part[i] = total[sum_of_pair((to * kPart + piece * kPiece + i) / 2, i % 2)];
        ptx::send(place(round, at.slice, piece), part, uint32_t(to), barrier);
      }
  }
  __device__ __forceinline__ void finish(int unit, int round) const {
    ptx::mbarrier_wait_cluster(at.arrived + buffer(round) * 8, round / p.buffers & 1);
#pragma unroll
    for (int piece = 0; piece < kPart / kPiece; ++piece) {
      Vec<float, kPiece> part[kSlices];
#pragma unroll
      for (int from = 0; from < kSlices; ++from)
        part[from] = *reinterpret_cast<const Vec<float, kPiece>*>(place(round, from, piece));
#pragma unroll
      for (int width = 1; width < kSlices; width *= 2)
#pragma unroll
        for (int from = 0; from < kSlices; from += 2 * width)
#pragma unroll
          for (int i = 0; i < kPiece; ++i) part[from].at[i] += part[from + width].at[i];
#pragma unroll
      for (int i = 0; i < kPiece; i += 2)
        write_pair<T>(p.op, unit, (at.slice * kPart + piece * kPiece + i) / 2, part[0].at[i],
                      part[0].at[i + 1]);
    }
  }
};

template <typename T, int kRows, int kSlices>
__global__ void __launch_bounds__(kConsumers + kWarp, 1)
    linear_wgmma_kernel(const __grid_constant__ Params p) {
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ char shared[];
  const Place<kRows, kSlices> at(p, shared);
  if (threadIdx.x == 0) at.init_barriers(p);
  __syncthreads();
  // The others' barriers must stand before anything is sent.
  if (kSlices > 1) ptx::cluster_arrive_relaxed();
  ptx::grid_dependency_launch();  // what runs before the wait reads weights only
  if (threadIdx.x >= kConsumers) {
    if (threadIdx.x == kConsumers) bring(p, at);
    __syncwarp();
    if (kSlices > 1) ptx::cluster_wait();
    return;
  }
  ptx::grid_dependency_wait();
  if (kSlices > 1) ptx::cluster_wait();
  Multiplier<T, kRows, kSlices> multiplier{p, at};
  constexpr int kOwnRanges = kRanges / kSlices;
  int unfinished = -1, round = 0;
  for (int unit = at.first_unit; unit < p.units; unit += at.clusters, ++round) {
    float total[kRows / 2];
    multiplier.template add_ranges<kOwnRanges>(total, at.slice * kOwnRanges);
    if constexpr (kSlices == 1) {
#pragma unroll
      for (int q = 0; q < kRows / 4; ++q)
        write_pair<T>(p.op, unit, q, total[sum_of_pair(q, 0)], total[sum_of_pair(q, 1)]);
    } else {
      // A tile is finished when the next one's products are there: nobody waits for another's
      // weights.
      const Exchange<T, kRows, kSlices> exchange{p, at};
      if (unfinished >= 0) exchange.finish(unfinished, round - 1);
      exchange.send(total, round);
      unfinished = unit;
    }
  }
  if constexpr (kSlices > 1)
    if (unfinished >= 0) Exchange<T, kRows, kSlices>{p, at}.finish(unfinished, round - 1);
#endif
}

}  // namespace stoker::cuda::linear_wgmma
