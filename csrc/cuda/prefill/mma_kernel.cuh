// The prefill kernel for every GPU from sm_80 on and for the shapes that the Hopper kernel leaves:
// mma.sync products, cp.async copies, four warps of 16 or 32 rows each (FlashAttention-2's
// schedule, Dao 2023, over a paged cache). Rows in shared memory are padded by 16 bytes, so that
// ldmatrix meets no bank twice.
#pragma once

#include <type_traits>

#include "cuda/common.cuh"
#include "cuda/prefill/params.cuh"

namespace stoker::cuda::prefill {

inline constexpr int kMmaThreads = 128;

template <int kHeadDim>
struct MmaShape {
  static constexpr int kRowTiles = kHeadDim <= 128 ? 2 : 1;  // of 16 rows, a warp
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = 4 * kWarpRows;
  static constexpr int kPasses = kPrefillTileRows / kRows;  // thread blocks that share an item
  static constexpr int kN = 64;                             // positions a tile
  static constexpr int kPitch = kHeadDim * 2 + 16;          // bytes a row
  static constexpr int kKOffset = kRows * kPitch;
  static constexpr int kVOffset = kKOffset + kN * kPitch;
  static constexpr int kSharedBytes = kVOffset + kN * kPitch + 16;
};

template <typename T, typename KV, int kHeadDim>
class MmaWorker {
  using Shape = MmaShape<kHeadDim>;
  static constexpr int kN = Shape::kN, kRowTiles = Shape::kRowTiles, kPitch = Shape::kPitch;
  static constexpr int kChunks = kHeadDim / 8;
  static_assert(kN * kChunks % kMmaThreads == 0 && kHeadDim % 16 == 0);

 public:
  __device__ __forceinline__ MmaWorker(const Params& params, char* shared)
      : p_(params),
        shared_(shared),
        base_(ptx::shared_address(shared)),
        thread_(static_cast<int>(threadIdx.x)),
        warp_(thread_ / 32),
        lane_(thread_ % 32) {}

  // Rows [pass * kRows, + kRows) of the unit's tile.
  __device__ __forceinline__ void work(const Unit& u, int pass) {
    const int rows = u.q_count * static_cast<int>(p_.group.divisor);
    const int first_row = pass * Shape::kRows;
    if (first_row >= rows) return;
    int tile = u.lowest / kN;
    const int end_tile = (u.kv_end + kN - 1) / kN;
    load_q(u, rows, first_row);
    load_kv(u, tile, p_.k_cache, p_.k_block_stride, Shape::kKOffset);
    ptx::cp_async_commit();

    int highest[kRowTiles][2];
    float most[kRowTiles][2], sum[kRowTiles][2];
    float o[kRowTiles][kHeadDim / 8][4];
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = first_row + warp_row(t) + (lane_ >> 2) + r * 8;
        highest[t][r] = u.first_position + min(p_.group.quotient(row), u.q_count - 1);
        most[t][r] = -kInfinity;
        sum[t][r] = 0.0f;
      }
#pragma unroll
      for (int j = 0; j < kHeadDim / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[t][j][i] = 0.0f;
    }
    const int window_start = p_.window > 0 ? u.first_position + kPrefillTileRows - p_.window : 0;

