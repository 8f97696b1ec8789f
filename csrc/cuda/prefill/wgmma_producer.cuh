// What the Hopper prefill kernel's producer warps do: hand out units of work with their Q, bring K,
// bring V.
#pragma once

#include "cuda/prefill/wgmma_shared.cuh"

namespace stoker::cuda::prefill {

// One thread. Claims a unit when the K warp asks for it, and brings its Q.
template <typename Shape>
__device__ __forceinline__ void hand_out_units(const Params& p, const TensorMaps& maps,
                                               char* shared, uint32_t base) {
  using Barriers = WgmmaBarriers<Shape>;
  const auto barrier = [&](int index) { return Barriers::at(base, index); };
  ptx::tensor_map_prefetch(&maps.q);
  ptx::tensor_map_prefetch(&maps.k);
  ptx::tensor_map_prefetch(&maps.v);
  const int32_t total = num_units(p);
  RingPlace<kUnitSlots> slot;
  RingPlace<Shape::kQStages> q_place;
  uint32_t claim_parity = 0;
  for (bool first = true;; first = false) {
    if (!first) {
      ptx::mbarrier_wait(barrier(Barriers::kClaim), claim_parity);
      claim_parity ^= 1;
    }
    const int32_t index = atomicAdd(p.queue, 1);
    Unit unit = {};
    if (index < total) unit = read_unit(p, index);
    ptx::mbarrier_wait(barrier(Barriers::kUnitEmpty + slot.stage), slot.parity ^ 1);
    reinterpret_cast<Unit*>(shared + Shape::kUnitOffset)[slot.stage] = unit;
    ptx::mbarrier_arrive(barrier(Barriers::kUnitFull + slot.stage));
    slot.advance();
    if (index >= total) break;
    ptx::mbarrier_wait(barrier(Barriers::kQEmpty + q_place.stage), q_place.parity ^ 1);
    const uint32_t full = barrier(Barriers::kQFull + q_place.stage);
    ptx::mbarrier_arrive_expect(full, p.q_box_rows * 128 * Shape::kColumnGroups);
#pragma unroll
    for (int group = 0; group < Shape::kColumnGroups; ++group) {
      ptx::tensor_copy_4d(
          base + Shape::kQOffset + q_place.stage * Shape::kTileBytes + group * Shape::kGroupBytes,
          &maps.q, full, group * 64, unit.kv_head * static_cast<int>(p.group.divisor),
          unit.first_token, 0);
    }
    q_place.advance();
  }
  leave_queue(p);
}

// One warp: the K (or V) tiles of every unit, a block's 64 columns a copy and a lane.
template <typename Shape, bool kKeys>
__device__ __forceinline__ void bring_kv(const Params& p, const TensorMaps& maps, char* shared,
                                         uint32_t base) {
  using Barriers = WgmmaBarriers<Shape>;
  constexpr int kN = kPrefillTilePositions;
  constexpr int kFull = kKeys ? Barriers::kKFull : Barriers::kVFull;
  constexpr int kEmpty = kKeys ? Barriers::kKEmpty : Barriers::kVEmpty;
  constexpr int kOffset = kKeys ? Shape::kKOffset : Shape::kVOffset;
  const CUtensorMap* map = kKeys ? &maps.k : &maps.v;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int block_size = static_cast<int>(p.block.divisor);
  const int blocks = kN / block_size;  // of a tile; times the column groups at most 32
  const int group = lane / blocks;
  const int offset = (lane - group * blocks) * block_size;  // of this lane's block in a tile
  const uint32_t block_bytes = block_size * 128;            // one column group's
  const uint32_t destination = base + kOffset + group * Shape::kGroupBytes + offset * 128;
  RingPlace<kUnitSlots> slot;
  RingPlace<kKeys ? Shape::kKStages : Shape::kVStages> place;
  while (true) {
    const Unit u = take_unit<Shape>(shared, base, slot);
    if (u.q_count == 0) break;
    const int end_tile = (u.kv_end + kN - 1) / kN;
    // This lane's block of a tile, or -1 where the tile has none for it that anyone may read.
    const auto block_of = [&](int tile) {
      const int position = tile * kN + offset;
      const bool wanted = tile < end_tile && group < Shape::kColumnGroups && position < u.kv_end &&
                          position + block_size > u.lowest;
      return wanted ? u.blocks[p.block.quotient(position)] : -1;
    };
    int block = block_of(u.lowest / kN);
    for (int tile = u.lowest / kN; tile < end_tile; ++tile) {
      const int next = block_of(tile + 1);
      if (kKeys && tile + 1 == end_tile && lane == 0)
        ptx::mbarrier_arrive(Barriers::at(base, Barriers::kClaim));
      const int count = __popc(__ballot_sync(0xffffffff, block >= 0));
      const uint32_t full = Barriers::at(base, kFull + place.stage);
      ptx::mbarrier_wait(Barriers::at(base, kEmpty + place.stage), place.parity ^ 1);
      if (lane == 0) ptx::mbarrier_arrive_expect(full, count * block_bytes);
      __syncwarp();
      if (block >= 0) {
        ptx::tensor_copy_4d(destination + place.stage * Shape::kTileBytes, map, full, group * 64, 0,
                            u.kv_head, block);
      }
      __syncwarp();
      place.advance();
      block = next;
    }
  }
}

}  // namespace stoker::cuda::prefill
