// Paged attention of decode rows: one query token a row against its KV, walked by a fixed grid over
// a list of work.
//
// Blocks of the grid are workers; csrc/sched/attention_plan.h makes their list. A row's KV is cut
// into splits at positions that follow from its length alone, a split's result is computed from
// scratch, and splits merge in order of position with the same arithmetic whether one worker held
// them all or several did: results do not depend on balance.
#pragma once

#include <cstdint>

#include "cuda/ops.h"

namespace stoker::cuda {

// The same 32 bytes as sched's DecodeWork (csrc/bind checks it).
struct DecodeItem {
  int32_t row;   // token and row: decode rows are first and have one token each; -1: nothing to do
  int32_t seat;  // row of the block table
  int32_t kv_begin;    // first position seen (> 0 under a sliding window)
  int32_t kv_len;      // one past the last
  int32_t unit_begin;  // units are (head, split), head-major: unit = head * num_splits + split
  int32_t unit_end;
  int32_t split_shift;  // a split is 1 << split_shift tokens, from kv_begin rounded down to 16
  int32_t
      partial;  // first workspace slot of this head's splits; -1: every head of this item is whole
};
static_assert(sizeof(DecodeItem) == 32);

inline constexpr int kHeadsOfTile = 8;  // query heads that one pass over a KV head serves

// Query heads that share a KV head are served 8 at a time: more make several "virtual" KV heads.
constexpr int32_t virtual_kv_heads(int32_t num_q_heads, int32_t num_kv_heads) {
  const int32_t group = num_q_heads / num_kv_heads;
  return num_kv_heads * ((group + kHeadsOfTile - 1) / kHeadsOfTile);
}
// float32 words of a workspace slot: a split's accumulators, maxima and sums.
constexpr int64_t decode_slot_words(int32_t num_q_heads, int32_t num_kv_heads, int32_t head_dim) {
  const int32_t group = num_q_heads / num_kv_heads;
  const int32_t heads = group < kHeadsOfTile ? group : kHeadsOfTile;
  return int64_t(heads) * (head_dim + 4);
}

struct DecodeParams {
  void* out;
  const void* q;
  const void* k_cache;
  const void* v_cache;
  const int32_t* block_table;
  const DecodeItem* work;      // the workers' first items, then their further ones
  const int32_t* work_indptr;  // [workers + 1]: worker w's further items
  float* workspace;            // decode_slot_words() for each slot
  int32_t* counters;           // one a slot, zero before the first launch and after each
  int64_t out_stride, out_head_stride, q_stride, q_head_stride;
  int64_t k_block_stride, v_block_stride, table_stride;
  int32_t num_q_heads, num_kv_heads, head_dim, block_size;
  int32_t workers;
  float scale, soft_cap, k_scale, v_scale;
  Type type, cache_type;
  // May work list, block table and KV of earlier tokens be read before the kernel ahead in the
  // stream has ended? It may then write q and the KV of this step's own tokens only.
  bool early;
  // Launched right behind the prefill kernel of the same step, which waited for everything before
  // it: nothing is left to wait for, and the two run side by side. The end of this launch is then
  // the end of both.
  bool beside;
};
cudaError_t decode_attention(const DecodeParams& p, const LaunchOptions& how);

// How many workers fill the current device.
cudaError_t decode_workers(const DecodeParams& p, int32_t* workers);

// Any shape and type, one block a (token, head), no plan: for float32 and as the oracle's
// neighbour. All rows, prefill too.
struct PlainAttentionParams {
  void* out;
  const void* q;
  const void* k_cache;
  const void* v_cache;
  const int32_t* block_table;
  const int32_t* row_seat;
  const int32_t* row_indptr;
  const int32_t* row_kv_len;
  int64_t rows, tokens;
  int64_t out_stride, out_head_stride, q_stride, q_head_stride;
  int64_t k_block_stride, v_block_stride, table_stride;
  int32_t num_q_heads, num_kv_heads, head_dim, block_size, window;
  float scale, soft_cap, k_scale, v_scale;
  Type type, cache_type;
};
cudaError_t plain_attention(const PlainAttentionParams& p, const LaunchOptions& how);

}  // namespace stoker::cuda
