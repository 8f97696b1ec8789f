// A worker's way through the work list: its items segment by segment, and ahead of them the blocks
// that will be copied.
#pragma once

#include "cuda/decode_tile.cuh"

namespace stoker::cuda::decode {

// a / b for 0 <= a < 2^24, b > 0: a float quotient is off by one at most.
__device__ __forceinline__ int divide(int a, int b) {
  int quotient = int(__fdividef(float(a), float(b)));
  const int rest = a - quotient * b;
  if (rest < 0) --quotient;
  if (rest >= b) ++quotient;
  return quotient;
}

// Consecutive splits of one head of one row: what a worker computes and merges as one.
struct Segment {
  int row, seat;
  int head;  // of the unit: a KV head, or a part of its group
  int split_begin, split_end, num_splits;
  int origin;  // position of split 0
  int kv_begin, kv_len;
  int split_shift, partial;
};

// Walks a worker's items, segment by segment.
struct Walker {
  const DecodeItem* held;     // the first kItemsHeld items, in shared memory
  const DecodeItem* further;  // item i > 0 is further[i]
  int num_items;
  int index = -1, unit = 0, unit_end = 0, head = 0, split = 0, num_splits = 1;

  // False when there are no more; `segment` is then as it was.
  __device__ __forceinline__ bool next(Segment& segment) {
    if (unit >= unit_end && index + 1 >= num_items) return false;
    const bool fresh = unit >= unit_end;
    if (fresh) ++index;
    const DecodeItem* at = index < kItemsHeld ? held + index : further + index;
    const uint4* words = reinterpret_cast<const uint4*>(at);
    const uint4 low = words[0], high = words[1];
    segment.row = int(low.x);
    segment.seat = int(low.y);
    segment.kv_begin = int(low.z);
    segment.kv_len = int(low.w);
    segment.split_shift = int(high.z);
    segment.partial = int(high.w);
    segment.origin = segment.kv_begin & ~(kTile - 1);
    if (fresh) {
      unit = int(high.x);
      unit_end = int(high.y);
      num_splits =
          (segment.kv_len - segment.origin + (1 << segment.split_shift) - 1) >> segment.split_shift;
      head = divide(unit, num_splits);
      split = unit - head * num_splits;
    }
    segment.head = head;
    segment.num_splits = num_splits;
    segment.split_begin = split;
    segment.split_end = min(num_splits, split + unit_end - unit);
    unit += segment.split_end - split;
    ++head;
    split = 0;
    return true;
  }
};

// Up to 32 rounds of one head's KV; lane i holds the blocks of the warp's tile in round i.
struct Batch {
  int position;  // of round 0
  int rounds;
  int end;  // tokens at and past it are not this batch's
  int kv_begin, kv_len;
  int head;                 // KV head
  int block[2], offset[2];  // of the tile's first and second 8 tokens
};

// Walks the work list ahead of everything else, a batch at a time, so that block tables are there
// when copies need them.
template <typename Tr>
struct Lookahead {
  Walker walker;
  Segment segment;
  int position = 0, end = 0;

  __device__ __forceinline__ Batch next(const DecodeParams& p, int virtuals, int block_shift,
                                        int warp, int lane) {
    Batch batch;
    batch.rounds = 0;
    if (position >= end) {
      if (!walker.next(segment)) return batch;
      position = segment.origin + (segment.split_begin << segment.split_shift);
      end = min(segment.origin + (segment.split_end << segment.split_shift), segment.kv_len);
    }
    batch.position = position;
    batch.end = end;
    batch.rounds = min(kWarp, (end - position + Tr::kRound - 1) / Tr::kRound);
    batch.kv_begin = segment.kv_begin;
    batch.kv_len = segment.kv_len;
    batch.head = virtuals == 1 ? segment.head : segment.head / virtuals;
    const int token = position + lane * Tr::kRound + warp * kTile;
    const int32_t* table = p.block_table + segment.seat * p.table_stride;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int t = token + 8 * half;
      const int index = block_shift >= 0 ? t >> block_shift : divide(t, p.block_size);
      batch.offset[half] = t - index * p.block_size;
      batch.block[half] = lane < batch.rounds && t < batch.end ? table[index] : 0;
    }
    position += batch.rounds * Tr::kRound;
    return batch;
  }
};

}  // namespace stoker::cuda::decode
