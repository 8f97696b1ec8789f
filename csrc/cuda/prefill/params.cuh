// What every prefill kernel shares: its parameters on the device, the reading of work items and
// small arithmetic.
#pragma once

#include <cstdint>

#include "cuda/common.cuh"
#include "cuda/prefill.h"

namespace stoker::cuda::prefill {

// Division by a number fixed for the launch: exact for 0 <= n < 2^31.
struct FastDivide {
  uint32_t divisor, multiplier, shift;

  static FastDivide by(uint32_t d) {
    uint32_t shift = 0;
    while ((1ull << shift) < d) ++shift;
    const uint64_t m = ((1ull << 32) * ((1ull << shift) - d)) / d + 1;
    return {d, static_cast<uint32_t>(m), shift};
  }
  __device__ __forceinline__ int32_t quotient(int32_t n) const {
    const uint32_t u = static_cast<uint32_t>(n);
    return static_cast<int32_t>((__umulhi(u, multiplier) + u) >> shift);
  }
};

struct Params {
  void* out;
  const void* q;
  const void* k_cache;
  const void* v_cache;
  const int32_t* block_table;
  const int32_t* row_seat;
  const int32_t* row_indptr;
  const int32_t* row_kv_len;
  const PrefillItem* items;
  const int32_t* item_range;
  int32_t* queue;     // next unit of work, thread blocks that are done; both back at zero when the
                      // launch ends
  int32_t* arrivals;  // [partials, kv heads, 2]: splits of a tile that are done; back at zero when
                      // it is merged
  float* partials;    // [partials, kv heads, 2, head_dim / 2 + 4, 128]
  float* totals;      // [thread blocks, 2, head_dim / 2, 128]: what a thread block has of a tile's
                      // earlier splits
  int64_t out_row_stride, q_row_stride, k_block_stride, v_block_stride;
  FastDivide group;  // query heads a KV head
  FastDivide block;  // positions a block
  int32_t block_table_stride, num_kv_heads, head_dim, window;
  int32_t q_box_rows;    // rows of Q that one copy brings
  float scale_log2;      // what a score is multiplied with before exp2
  float soft_cap_inner;  // soft_cap > 0: score -> soft_cap * tanh(score * soft_cap_inner)
  float soft_cap;
  float value_scale;  // of the whole result
};

// One unit of work: an item for one KV head.
struct Unit {
  const int32_t* blocks;  // the seat's row of the block table
  int32_t kv_head;
  int32_t q_count;         // tokens
  int32_t first_token;     // index of the tile's first token in q and out
  int32_t first_position;  // its absolute position
  int32_t lowest;          // the lowest position that any token of the tile sees in this piece
  int32_t kv_end;          // one past the highest
  int32_t partial;         // as in PrefillItem
  int32_t flags;
};
static_assert(sizeof(Unit) == 40);

__device__ __forceinline__ int32_t num_units(const Params& p) {
  return (p.item_range[1] - p.item_range[0]) * p.num_kv_heads;
}

__device__ __forceinline__ Unit read_unit(const Params& p, int32_t index) {
  const int32_t number = index / p.num_kv_heads;
  const PrefillItem item = p.items[p.item_range[0] + number];
  const int32_t begin = p.row_indptr[item.row];
  const int32_t count = p.row_indptr[item.row + 1] - begin;
  Unit u;
  u.blocks = p.block_table + static_cast<int64_t>(p.row_seat[item.row]) * p.block_table_stride;
  u.kv_head = index - number * p.num_kv_heads;
  u.q_count = item.q_count;
  u.first_token = begin + item.q_begin;
  u.first_position = p.row_kv_len[item.row] - count + item.q_begin;
  u.lowest = item.kv_begin;
  if (p.window > 0) u.lowest = max(u.lowest, u.first_position - p.window + 1);
  u.kv_end = item.kv_end;
  u.partial = item.partial;
  u.flags = item.flags;
  return u;
}

// Called by one thread of each thread block when it found no more work: the last one resets the
// queue.
__device__ __forceinline__ void leave_queue(const Params& p) {
  __threadfence();
  if (atomicAdd(p.queue + 1, 1) == static_cast<int32_t>(gridDim.x) - 1) {
    p.queue[0] = 0;
    p.queue[1] = 0;
    __threadfence();
  }
}

// cap * tanh(score * inner), by exp2: relative error about 1e-6, where tanh.approx has 5e-4.
__device__ __forceinline__ float soft_capped(float score, float inner, float cap) {
  const float e = ptx::exp2(score * inner * (2.0f * kLog2e));
  return cap - __fdividef(2.0f * cap, e + 1.0f);
}

}  // namespace stoker::cuda::prefill
