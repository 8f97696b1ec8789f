// Causal attention of prefill chunks over a paged KV cache: the CUDA side's interface. Raw
// pointers, sizes and a stream in; no allocation, no synchronisation. What the arrays mean is said
// in docs/interfaces.md (paged_attention).
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "cuda/ops.h"

namespace stoker::cuda {

// A tile is this many (query token, head of one group) pairs; a tile never spans two rows or two KV
// heads.
inline constexpr int32_t kPrefillTileRows = 128;
// KV is walked in tiles of this many positions, at absolute positions, so that a token's result
// depends on itself alone.
inline constexpr int32_t kPrefillTilePositions = 128;
// Every multiple of this starts a fresh softmax, merged with what came before in order of position,
// whether one block of threads computes both sides or several do.
inline constexpr int32_t kPrefillSplitPositions = 4096;

// Thread blocks that a launch has at most.
inline constexpr int32_t kMaxPrefillWorkers = 192;

// Tokens of a row that one tile holds.
constexpr int32_t prefill_tile_tokens(int32_t num_heads, int32_t num_kv_heads) {
  return kPrefillTileRows / (num_heads / num_kv_heads);
}

// One piece of work for all KV heads; laid out as sched's AttentionWork.
struct PrefillItem {
  int32_t row;
  int32_t q_begin,
      q_count;  // tokens of the row, relative to its first; q_count <= prefill_tile_tokens
  int32_t kv_begin, kv_end;  // positions; kv_end is one past what the tile's last token sees, or
                             // the end of the split
  int32_t kv_head;           // -1: all of them
  int32_t
      partial;  // workspace slot of the tile's first split, or -1 when this piece is the whole tile
  int32_t flags;  // index of this split in its tile | number of splits << 16
};
static_assert(sizeof(PrefillItem) == 32);

// Which kernel runs. `automatic` never depends on the batch, only on the device, the types and the
// cache's shape; `none`: neither takes this (plain_attention does).
enum class PrefillPath : int32_t { automatic, none, mma, wgmma };

struct PrefillParams {
  void* out;            // [T, num_heads, head_dim]
  const void* q;        // the same; head_dim and heads contiguous, rows by stride
  const void* k_cache;  // [num_blocks, num_kv_heads, block_size, head_dim]; blocks by stride, the
                        // rest contiguous
  const void* v_cache;
  const int32_t* block_table;  // [seats, block_table_stride]
  const int32_t* row_seat;
  const int32_t* row_indptr;
  const int32_t* row_kv_len;
  const PrefillItem* items;  // on the device, heaviest first
  const int32_t*
      item_range;          // on the device: items [item_range[0], item_range[1]) are this launch's,
                           // for at most item_range[2] of its thread blocks (wgmma alone heeds it)
  void* workspace;         // prefill_workspace_bytes; zeroed once, when it is allocated
  int64_t out_row_stride;  // elements
  int64_t q_row_stride;    // elements
  int64_t k_block_stride;  // elements
  int64_t v_block_stride;  // elements
  int64_t num_blocks;
  int64_t num_tokens;  // T
  int32_t block_table_stride;
  int32_t block_size;
  int32_t num_heads, num_kv_heads, head_dim;
  int32_t num_partials;  // slots of the workspace
  int32_t num_workers;   // thread blocks to launch; 0: as many as the device runs at once
  int32_t window;        // 0: none
  float scale;
  float soft_cap;          // 0: none
  float k_scale, v_scale;  // true K = stored K * k_scale
  Type type, cache_type;
  PrefillPath path;
};

// The kernel that would run: never `automatic`. Reads everything but the arrays.
PrefillPath prefill_path(const PrefillParams& p);

// Whether this path can merge splits that ran apart; if not, the plan must keep tiles whole.
constexpr bool prefill_path_splits(PrefillPath path) { return path == PrefillPath::wgmma; }

size_t prefill_workspace_bytes(int32_t num_partials, int32_t num_kv_heads, int32_t head_dim);

// cudaErrorInvalidValue for what the path cannot take; every other error is the launch's.
cudaError_t prefill_attention(const PrefillParams& p, const LaunchOptions& how);

}  // namespace stoker::cuda
