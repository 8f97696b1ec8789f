// What all uses of Hopper's warpgroup matrix instructions share: order, waiting, and how a tile in
// shared memory is told to them. The products themselves are with the kernels, by their shapes.
//
// Accumulator i of a thread: row 16 * warp + lane / 4 + 8 * (i / 2 % 2), column 8 * (i / 4) + 2 *
// (lane % 4) + i % 2.
#pragma once

#include <cstdint>

namespace stoker::cuda {

// A place in a ring of stages and the parity of its current round.
struct RingCursor {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

}  // namespace stoker::cuda

namespace stoker::cuda::ptx {

// Accumulators and A registers written by ordinary instructions become visible to the instructions
// that follow.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most kPending committed groups are unfinished.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving uses of the accumulators above the wait before it.
template <int kCount>
__device__ __forceinline__ void pin(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}

// A tile in shared memory whose rows are 128 bytes, swizzled by 128 bytes (16-byte chunk c of row r
// lies at chunk c ^ (r % 8)), 1024-byte aligned; 8 rows are 1024 bytes. `address` may point to a
// 32-byte step inside the first row. column_group_bytes: distance of the next 64 columns, for an
// operand read across its rows (transposed); else unused.
__device__ __forceinline__ uint64_t swizzled_tile(uint32_t address, uint32_t column_group_bytes) {
  constexpr uint64_t kSwizzle128 = 1ull << 62;
  constexpr uint64_t kEightRows = static_cast<uint64_t>(1024 >> 4) << 32;
  return kSwizzle128 | kEightRows |
         (static_cast<uint64_t>((column_group_bytes >> 4) & 0x3fff) << 16) |
         ((address >> 4) & 0x3fff);
}

}  // namespace stoker::cuda::ptx
