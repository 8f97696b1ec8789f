// The decode kernel: a fixed grid of workers walks the list; each warp copies its own tiles
// (cp.async, kStages deep) and never waits for another warp inside a split; results merge in order
// of position.
#pragma once

#include "cuda/decode_work.cuh"

namespace stoker::cuda::decode {

template <typename Tr>
__global__ void __launch_bounds__(Tr::kThreads)
    decode_kernel(const __grid_constant__ DecodeParams p) {
  using T = typename Tr::T;
  extern __shared__ __align__(128) char shared[];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int group = p.num_q_heads / p.num_kv_heads;
  const int virtuals = (group + kHeadsOfTile - 1) / kHeadsOfTile;  // of a KV head
  const int slot_heads = min(group, kHeadsOfTile);
  const int block_shift = (p.block_size & (p.block_size - 1)) == 0 ? 31 - __clz(p.block_size) : -1;
  float* merge_values = reinterpret_cast<float*>(shared + Tr::ring_bytes());
  float2* merge_totals =
      reinterpret_cast<float2*>(merge_values + Tr::kWarps * slot_heads * Tr::kMergePitch);
  DecodeItem* items = reinterpret_cast<DecodeItem*>(merge_totals + Tr::kWarps * kHeadsOfTile);
  int& arrived = *reinterpret_cast<int*>(items + kItemsHeld);
  const uint32_t ring = ptx::shared_address(shared) + warp * Tr::kStages * Tr::kStageBytes;

  bool waited = p.beside;
  auto wait_for_inputs = [&] {
    if (waited) return;
    ptx::grid_dependency_wait();
    ptx::grid_dependency_launch();
    waited = true;
  };
  if (!p.early) wait_for_inputs();

  // The first item and the range of the others are loaded at once.
  const int worker = blockIdx.x;
  const int rest_begin = p.work_indptr[worker], rest_end = p.work_indptr[worker + 1];
  const DecodeItem* further = p.work + rest_begin - 1;  // item i > 0 is further[i]
  if (threadIdx.x < 2)
    reinterpret_cast<uint4*>(items)[threadIdx.x] =
        reinterpret_cast<const uint4*>(p.work + worker)[threadIdx.x];
  const int rest = rest_end - rest_begin;
  if (threadIdx.x >= 2 && threadIdx.x < 2 * kItemsHeld && int(threadIdx.x) < 2 * (1 + rest))
    reinterpret_cast<uint4*>(items)[threadIdx.x] =
        reinterpret_cast<const uint4*>(further)[threadIdx.x];
  __syncthreads();
  if (items[0].row < 0) {
    wait_for_inputs();
    if (p.beside && worker == 0) ptx::grid_dependency_wait();
    return;
  }
  const int num_items = 1 + rest;

  Lookahead<Tr> lookahead{.walker = {.held = items, .further = further, .num_items = num_items}};
  auto next_batch = [&] { return lookahead.next(p, virtuals, block_shift, warp, lane); };
  Batch batch = next_batch();
  Batch upcoming;
  bool have_upcoming = false;
  int round_of_batch = 0;
  // Starts the copies of the warp's tile in the next round, whatever item it belongs to.
  auto issue = [&](int stage) {
    if (round_of_batch == batch.rounds && batch.rounds > 0) {
      batch = upcoming;
      round_of_batch = 0;
      have_upcoming = false;
    }
    if (batch.rounds > 0) {
      const int token = batch.position + round_of_batch * Tr::kRound + warp * kTile;
      if (token < batch.end) {
        if (token + kTile >= batch.kv_len) wait_for_inputs();  // the newest token's tile
        const char* from[2][2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int64_t block = __shfl_sync(0xffffffffu, batch.block[half], round_of_batch);
          const int offset = __shfl_sync(0xffffffffu, batch.offset[half], round_of_batch);
          const int64_t inner = (int64_t(batch.head) * p.block_size + offset - 8 * half) * Tr::D;
          from[0][half] = static_cast<const char*>(p.k_cache) +
                          (block * p.k_block_stride + inner) * int64_t(sizeof(typename Tr::KV));
          from[1][half] = static_cast<const char*>(p.v_cache) +
                          (block * p.v_block_stride + inner) * int64_t(sizeof(typename Tr::KV));
        }
        const uint32_t tile = ring + stage * Tr::kStageBytes;
        const int first = batch.kv_begin - token, end = batch.kv_len - token;
        copy_tile<Tr>(tile, from[0][0], from[0][1], first, end, lane);
        copy_tile<Tr>(tile + Tr::kTileBytes, from[1][0], from[1][1], first, end, lane);
      }
      ++round_of_batch;
      if (!have_upcoming) {
        upcoming = next_batch();
        have_upcoming = true;
      }
    }
    ptx::cp_async_commit();
  };
#pragma unroll 1
  for (int stage = 0; stage < Tr::kStages; ++stage) issue(stage);
  wait_for_inputs();

  const float scale_log2 = p.scale * p.k_scale * kLog2e;
  int stage = 0;
  Walker walker{.held = items, .further = further, .num_items = num_items};
  Segment upcoming_segment;
  bool more = walker.next(upcoming_segment);
  // Queries are fetched a segment ahead.
  uint32_t upcoming_q[Tr::kSteps][2];
  auto heads_of = [&](const Segment& segment, int& first_head) {
    if (virtuals == 1) {
      first_head = segment.head * group;
      return group;
    }
    const int kv_head = segment.head / virtuals, sub = segment.head - kv_head * virtuals;
    first_head = kv_head * group + sub * kHeadsOfTile;
    return min(kHeadsOfTile, group - sub * kHeadsOfTile);
  };
  auto fetch_q = [&] {
    int first_head;
    const int heads = heads_of(upcoming_segment, first_head);
    load_q<Tr>(upcoming_q,
               static_cast<const T*>(p.q) + upcoming_segment.row * p.q_stride +
                   (first_head + (lane >> 2)) * p.q_head_stride,
               lane >> 2 < heads, lane);
  };
  fetch_q();
  while (more) {
    const Segment segment = upcoming_segment;
    const int split_begin = segment.split_begin, split_end = segment.split_end;
    int first_head;
    const int heads = heads_of(segment, first_head);
    const bool whole = split_end - split_begin == segment.num_splits;
    uint32_t q[Tr::kSteps][2];
#pragma unroll
    for (int i = 0; i < Tr::kSteps; ++i) q[i][0] = upcoming_q[i][0], q[i][1] = upcoming_q[i][1];
    more = walker.next(upcoming_segment);
    if (more) fetch_q();

    Sum total[Tr::kOwned];
    for (int split = split_begin; split < split_end; ++split) {
      const int begin = segment.origin + (split << segment.split_shift);
      const int end = min(begin + (1 << segment.split_shift), segment.kv_len);
      Accumulator<Tr> acc;
      acc.clear();
      for (int position = begin; position < end; position += Tr::kRound) {
        ptx::cp_async_wait<Tr::kStages - 1>();
        __syncwarp();
        const int token = position + warp * kTile;
        const uint32_t tile = ring + stage * Tr::kStageBytes;
        if (token < end) {
          attend<Tr>(acc, q, tile, tile + Tr::kTileBytes, segment.kv_begin - token, end - token,
                     scale_log2, p.soft_cap, lane);
        }
        __syncwarp();
        issue(stage);
        stage = stage + 1 == Tr::kStages ? 0 : stage + 1;
      }
      __syncthreads();  // the split before has been read
      put<Tr>(acc, merge_values + warp * heads * Tr::kMergePitch,
              merge_totals + warp * kHeadsOfTile, heads, lane);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < Tr::kOwned; ++i) {
        const int owned = threadIdx.x + i * Tr::kThreads;
        if (owned >= heads * Tr::kVectors) break;
        const int head = owned / Tr::kVectors, vector = owned % Tr::kVectors;
        const Sum piece = gather<Tr>(merge_values, merge_totals, heads, head, vector);
        if (whole) {
          if (split == split_begin)
            total[i] = piece;
          else
            append(total[i], piece);
        } else {
          float* slot = p.workspace +
                        int64_t(segment.partial + split) * (slot_heads * (Tr::D + 4)) +
                        head * (Tr::D + 4);
          __stcg(reinterpret_cast<float4*>(slot) + vector, piece.values);
          if (vector == 0)
            __stcg(reinterpret_cast<float2*>(slot + Tr::D), make_float2(piece.max, piece.sum));
        }
      }
    }

    if (!whole) {
      // The last worker to bring splits of this head merges them all, in order.
      __threadfence();
      __syncthreads();
      if (threadIdx.x == 0)
        arrived = atomicAdd(p.counters + segment.partial, split_end - split_begin) + split_end -
                  split_begin;
      __syncthreads();
      if (arrived != segment.num_splits) continue;
      __threadfence();
      if (threadIdx.x == 0) p.counters[segment.partial] = 0;
      const int slot_words = slot_heads * (Tr::D + 4);
      if (!more) {
        // Nothing more is coming: the rings are free to take many partial results at once.
        ptx::cp_async_wait<0>();
        __syncthreads();
        const float* from = p.workspace + int64_t(segment.partial) * slot_words;
        const float* held = reinterpret_cast<const float*>(shared);
        const int held_splits = Tr::ring_bytes() / (slot_words * 4);
        for (int first = 0; first < segment.num_splits; first += held_splits) {
          const int count = min(held_splits, segment.num_splits - first);
          for (int v = threadIdx.x; v < count * slot_words / 4; v += Tr::kThreads)
            ptx::cp_async16(ptx::shared_address(shared) + v * 16,
                            from + int64_t(first) * slot_words + v * 4);
          ptx::cp_async_commit();
          ptx::cp_async_wait<0>();
          __syncthreads();
#pragma unroll
          for (int i = 0; i < Tr::kOwned; ++i) {
            const int owned = threadIdx.x + i * Tr::kThreads;
            if (owned >= heads * Tr::kVectors) break;
            const float* slot = held + owned / Tr::kVectors * (Tr::D + 4);
            const int vector = owned % Tr::kVectors;
            for (int s = 0; s < count; ++s, slot += slot_words) {
              const float2 t = *reinterpret_cast<const float2*>(slot + Tr::D);
              const Sum piece{t.x, t.y, *reinterpret_cast<const float4*>(slot + 4 * vector)};
              if (first + s == 0)
                total[i] = piece;
              else
                append(total[i], piece);
            }
          }
          __syncthreads();
        }
      } else {
#pragma unroll
        for (int i = 0; i < Tr::kOwned; ++i) {
          const int owned = threadIdx.x + i * Tr::kThreads;
          if (owned >= heads * Tr::kVectors) break;
          const int head = owned / Tr::kVectors, vector = owned % Tr::kVectors;
          const float* slot = p.workspace + int64_t(segment.partial) * (slot_heads * (Tr::D + 4)) +
                              head * (Tr::D + 4);
          const int64_t step = slot_heads * (Tr::D + 4);
          constexpr int kAhead = 4;
          for (int first = 0; first < segment.num_splits; first += kAhead) {
            Sum piece[kAhead];
#pragma unroll
            for (int a = 0; a < kAhead; ++a) {
              if (first + a >= segment.num_splits) continue;
              piece[a].values =
                  __ldcg(reinterpret_cast<const float4*>(slot + (first + a) * step) + vector);
              const float2 t =
                  __ldcg(reinterpret_cast<const float2*>(slot + (first + a) * step + Tr::D));
              piece[a].max = t.x;
              piece[a].sum = t.y;
            }
#pragma unroll
            for (int a = 0; a < kAhead; ++a) {
              if (first + a >= segment.num_splits) continue;
              if (first + a == 0)
                total[i] = piece[a];
              else
                append(total[i], piece[a]);
            }
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < Tr::kOwned; ++i) {
      const int owned = threadIdx.x + i * Tr::kThreads;
      if (owned >= heads * Tr::kVectors) break;
      const int head = owned / Tr::kVectors, vector = owned % Tr::kVectors;
      write_out(static_cast<T*>(p.out) + segment.row * p.out_stride +
                    (first_head + head) * p.out_head_stride + 4 * vector,
                total[i], p.v_scale);
    }
  }
  ptx::cp_async_wait<0>();
  if (p.beside && worker == 0)
    ptx::grid_dependency_wait();  // so that what follows finds the chunks done too
}

// Raises the block's shared-memory limit once a device and instantiation, then launches.
template <typename Tr>
cudaError_t run(const DecodeParams& p, const LaunchOptions& how, int32_t* workers) {
  const int group = p.num_q_heads / p.num_kv_heads;
  const int bytes = Tr::shared_bytes(group < kHeadsOfTile ? group : kHeadsOfTile);
  static thread_local int raised = -1;  // the device on which this thread raised it last
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  if (raised != device) {
    status = cudaFuncSetAttribute(decode_kernel<Tr>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  Tr::shared_bytes(kHeadsOfTile));
    if (status != cudaSuccess) return status;
    raised = device;
  }
  if (workers) {
    int multiprocessors = 0, blocks = 0;
    status = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (status != cudaSuccess) return status;
    status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, decode_kernel<Tr>, Tr::kThreads,
                                                           size_t(bytes));
    *workers = multiprocessors * (blocks > 0 ? blocks : 1);
    return status;
  }
  return launch(decode_kernel<Tr>,
                Launch{.grid = dim3(unsigned(p.workers)),
                       .block = dim3(Tr::kThreads),
                       .shared_bytes = size_t(bytes),
                       .stream = how.stream,
                       .overlap = how.overlap},
                p);
}

}  // namespace stoker::cuda::decode
