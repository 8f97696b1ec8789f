// What a warp does with a tile of KV, and how pieces of a result merge. Scores are computed
// transposed, S' = K Q' (16 tokens x 8 heads), and so is the output, O' = V' P': KV tiles are the
// wide operand of the tensor cores and up to 8 query heads of a group the narrow one, so that
// little of an instruction is padding at any group size.
#pragma once

#include <type_traits>

#include "cuda/common.cuh"
#include "cuda/decode.h"

namespace stoker::cuda::decode {

inline constexpr int kTile = 16;  // tokens of a warp's tile
inline constexpr int kItemsHeld =
    7;  // work items in shared memory: what fits beside two blocks' rings
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

// 16 tokens x 16 elements of K as the wide operand.
template <typename Tr>
__device__ __forceinline__ void load_k(uint32_t (&a)[4], uint32_t tile, int step, int lane) {
  if constexpr (Tr::kFp8) {
    uint32_t r[2];
    ptx::ldmatrix_x2(r, chunk_address<Tr>(tile, lane & 15, step));
    a[0] = half2_of_e4m3(r[0] & 0xffffu);
    a[1] = half2_of_e4m3(r[1] & 0xffffu);
    a[2] = half2_of_e4m3(r[0] >> 16);
    a[3] = half2_of_e4m3(r[1] >> 16);
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
    a[0] = half2_of_e4m3(r[0] & 0xffffu);
    a[1] = half2_of_e4m3(r[0] >> 16);
    a[2] = half2_of_e4m3(r[1] & 0xffffu);
    a[3] = half2_of_e4m3(r[1] >> 16);
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

}  // namespace stoker::cuda::decode