    for (; tile < end_tile; ++tile) {
      ptx::cp_async_wait<0>();
      __syncthreads();  // K (and Q) are there; nobody reads the V before any more
      load_kv(u, tile, p_.v_cache, p_.v_block_stride, Shape::kVOffset);
      ptx::cp_async_commit();
      float s[kRowTiles][kN / 8][4];
      multiply_scores(s);
      ptx::cp_async_wait<0>();
      __syncthreads();  // V is there; nobody reads this K any more
      if (tile + 1 < end_tile) load_kv(u, tile + 1, p_.k_cache, p_.k_block_stride, Shape::kKOffset);
      ptx::cp_async_commit();
      const bool masked = (tile + 1) * kN > u.first_position + 1 || tile * kN < window_start;
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t)
        soften(s[t], o[t], tile, masked, highest[t], most[t], sum[t]);
      multiply_values(s, o);
    }
    store(u, rows, first_row, o, sum);
  }

 private:
  __device__ __forceinline__ int warp_row(int row_tile) const {
    return warp_ * Shape::kWarpRows + row_tile * 16;
  }

  __device__ __forceinline__ const T* q_row(const Unit& u, int m) const {
    const int token = p_.group.quotient(m);
    const int group = static_cast<int>(p_.group.divisor);
    return static_cast<const T*>(p_.q) + (u.first_token + token) * p_.q_row_stride +
           (u.kv_head * group + m - token * group) * kHeadDim;
  }

  __device__ __forceinline__ void load_q(const Unit& u, int rows, int first_row) {
#pragma unroll
    for (int i = 0; i < Shape::kRows * kChunks / kMmaThreads; ++i) {
      const int index = thread_ + i * kMmaThreads;
      const int row = index / kChunks, chunk = index % kChunks;
      const int m = first_row + row;
      const bool valid = m < rows;
      ptx::cp_async16(base_ + row * kPitch + chunk * 16, q_row(u, valid ? m : 0) + chunk * 8,
                      valid);
    }
  }

  // Positions that nobody of the tile sees are zeros: what lies there is nobody's, and may be NaN.
  __device__ __forceinline__ void load_kv(const Unit& u, int tile, const void* cache,
                                          int64_t block_stride, int at) {
    constexpr int kTurns = kN * kChunks / kMmaThreads;
    if constexpr (std::is_same_v<KV, T>) {
      constexpr int kUnroll = kRowTiles == 1 ? 64 : 2;  // registers are short
#pragma unroll kUnroll
      for (int i = 0; i < kTurns; ++i) {
        const Place place = place_of(u, tile, i);
        const KV* source = static_cast<const KV*>(cache);
        if (place.valid) source += place.block * block_stride + place.inside;
        ptx::cp_async16(base_ + at + place.shared, source, place.valid);
      }
    } else {
      // 8-bit elements are widened on the way, a few loads in flight at a time.
      constexpr int kBatch = kTurns % 4 == 0 ? 4 : kTurns % 3 == 0 ? 3 : 5;
      static_assert(kTurns % kBatch == 0);
#pragma unroll 1
      for (int first = 0; first < kTurns; first += kBatch) {
        uint2 narrow[kBatch];
        uint32_t shared[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          const Place place = place_of(u, tile, first + i);
          narrow[i] = make_uint2(0, 0);
          shared[i] = place.shared;
          if (place.valid)
            narrow[i] = *reinterpret_cast<const uint2*>(static_cast<const KV*>(cache) +
                                                        place.block * block_stride + place.inside);
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i)
          *reinterpret_cast<uint4*>(shared_ + at + shared[i]) =
              make_uint4(widened(narrow[i].x), widened(narrow[i].x >> 16), widened(narrow[i].y),
                         widened(narrow[i].y >> 16));
      }
    }
  }

  // Two e4m3 elements, the low half word's, as two of T.
  static __device__ __forceinline__ uint32_t widened(uint32_t pair) {
    const __half2 halves(
        __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(pair), __NV_E4M3));
    if constexpr (std::is_same_v<T, __half>) return *reinterpret_cast<const uint32_t*>(&halves);
    const float2 both = __half22float2(halves);
    return pack2<T>(both.x, both.y);
  }

  // Where 8 elements of KV come from and go to: the i-th such piece of this thread.
  struct Place {
    bool valid;
    int block, inside, shared;
  };
  __device__ __forceinline__ Place place_of(const Unit& u, int tile, int i) const {
    const int index = thread_ + i * kMmaThreads;
    const int row = index / kChunks, chunk = index % kChunks;
    const int position = tile * kN + row;
    Place place{position < u.kv_end && position >= u.lowest, 0, 0, row * kPitch + chunk * 16};
    if (place.valid) {
      const int block_size = static_cast<int>(p_.block.divisor), slot = p_.block.quotient(position);
      place.block = u.blocks[slot];
      place.inside = (u.kv_head * block_size + position - slot * block_size) * kHeadDim + chunk * 8;
    }
    return place;
  }

  __device__ __forceinline__ void multiply_scores(float (&s)[kRowTiles][kN / 8][4]) {
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t)
#pragma unroll
      for (int j = 0; j < kN / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[t][j][i] = 0.0f;
    const uint32_t q = base_ + (warp_row(0) + lane_ % 16) * kPitch + (lane_ / 16) * 16;
    const uint32_t k =
        base_ + Shape::kKOffset + ((lane_ / 16) * 8 + lane_ % 8) * kPitch + (lane_ / 8 % 2) * 16;
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) ptx::ldmatrix_x4(a[t], q + t * 16 * kPitch + step * 32);
#pragma unroll
      for (int j = 0; j < kN / 16; ++j) {
        uint32_t b[4];
        ptx::ldmatrix_x4(b, k + j * 16 * kPitch + step * 32);
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
          ptx::mma_m16n8k16<T>(s[t][2 * j], a[t], b[0], b[1]);
          ptx::mma_m16n8k16<T>(s[t][2 * j + 1], a[t], b[2], b[3]);
        }
      }
    }
  }

  // Scores to weights in place, the result so far rescaled.
  __device__ __forceinline__ void soften(float (&s)[kN / 8][4], float (&o)[kHeadDim / 8][4],
                                         int tile, bool masked, const int (&highest)[2],
                                         float (&most)[2], float (&sum)[2]) {
    if (p_.soft_cap > 0.0f) {
#pragma unroll
      for (int j = 0; j < kN / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[j][i] = soft_capped(s[j][i], p_.soft_cap_inner, p_.soft_cap);
    }
    if (masked) {
      const int window = p_.window > 0 ? p_.window : 0x7fffffff;
#pragma unroll
      for (int j = 0; j < kN / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int behind = highest[i / 2] - (tile * kN + j * 8 + (lane_ % 4) * 2 + i % 2);
          if (behind < 0 || behind >= window) s[j][i] = -kInfinity;
        }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float now = most[r];
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) now = fmaxf(now, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
      now = fmaxf(now, __shfl_xor_sync(0xffffffff, now, 1));
      now = fmaxf(now, __shfl_xor_sync(0xffffffff, now, 2));
      // Of the difference, so that a tile that shows this row nothing new rescales by exactly 1.
      const float finite = now == -kInfinity ? 0.0f : now;
      const float shift = finite * p_.scale_log2;
      const float rescale = ptx::exp2((most[r] - finite) * p_.scale_log2);
      most[r] = now;
      float added = 0.0f;
#pragma unroll
      for (int j = 0; j < kN / 8; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          s[j][2 * r + i] = ptx::exp2(s[j][2 * r + i] * p_.scale_log2 - shift);
          added += s[j][2 * r + i];
        }
      sum[r] = sum[r] * rescale + added;
#pragma unroll
      for (int j = 0; j < kHeadDim / 8; ++j) {
        o[j][2 * r] *= rescale;
        o[j][2 * r + 1] *= rescale;
      }
    }
  }

  __device__ __forceinline__ void multiply_values(const float (&s)[kRowTiles][kN / 8][4],
                                                  float (&o)[kRowTiles][kHeadDim / 8][4]) {
    const uint32_t v =
        base_ + Shape::kVOffset + ((lane_ / 8 % 2) * 8 + lane_ % 8) * kPitch + (lane_ / 16) * 16;
#pragma unroll
    for (int step = 0; step < kN / 16; ++step) {
      uint32_t a[kRowTiles][4];
#pragma unroll
      for (int t = 0; t < kRowTiles; ++t) {
        a[t][0] = pack2<T>(s[t][2 * step][0], s[t][2 * step][1]);
        a[t][1] = pack2<T>(s[t][2 * step][2], s[t][2 * step][3]);
        a[t][2] = pack2<T>(s[t][2 * step + 1][0], s[t][2 * step + 1][1]);
        a[t][3] = pack2<T>(s[t][2 * step + 1][2], s[t][2 * step + 1][3]);
      }
#pragma unroll
      for (int j = 0; j < kHeadDim / 16; ++j) {
        uint32_t b[4];
        ptx::ldmatrix_x4_trans(b, v + step * 16 * kPitch + j * 32);
#pragma unroll
        for (int t = 0; t < kRowTiles; ++t) {
          ptx::mma_m16n8k16<T>(o[t][2 * j], a[t], b[0], b[1]);
          ptx::mma_m16n8k16<T>(o[t][2 * j + 1], a[t], b[2], b[3]);
        }
      }
    }
  }

  // Through the warp's own rows of Q's memory, which it has read for the last time.
  __device__ __forceinline__ void store(const Unit& u, int rows, int first_row,
                                        float (&o)[kRowTiles][kHeadDim / 8][4],
                                        const float (&sum)[kRowTiles][2]) {
    __syncwarp();
#pragma unroll
    for (int t = 0; t < kRowTiles; ++t)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float whole = sum[t][r];
        whole += __shfl_xor_sync(0xffffffff, whole, 1);
        whole += __shfl_xor_sync(0xffffffff, whole, 2);
        const float inverse = whole > 0.0f ? p_.value_scale / whole : 0.0f;
        char* row = shared_ + (warp_row(t) + (lane_ >> 2) + r * 8) * kPitch + (lane_ % 4) * 4;
#pragma unroll
        for (int j = 0; j < kHeadDim / 8; ++j)
          *reinterpret_cast<uint32_t*>(row + j * 16) =
              pack2<T>(o[t][j][2 * r] * inverse, o[t][j][2 * r + 1] * inverse);
      }
    __syncwarp();
    const int group = static_cast<int>(p_.group.divisor);
#pragma unroll
    for (int i = 0; i < Shape::kWarpRows * kChunks / 32; ++i) {
      const int index = lane_ + i * 32;
      const int row = warp_row(0) + index / kChunks, chunk = index % kChunks;
      const int m = first_row + row;
      if (m < rows) {
        const int token = p_.group.quotient(m);
        T* out = static_cast<T*>(p_.out) + (u.first_token + token) * p_.out_row_stride +
                 (u.kv_head * group + m - token * group) * kHeadDim + chunk * 8;
        *reinterpret_cast<uint4*>(out) =
            *reinterpret_cast<const uint4*>(shared_ + row * kPitch + chunk * 16);
      }
    }
  }

  const Params& p_;
  char* shared_;
  uint32_t base_;
  int thread_, warp_, lane_;
};

template <typename T, typename KV, int kHeadDim>
__global__ void __launch_bounds__(kMmaThreads) mma_kernel(const __grid_constant__ Params p) {
  using Shape = MmaShape<kHeadDim>;
  extern __shared__ __align__(16) char shared[];
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  const int total = num_units(p) * Shape::kPasses;
  volatile int* next = reinterpret_cast<volatile int*>(shared + Shape::kSharedBytes - 16);
  MmaWorker<T, KV, kHeadDim> worker(p, shared);
  while (true) {
    if (threadIdx.x == 0) *next = atomicAdd(p.queue, 1);
    __syncthreads();
    const int unit = *next;
    if (unit >= total) break;
    worker.work(read_unit(p, unit / Shape::kPasses), unit % Shape::kPasses);
    __syncthreads();
  }
  if (threadIdx.x == 0) leave_queue(p);
}

}  // namespace stoker::cuda::prefill
