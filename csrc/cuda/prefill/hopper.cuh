// PTX that only the Hopper prefill kernel needs, beside cuda/ptx.cuh: barriers among some warps and
// the hand-over of registers between warpgroups. The warpgroup matrix instructions are in
// wgmma.cuh.
#pragma once

#include <cstdint>

namespace stoker::cuda::ptx {

// Waits until `threads` threads have come to barrier `id` (1 to 15), by sync or arrive.
__device__ __forceinline__ void named_barrier_sync(uint32_t id, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_barrier_arrive(uint32_t id, uint32_t threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Sets the registers of each thread of this warpgroup; what one gives another may take.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace stoker::cuda::ptx
