// The decode kernel. Scores are computed transposed, S' = K Q' (16 tokens x 8 heads), and so is the
// output, O' = V' P': KV tiles are the wide operand of the tensor cores and up to 8 query heads of
// a group the narrow one, so that little of an instruction is padding at any group size. Each warp
// copies its own tiles (cp.async, kStages deep) and never waits for another warp inside a split.
#pragma once

#include <type_traits>

#include "cuda/common.cuh"
#include "cuda/decode.h"

namespace stoker::cuda::decode {

inline constexpr int kTile = 16;  // tokens of a warp's tile
inline constexpr int kItemsHeld =
    7;  // work items kept in shared memory: what fits beside two blocks' rings
inline constexpr float kRescaleAt =
    8.0f;  // a maximum may lag this far behind (in powers of two) before sums are rescaled

template <typename T_, typename KV_, int D_, int kWarps_, int kStages_>
struct Traits {
  using T = T_;
  using KV = KV_;
  static constexpr int D = D_, kWarps = kWarps_, kStages = kStages_;
  static constexpr bool kFp8 = std::is_same_v<KV, __nv_fp8_e4m3>;
  using M = std::conditional_t<kFp8, __half, T>;  // what the tensor cores multiply
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kRound = kWarps * kTile;  // tokens that the block takes at a time
  static constexpr int kRowBytes = D * int(sizeof(KV));
  static constexpr int kChunks = kRowBytes / 16;  // 16-byte chunks of a token's row
  static constexpr bool kSwizzle = kRowBytes % 128 == 0;
  // Without the swizzle an odd number of chunks a row keeps the 8 rows of a fragment in different
  // banks.
  static constexpr int kPitch = kSwizzle || kChunks % 2 ? kRowBytes : kRowBytes + 16;
  static constexpr int kTileBytes = kTile * kPitch;
  static constexpr int kStageBytes = 2 * kTileBytes;
  static constexpr int kSteps = D / 16;  // mma steps along the head
  static constexpr int kMergePitch = D + 4;
  static constexpr int kVectors = D / 4;  // float4 of a head
  // float4 of the merged result that a thread owns, at most.
  static constexpr int kOwned = (kHeadsOfTile * kVectors + kThreads - 1) / kThreads;

