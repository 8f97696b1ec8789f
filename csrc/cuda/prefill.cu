// Picks the prefill kernel for a device and shape, lays out its workspace and its tensor maps.
#include "cuda/prefill.h"

#include <algorithm>

#include "cuda/common.cuh"
#include "cuda/prefill/launchers.h"
#include "cuda/prefill/params.cuh"
#include "cuda/prefill/wgmma_shared.cuh"
#include "cuda/tensor_map.h"

namespace stoker::cuda {
namespace {

using prefill::FastDivide;
using prefill::Params;

constexpr size_t kQueueBytes = 128;

size_t arrival_bytes(int32_t num_partials, int32_t num_kv_heads) {
  const size_t bytes = static_cast<size_t>(num_partials) * num_kv_heads * 2 * sizeof(int32_t);
  return (bytes + 127) / 128 * 128;
}

size_t partial_bytes(int32_t num_partials, int32_t num_kv_heads, int32_t head_dim) {
  return static_cast<size_t>(num_partials) * num_kv_heads * 2 * (head_dim / 2 + 4) * 128 *
         sizeof(float);
}

size_t total_bytes(int32_t head_dim) {
  return static_cast<size_t>(kMaxPrefillWorkers) * 2 * (head_dim / 2) * 128 * sizeof(float);
}

bool fits_mma(const PrefillParams& p) {
  const auto aligned = [](const void* pointer, int64_t stride) {
    return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride % 8 == 0;
  };
  const int32_t d = p.head_dim;
  return (p.type == Type::float16 || p.type == Type::bfloat16) &&
         (p.cache_type == p.type || p.cache_type == Type::float8_e4m3fn) && p.block_size > 0 &&
         (d == 64 || d == 80 || d == 96 || d == 128 || d == 256) &&
         p.num_heads / p.num_kv_heads <= kPrefillTileRows && aligned(p.q, p.q_row_stride) &&
         aligned(p.out, p.out_row_stride) && aligned(p.k_cache, p.k_block_stride) &&
         aligned(p.v_cache, p.v_block_stride);
}

bool fits_wgmma(const PrefillParams& p) {
  return fits_mma(p) && p.cache_type == p.type && p.head_dim <= 128 && p.block_size >= 8 &&
         p.block_size <= 128 && kPrefillTilePositions % p.block_size == 0 && is_hopper();
}

// [block][head][position][column]: a box is a block's positions.
TensorMap cache_map(const PrefillParams& p, int64_t block_stride) {
  const auto d = static_cast<cuuint64_t>(p.head_dim), size = static_cast<cuuint64_t>(p.block_size);
  return {{d, size, static_cast<cuuint64_t>(p.num_kv_heads), static_cast<cuuint64_t>(p.num_blocks)},
          {d * 2, d * 2 * size, static_cast<cuuint64_t>(block_stride) * 2},
          {64, static_cast<cuuint32_t>(p.block_size), 1, 1}};
}

// [1][token][head][column]: a box is a tile's tokens, the heads of one group of each, so that its
// rows are the tile's.
TensorMap q_map(const PrefillParams& p) {
  const auto stride = static_cast<cuuint64_t>(p.q_row_stride) * 2;
  return {{static_cast<cuuint64_t>(p.head_dim), static_cast<cuuint64_t>(p.num_heads),
           static_cast<cuuint64_t>(p.num_tokens), 1},
          {static_cast<cuuint64_t>(p.head_dim) * 2, stride,
           stride * static_cast<cuuint64_t>(p.num_tokens)},
          {64, static_cast<cuuint32_t>(p.num_heads / p.num_kv_heads),
           static_cast<cuuint32_t>(prefill_tile_tokens(p.num_heads, p.num_kv_heads)), 1}};
}

Params device_params(const PrefillParams& p) {
  Params d = {};
  d.out = p.out;
  d.q = p.q;
  d.k_cache = p.k_cache;
  d.v_cache = p.v_cache;
  d.block_table = p.block_table;
  d.row_seat = p.row_seat;
  d.row_indptr = p.row_indptr;
  d.row_kv_len = p.row_kv_len;
  d.items = p.items;
  d.item_range = p.item_range;
  char* workspace = static_cast<char*>(p.workspace);
  d.queue = reinterpret_cast<int32_t*>(workspace);
  d.arrivals = reinterpret_cast<int32_t*>(workspace + kQueueBytes);
  d.partials = reinterpret_cast<float*>(workspace + kQueueBytes +
                                        arrival_bytes(p.num_partials, p.num_kv_heads));
  d.totals = d.partials + partial_bytes(p.num_partials, p.num_kv_heads, p.head_dim) / sizeof(float);
  d.out_row_stride = p.out_row_stride;
  d.q_row_stride = p.q_row_stride;
  d.k_block_stride = p.k_block_stride;
  d.v_block_stride = p.v_block_stride;
  d.group = FastDivide::by(static_cast<uint32_t>(p.num_heads / p.num_kv_heads));
  d.block = FastDivide::by(static_cast<uint32_t>(p.block_size));
  d.block_table_stride = p.block_table_stride;
  d.num_kv_heads = p.num_kv_heads;
  d.head_dim = p.head_dim;
  d.window = p.window;
  d.soft_cap = p.soft_cap;
  const float scale = p.scale * p.k_scale;
  d.soft_cap_inner = p.soft_cap > 0.0f ? scale / p.soft_cap : 0.0f;
  d.q_box_rows = p.num_heads / p.num_kv_heads * prefill_tile_tokens(p.num_heads, p.num_kv_heads);
  d.scale_log2 = (p.soft_cap > 0.0f ? 1.0f : scale) * kLog2e;
  d.value_scale = p.v_scale;
  return d;
}

template <typename T>
cudaError_t launch_mma_typed(const PrefillParams& p, const LaunchOptions& how) {
  return p.cache_type == p.type
             ? prefill::launch_mma<T, T>(device_params(p), p.num_workers, how)
             : prefill::launch_mma<T, __nv_fp8_e4m3>(device_params(p), p.num_workers, how);
}

template <typename T>
cudaError_t launch_wgmma_mapped(const PrefillParams& p, const LaunchOptions& how) {
  prefill::TensorMaps maps;
  cudaError_t error = encode_tensor_map(maps.q, p.q, p.type, q_map(p));
  if (error == cudaSuccess)
    error = encode_tensor_map(maps.k, p.k_cache, p.type, cache_map(p, p.k_block_stride));
  if (error == cudaSuccess)
    error = encode_tensor_map(maps.v, p.v_cache, p.type, cache_map(p, p.v_block_stride));
  if (error != cudaSuccess) return error;
  return prefill::launch_wgmma<T>(device_params(p), maps, p.num_workers, how);
}

}  // namespace

PrefillPath prefill_path(const PrefillParams& p) {
  if (p.path != PrefillPath::automatic) return p.path;
  if (fits_wgmma(p)) return PrefillPath::wgmma;
  return fits_mma(p) ? PrefillPath::mma : PrefillPath::none;
}

size_t prefill_workspace_bytes(int32_t num_partials, int32_t num_kv_heads, int32_t head_dim) {
  return kQueueBytes + arrival_bytes(num_partials, num_kv_heads) +
         partial_bytes(num_partials, num_kv_heads, head_dim) + total_bytes(head_dim);
}

cudaError_t prefill_attention(const PrefillParams& p, const LaunchOptions& how) {
  const bool half = p.type == Type::float16;
  switch (prefill_path(p)) {
    case PrefillPath::wgmma:
      if (!fits_wgmma(p)) return cudaErrorInvalidValue;
      return half ? launch_wgmma_mapped<__half>(p, how)
                  : launch_wgmma_mapped<__nv_bfloat16>(p, how);
    case PrefillPath::mma:
      if (!fits_mma(p)) return cudaErrorInvalidValue;
      return half ? launch_mma_typed<__half>(p, how) : launch_mma_typed<__nv_bfloat16>(p, how);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace stoker::cuda
