// How the warps of the Hopper prefill kernel share memory: the layout, the barriers and the ring of
// units of work.
#pragma once

#include <cuda.h>

#include "cuda/common.cuh"
#include "cuda/prefill/params.cuh"
#include "cuda/wgmma.cuh"

namespace stoker::cuda::prefill {

struct TensorMaps {
  CUtensorMap q, k, v;
};

inline constexpr int kConsumerWarps = 8;
inline constexpr int kUnitSlots = 3;

template <int kHeadDimension>
struct WgmmaShape {
  static constexpr int kHeadDim = kHeadDimension;
  static constexpr int kColumnGroups = (kHeadDim + 63) / 64;
  static constexpr int kQStages = 2;
  static constexpr int kKStages = kHeadDim <= 64 ? 4 : 3;
  static constexpr int kVStages = kHeadDim <= 64 ? 4 : 2;
  static constexpr int kGroupBytes = 128 * 128;  // 128 rows of 64 columns
  static constexpr int kTileBytes = kColumnGroups * kGroupBytes;
  static_assert(kPrefillTileRows == 128 && kPrefillTilePositions == 128);
  static constexpr int kQOffset = 0;
  static constexpr int kKOffset = kQOffset + kQStages * kTileBytes;
  static constexpr int kVOffset = kKOffset + kKStages * kTileBytes;
  static constexpr int kUnitOffset = kVOffset + kVStages * kTileBytes;
  static constexpr int kBarrierOffset = kUnitOffset + kUnitSlots * static_cast<int>(sizeof(Unit));
  static constexpr int kSharedBytes = kBarrierOffset + 256 + 1024;  // the last: to align the start
  static_assert(kBarrierOffset % 8 == 0 && kSharedBytes <= 232448);
};

template <typename Shape>
struct WgmmaBarriers {
  static constexpr int kKFull = 0;
  static constexpr int kKEmpty = kKFull + Shape::kKStages;
  static constexpr int kVFull = kKEmpty + Shape::kKStages;
  static constexpr int kVEmpty = kVFull + Shape::kVStages;
  static constexpr int kQFull = kVEmpty + Shape::kVStages;
  static constexpr int kQEmpty = kQFull + Shape::kQStages;
  static constexpr int kUnitFull = kQEmpty + Shape::kQStages;
  static constexpr int kUnitEmpty = kUnitFull + kUnitSlots;
  static constexpr int kClaim = kUnitEmpty + kUnitSlots;  // the next unit is wanted
  static constexpr int kCount = kClaim + 1;
  static_assert(kCount * 8 <= 256);

  static __device__ __forceinline__ uint32_t at(uint32_t base, int index) {
    return base + Shape::kBarrierOffset + index * 8;
  }
  // By one thread; the thread block synchronises afterwards.
  static __device__ __forceinline__ void init(uint32_t base) {
    for (int i = 0; i < Shape::kKStages; ++i) {
      ptx::mbarrier_init(at(base, kKFull + i), 1);
      ptx::mbarrier_init(at(base, kKEmpty + i), kConsumerWarps);
    }
    for (int i = 0; i < Shape::kVStages; ++i) {
      ptx::mbarrier_init(at(base, kVFull + i), 1);
      ptx::mbarrier_init(at(base, kVEmpty + i), kConsumerWarps);
    }
    for (int i = 0; i < Shape::kQStages; ++i) {
      ptx::mbarrier_init(at(base, kQFull + i), 1);
      ptx::mbarrier_init(at(base, kQEmpty + i), kConsumerWarps);
    }
    for (int i = 0; i < kUnitSlots; ++i) {
      ptx::mbarrier_init(at(base, kUnitFull + i), 1);
      ptx::mbarrier_init(at(base, kUnitEmpty + i),
                         kConsumerWarps + 2);  // and the two that bring K and V
    }
    ptx::mbarrier_init(at(base, kClaim), 1);
    ptx::mbarrier_init_fence();
  }
};

template <int kStages>
struct RingPlace : RingCursor {
  __device__ __forceinline__ void advance() { RingCursor::advance(kStages); }
};

// The next unit, by a whole warp that is one of those the ring waits for. q_count 0: there is none.
template <typename Shape>
__device__ __forceinline__ Unit take_unit(char* shared, uint32_t base,
                                          RingPlace<kUnitSlots>& place) {
  using Barriers = WgmmaBarriers<Shape>;
  ptx::mbarrier_wait(Barriers::at(base, Barriers::kUnitFull + place.stage), place.parity);
  const Unit unit = reinterpret_cast<const Unit*>(shared + Shape::kUnitOffset)[place.stage];
  __syncwarp();
  if (threadIdx.x % kWarp == 0)
    ptx::mbarrier_arrive(Barriers::at(base, Barriers::kUnitEmpty + place.stage));
  place.advance();
  return unit;
}

}  // namespace stoker::cuda::prefill
