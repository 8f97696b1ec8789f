// The Hopper prefill kernel. One warpgroup brings data: a warp hands out units of work and brings
// Q, one brings K and one V, all by bulk tensor copies. Two warpgroups of 64 rows each multiply
// (wgmma) and take turns, so that one's softmax runs under the other's products (FlashAttention-3's
// schedule, Shah et al. 2024, here over a paged cache). A fixed grid takes units from a queue,
// heaviest first; a unit is claimed when the last K tile of the one before is asked for, so that
// short units overlap and long ones go to whoever is free.
//
// Shared memory, all in 128-byte rows swizzled by 128 bytes, 64 columns a group:
//   q  [stage][column group][128 rows]            also the way out of the result
//   k  [stage][column group][128 positions]       rows along the summed dimension of Q K^T
//   v  [stage][column group][128 positions]       read transposed as B of P V
#pragma once

#include "cuda/prefill/wgmma_consumer.cuh"
#include "cuda/prefill/wgmma_producer.cuh"

namespace stoker::cuda::prefill {

inline constexpr int kWgmmaThreads = 384;

template <typename T, int kHeadDim, bool kSoftCap>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    wgmma_kernel(const __grid_constant__ Params p, const __grid_constant__ TensorMaps maps) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Shape = WgmmaShape<kHeadDim>;
  extern __shared__ char raw[];
  const uint32_t raw_address = ptx::shared_address(raw);
  const uint32_t base = (raw_address + 1023) & ~1023u;
  char* shared = raw + (base - raw_address);
  if (threadIdx.x == 0) WgmmaBarriers<Shape>::init(base);
  __syncthreads();
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  if (static_cast<int>(blockIdx.x) >= p.item_range[2]) {  // this multiprocessor is for decode rows
    if (threadIdx.x == 0) leave_queue(p);
    return;
  }
  const int warp = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x) / 32, 0);
  if (warp < 4) {
    ptx::give_registers<24>();
    if (warp == 0) {
      if (threadIdx.x == 0) hand_out_units<Shape>(p, maps, shared, base);
    } else if (warp == 1) {
      bring_kv<Shape, true>(p, maps, shared, base);
    } else if (warp == 2) {
      bring_kv<Shape, false>(p, maps, shared, base);
    }
  } else {
    ptx::take_registers<240>();
    WgmmaConsumer<T, kHeadDim, kSoftCap>(p, shared, base, warp / 4 - 1).run();
  }
#endif
}

}  // namespace stoker::cuda::prefill