  static constexpr int ring_bytes() { return kWarps * kStages * kStageBytes; }
  static constexpr int shared_bytes(int heads) {
    return ring_bytes() + kWarps * heads * kMergePitch * 4 + kWarps * kHeadsOfTile * 8 +
           kItemsHeld * int(sizeof(DecodeItem)) + 16;
  }
};

// a / b for 0 <= a < 2^24, b > 0: a float quotient is off by one at most.
__device__ __forceinline__ int divide(int a, int b) {
  int quotient = int(__fdividef(float(a), float(b)));
  const int rest = a - quotient * b;
  if (rest < 0) --quotient;
  if (rest >= b) ++quotient;
  return quotient;
}

// The running result of some splits for one float4 of one head.
struct Sum {
  float max, sum;
  float4 values;
};

// Appends a later piece; the same arithmetic wherever it runs.
__device__ __forceinline__ void append(Sum& total, const Sum& piece) {
  const float top = fmaxf(total.max, piece.max);
  const float a = ptx::exp2(total.max - top), b = ptx::exp2(piece.max - top);
  total.max = top;
  total.sum = __fmaf_rn(total.sum, a, __fmul_rn(piece.sum, b));
  total.values.x = __fmaf_rn(total.values.x, a, __fmul_rn(piece.values.x, b));
  total.values.y = __fmaf_rn(total.values.y, a, __fmul_rn(piece.values.y, b));
  total.values.z = __fmaf_rn(total.values.z, a, __fmul_rn(piece.values.z, b));
  total.values.w = __fmaf_rn(total.values.w, a, __fmul_rn(piece.values.w, b));
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

// One tile of K or V into shared memory. `low` and `high`: where its first and second 8 tokens lie,
// the latter less 8 rows.
template <typename Tr>
__device__ __forceinline__ void copy_tile(uint32_t shared, const char* low, const char* high,
                                          int first_valid, int valid_end, int lane) {
  constexpr int kCopies = (kTile * Tr::kChunks + kWarp - 1) / kWarp;
  const bool whole = first_valid <= 0 && valid_end >= kTile;
#pragma unroll
  for (int j = 0; j < kCopies; ++j) {
    const int i = lane + j * kWarp;
    if (kTile * Tr::kChunks % kWarp != 0 && i >= kTile * Tr::kChunks) break;
    const int row = i / Tr::kChunks, chunk = i % Tr::kChunks;
    const char* half;
    if constexpr (Tr::kChunks % 4 == 0) {
      half = j < Tr::kChunks / 4 ? low : high;
    } else {
      half = row < 8 ? low : high;
    }
    const uint32_t to =
        shared + row * Tr::kPitch + ((Tr::kSwizzle ? chunk ^ (row & 7) : chunk) << 4);
    ptx::cp_async16(to, half + i * 16, whole || (row >= first_valid && row < valid_end));
  }
}

template <typename Tr>
__device__ __forceinline__ uint32_t chunk_address(uint32_t tile, int row, int chunk) {
  return tile + row * Tr::kPitch + ((Tr::kSwizzle ? chunk ^ (row & 7) : chunk) << 4);
}

__device__ __forceinline__ uint32_t half2_of_fp8(uint32_t pair) {
  const __half2_raw raw =
      __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(pair), __NV_E4M3);
  return uint32_t(raw.x) | uint32_t(raw.y) << 16;
}

// 16 tokens x 16 elements of K as the wide operand.
template <typename Tr>
__device__ __forceinline__ void load_k(uint32_t (&a)[4], uint32_t tile, int step, int lane) {
  if constexpr (Tr::kFp8) {
    uint32_t r[2];
    ptx::ldmatrix_x2(r, chunk_address<Tr>(tile, lane & 15, step));
    a[0] = half2_of_fp8(r[0] & 0xffffu);
    a[1] = half2_of_fp8(r[1] & 0xffffu);
    a[2] = half2_of_fp8(r[0] >> 16);
    a[3] = half2_of_fp8(r[1] >> 16);
  } else {
    ptx::ldmatrix_x4(a, chunk_address<Tr>(tile, lane & 15, 2 * step + (lane >> 4)));
  }
}

// 16 elements x 16 tokens of V' as the wide operand.
template <typename Tr>
__device__ __forceinline__ void load_v(uint32_t (&a)[4], uint32_t tile, int step, int lane) {
  if constexpr (Tr::kFp8) {
    uint32_t r[2];
    ptx::ldmatrix_x2_trans(r, chunk_address<Tr>(tile, lane & 15, step));
    // Bytes (token, element): (0,0) (0,1) (1,0) (1,1) -> (0,0) (1,0) (0,1) (1,1)
    r[0] = __byte_perm(r[0], 0, 0x3120);
    r[1] = __byte_perm(r[1], 0, 0x3120);
    a[0] = half2_of_fp8(r[0] & 0xffffu);
    a[1] = half2_of_fp8(r[0] >> 16);
    a[2] = half2_of_fp8(r[1] & 0xffffu);
    a[3] = half2_of_fp8(r[1] >> 16);
  } else {
    const int row = (lane & 7) + ((lane >> 4) << 3);
    ptx::ldmatrix_x4_trans(a, chunk_address<Tr>(tile, row, 2 * step + ((lane >> 3) & 1)));
  }
}

// The query as the narrow operand: this lane's head is lane / 4. In fp8 the order of elements
// within a step is load_k's.
template <typename Tr>
__device__ __forceinline__ void load_q(uint32_t (&q)[Tr::kSteps][2], const typename Tr::T* head,
                                       bool live, int lane) {
  constexpr int kPair = Tr::kFp8 ? 4 : 2, kSecond = Tr::kFp8 ? 2 : 8;
  const int first = (lane & 3) * kPair;
#pragma unroll
  for (int step = 0; step < Tr::kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t pair = 0;
      if (live) pair = *reinterpret_cast<const uint32_t*>(head + step * 16 + first + i * kSecond);
      if constexpr (!std::is_same_v<typename Tr::T, typename Tr::M>) {
        const auto two = *reinterpret_cast<const Vec<typename Tr::T, 2>*>(&pair);
        pair = pack2<typename Tr::M>(to_float(two.at[0]), to_float(two.at[1]));
      }
      q[step][i] = pair;
    }
  }
}

// What a warp has of the split it is in.
template <typename Tr>
struct Accumulator {
  float o[Tr::kSteps][4];  // rows: elements, columns: heads 2t and 2t + 1
  float max[2], sum[2];    // of heads 2t and 2t + 1; the sum is this lane's share

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < Tr::kSteps; ++i) o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0.0f;
    max[0] = max[1] = -kInfinity;
    sum[0] = sum[1] = 0.0f;
  }
};

