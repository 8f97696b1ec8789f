// What the threads that sample a row share: one block, or a cluster of blocks where rows are few,
// each with a segment of the vocabulary. All that crosses between threads are integers, so neither
// the number of blocks nor the order of addition changes a token.
#pragma once

#include "cuda/common.cuh"
#include "cuda/sample.h"

namespace stoker::cuda::sampling {

inline constexpr int kThreads = 512;
inline constexpr int kWarps = kThreads / kWarp;
inline constexpr int kMaxBlocks = 16;  // of a cluster
inline constexpr int kBins = 4096;
inline constexpr float kBinsAUnit =
    128.0f;  // 32 units of distance from the best; the last bin has what is beyond
inline constexpr int kMaxCandidates = 2048;

struct Words {
  uint64_t at[3];
};

struct Shared {
  unsigned long long histogram[kBins];
  uint64_t candidates[kMaxCandidates];
  uint64_t sorted[kMaxCandidates];
  uint64_t parts[kWarps];
  Words exchanged[2][kMaxBlocks];
  unsigned long long total;
  int num_candidates, token, bin;
};

// Orders by value, then the lower token first: larger is better. Never 0 for a real token.
__device__ __forceinline__ uint64_t key_of(float x, int token) {
  const uint32_t bits = __float_as_uint(x == 0.0f ? 0.0f : x);
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return uint64_t(ordered) << 32 | (0xffffffffu - uint32_t(token));
}
__device__ __forceinline__ float value_of(uint64_t key) {
  const uint32_t ordered = uint32_t(key >> 32);
  return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}
__device__ __forceinline__ int token_of(uint64_t key) { return int(0xffffffffu - uint32_t(key)); }
// exp(difference), difference <= 0, as a multiple of 2^-44: sums of a whole vocabulary fit and are
// exact.
__device__ __forceinline__ unsigned long long weight_of(float difference) {
  return __float2ull_rz(expf(difference) * 0x1p44f);
}
__device__ __forceinline__ int bin_of(float distance) {
  return int(fminf(distance * kBinsAUnit, float(kBins - 1)));
}

__device__ __forceinline__ uint64_t warp_sum64(uint64_t x) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}
__device__ __forceinline__ uint64_t block_max64(uint64_t x, Shared& s) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1)
    x = max(x, __shfl_xor_sync(0xffffffffu, x, offset));
  if (threadIdx.x % kWarp == 0) s.parts[threadIdx.x / kWarp] = x;
  __syncthreads();
  x = s.parts[0];
  for (int w = 1; w < kWarps; ++w) x = max(x, s.parts[w]);
  __syncthreads();
  return x;
}
__device__ __forceinline__ uint64_t block_sum64(uint64_t x, Shared& s) {
  x = warp_sum64(x);
  if (threadIdx.x % kWarp == 0) s.parts[threadIdx.x / kWarp] = x;
  __syncthreads();
  x = 0;
  for (int w = 0; w < kWarps; ++w) x += s.parts[w];
  __syncthreads();
  return x;
}

// The blocks of a row. Every block calls the same methods in the same order.
struct Group {
  Shared& s;
  int blocks, rank;
  int phase = 0;  // the last words may still be read while the next are written

  // Every block's words, in order of rank; `mine` is the same for all threads of a block.
  __device__ __forceinline__ const Words* exchange(const Words& mine) {
    Words* all = s.exchanged[phase];
    phase ^= 1;
    if (int(threadIdx.x) < blocks) {
      Words* to = all + rank;
      if (blocks > 1) to = ptx::cluster_pointer(to, threadIdx.x);
      *to = mine;
    }
    sync();
    return all;
  }
  __device__ __forceinline__ void sync() const {
    if (blocks == 1)
      __syncthreads();
    else
      ptx::cluster_sync();
  }
  __device__ __forceinline__ uint64_t max64(uint64_t x) {
    x = block_max64(x, s);
    if (blocks == 1) return x;
    const Words* all = exchange({{x, 0, 0}});
    for (int b = 0; b < blocks; ++b) x = max(x, all[b].at[0]);
    return x;
  }
  __device__ __forceinline__ uint64_t sum64(uint64_t x) {
    x = block_sum64(x, s);
    if (blocks == 1) return x;
    const Words* all = exchange({{x, 0, 0}});
    x = 0;
    for (int b = 0; b < blocks; ++b) x += all[b].at[0];
    return x;
  }
  // Everybody's s.candidates (s.num_candidates of them) to the first block, as far as they fit; how
  // many there are.
  __device__ __forceinline__ int gather_candidates() {
    __syncthreads();
    const int here = s.num_candidates;
    if (blocks == 1) {
      __syncthreads();
      return here;
    }
    const Words* all = exchange({{uint64_t(here), 0, 0}});
    int found = 0;
    for (int b = 0; b < blocks; ++b) found += int(all[b].at[0]);
    if (found <= kMaxCandidates && rank == 0) {
      int at = here;
      for (int b = 1; b < blocks; ++b) {
        const uint64_t* theirs = ptx::cluster_pointer(s.candidates, b);
        const int count = int(all[b].at[0]);
        for (int i = threadIdx.x; i < count; i += kThreads) s.candidates[at + i] = theirs[i];
        at += count;
      }
      __syncthreads();
    }
    return found;
  }
};

// Philox4x32-10 (Salmon et al., SC 2011) on the counter (position, 0, 0, 0): the first word.
__device__ __forceinline__ uint32_t philox(uint32_t key0, uint32_t key1, uint32_t position) {
  uint32_t c0 = position, c1 = 0, c2 = 0, c3 = 0;
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t low = uint64_t(0xD2511F53u) * c0, high = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(high >> 32) ^ c1 ^ key0;
    c1 = uint32_t(high);
    c2 = uint32_t(low >> 32) ^ c3 ^ key1;
    c3 = uint32_t(low);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c0;
}

}  // namespace stoker::cuda::sampling