template <typename Tr>
__device__ __forceinline__ void attend(Accumulator<Tr>& acc, const uint32_t (&q)[Tr::kSteps][2],
                                       uint32_t k_tile, uint32_t v_tile, int first_valid,
                                       int valid_end, float scale_log2, float soft_cap, int lane) {
  using M = typename Tr::M;
  float even[4] = {0.0f, 0.0f, 0.0f, 0.0f}, odd[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
  for (int step = 0; step < Tr::kSteps; ++step) {
    uint32_t a[4];
    load_k<Tr>(a, k_tile, step, lane);
    ptx::mma_m16n8k16<M>(step % 2 ? odd : even, a, q[step][0], q[step][1]);
  }
  float s[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) s[i] = (even[i] + odd[i]) * scale_log2;
  if (soft_cap > 0.0f) {
    // s is in powers of two: c tanh(x / c) log2(e), x = s / log2(e)
    const float c = soft_cap * kLog2e;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float e = ptx::exp2(s[i] * (2.0f * kLog2e / c));
      s[i] = c - 2.0f * c / (e + 1.0f);
    }
  }
  if (first_valid > 0 || valid_end < kTile) {
    const int token = lane >> 2;
    const bool low = token >= first_valid && token < valid_end;
    const bool high = token + 8 >= first_valid && token + 8 < valid_end;
    if (!low) s[0] = s[1] = -kInfinity;
    if (!high) s[2] = s[3] = -kInfinity;
  }
  const float top0 = fmaxf(s[0], s[2]), top1 = fmaxf(s[1], s[3]);
  const bool late = top0 > acc.max[0] + kRescaleAt || top1 > acc.max[1] + kRescaleAt;
  if (__any_sync(0xffffffffu, late)) {
    float top[2] = {top0, top1};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int offset = 4; offset < kWarp; offset <<= 1)
        top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], offset));
      top[h] = fmaxf(top[h], acc.max[h]);
      const float shrink = ptx::exp2(acc.max[h] - top[h]);
      acc.max[h] = top[h];
      acc.sum[h] *= shrink;
#pragma unroll
      for (int i = 0; i < Tr::kSteps; ++i) {
        acc.o[i][h] *= shrink;
        acc.o[i][h + 2] *= shrink;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) s[i] = ptx::exp2(s[i] - acc.max[i & 1]);
  acc.sum[0] += s[0] + s[2];
  acc.sum[1] += s[1] + s[3];
  const uint32_t b0 = ptx::movmatrix_trans(pack2<M>(s[0], s[1]));
  const uint32_t b1 = ptx::movmatrix_trans(pack2<M>(s[2], s[3]));
#pragma unroll
  for (int step = 0; step < Tr::kSteps; ++step) {
    uint32_t a[4];
    load_v<Tr>(a, v_tile, step, lane);
    ptx::mma_m16n8k16<M>(acc.o[step], a, b0, b1);
  }
}

// The warp's share of a split to shared memory: [heads][kMergePitch] values, [heads] (max, sum).
template <typename Tr>
__device__ __forceinline__ void put(Accumulator<Tr>& acc, float* values, float2* totals, int heads,
                                    int lane) {
  const int element = lane >> 2, head = 2 * (lane & 3);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int offset = 4; offset < kWarp; offset <<= 1)
      acc.sum[h] += __shfl_xor_sync(0xffffffffu, acc.sum[h], offset);
    if (head + h >= heads) continue;
    float* to = values + (head + h) * Tr::kMergePitch;
#pragma unroll
    for (int i = 0; i < Tr::kSteps; ++i) {
      if constexpr (Tr::kFp8) {
        *reinterpret_cast<float2*>(to + i * 16 + 2 * element) =
            make_float2(acc.o[i][h], acc.o[i][h + 2]);
      } else {
        to[i * 16 + element] = acc.o[i][h];
        to[i * 16 + element + 8] = acc.o[i][h + 2];
      }
    }
    if (element == 0) totals[head + h] = make_float2(acc.max[h], acc.sum[h]);
  }
}

// The warps' shares of a split, merged in order, for one float4 of one head.
template <typename Tr>
__device__ __forceinline__ Sum gather(const float* values, const float2* totals, int heads,
                                      int head, int vector) {
  Sum split;
  split.max = -kInfinity;
#pragma unroll
  for (int w = 0; w < Tr::kWarps; ++w)
    split.max = fmaxf(split.max, totals[w * kHeadsOfTile + head].x);
  split.sum = 0.0f;
  split.values = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
  for (int w = 0; w < Tr::kWarps; ++w) {
    const float2 total = totals[w * kHeadsOfTile + head];
    if (total.x == -kInfinity)
      continue;  // this warp had no token of the split; its values are stale
    const float weight = ptx::exp2(total.x - split.max);
    const float4 v = *reinterpret_cast<const float4*>(
        values + (w * heads + head) * Tr::kMergePitch + 4 * vector);
    split.sum = __fmaf_rn(total.y, weight, split.sum);
    split.values.x = __fmaf_rn(v.x, weight, split.values.x);
    split.values.y = __fmaf_rn(v.y, weight, split.values.y);
    split.values.z = __fmaf_rn(v.z, weight, split.values.z);
    split.values.w = __fmaf_rn(v.w, weight, split.values.w);
  }
  return split;
}

template <typename T>
__device__ __forceinline__ void write_out(T* to, const Sum& total, float v_scale) {
  const float factor = v_scale / total.sum;
  Vec<T, 4> out;
  out.at[0] = from_float<T>(total.values.x * factor);
  out.at[1] = from_float<T>(total.values.y * factor);
  out.at[2] = from_float<T>(total.values.z * factor);
  out.at[3] = from_float<T>(total.values.w * factor);
  *reinterpret_cast<Vec<T, 4>*>(to) = out;
}

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

  bool waited = false;
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
