// What the Hopper prefill kernel's two consumer warpgroups do: scores, softmax, values, merging of
// splits, the result.
#pragma once

#include "cuda/prefill/hopper.cuh"
#include "cuda/prefill/split_merge.cuh"
#include "cuda/prefill/wgmma.cuh"
#include "cuda/prefill/wgmma_shared.cuh"

namespace stoker::cuda::prefill {

template <typename T, int kHeadDim, bool kSoftCap>
class WgmmaConsumer {
  using Shape = WgmmaShape<kHeadDim>;
  using Barriers = WgmmaBarriers<Shape>;
  using Mma = ptx::Wgmma<T>;
  static constexpr int kN = kPrefillTilePositions;
  static constexpr int kScores = kN / 2;        // registers a thread
  static constexpr int kValues = kHeadDim / 2;  // registers a thread
  static constexpr int kChunks = kHeadDim / 8;  // 16-byte chunks a row
  static constexpr int kSplitTiles = kPrefillSplitPositions / kN;

 public:
  __device__ __forceinline__ WgmmaConsumer(const Params& params, char* shared, uint32_t base,
                                           int warpgroup)
      : p_(params),
        shared_(shared),
        base_(base),
        warpgroup_(warpgroup),
        thread_(static_cast<int>(threadIdx.x) % 128),
        lane_(static_cast<int>(threadIdx.x) % kWarp) {}

  __device__ __forceinline__ void run() {
    // The first warpgroup has the first turn.
    if (warpgroup_ == 1) ptx::named_barrier_arrive(turn_barrier(0), 256);
    RingPlace<kUnitSlots> slot;
    while (true) {
      const Unit u = take_unit<Shape>(shared_, base_, slot);
      if (u.q_count == 0) break;
      work(u);
    }
  }

 private:
  __device__ __forceinline__ uint32_t barrier(int index) const {
    return Barriers::at(base_, index);
  }
  __device__ __forceinline__ uint32_t turn_barrier(int warpgroup) const { return 3 + warpgroup; }
  __device__ __forceinline__ void sync_warpgroup() const {
    ptx::named_barrier_sync(1 + warpgroup_, 128);
  }
  // One arrival a warp.
  __device__ __forceinline__ void release(int index) const {
    __syncwarp();
    if (lane_ == 0) ptx::mbarrier_arrive(barrier(index));
  }
  // The row (of 128) that result register pair r of this thread belongs to.
  __device__ __forceinline__ int tile_row(int r) const {
    return warpgroup_ * 64 + (thread_ / kWarp) * 16 + lane_ / 4 + r * 8;
  }
  // A 16-byte chunk of a row (of 128) of the current Q.
  __device__ __forceinline__ char* q_chunk(int row, int chunk) const {
    return shared_ + Shape::kQOffset + q_.stage * Shape::kTileBytes +
           (chunk / 8) * Shape::kGroupBytes + row * 128 + (((chunk % 8) ^ (row % 8)) * 16);
  }

  __device__ __forceinline__ void work(const Unit& u) {
    const int rows = u.q_count * static_cast<int>(p_.group.divisor);
    int tile = u.lowest / kN;
    const int end_tile = (u.kv_end + kN - 1) / kN;
    ptx::mbarrier_wait(barrier(Barriers::kQFull + q_.stage), q_.parity);
    if (warpgroup_ * 64 < rows) {
      int highest[2];
#pragma unroll
      for (int r = 0; r < 2; ++r)
        highest[r] = u.first_position + min(p_.group.quotient(tile_row(r)), u.q_count - 1);
      float o[kValues];
      RowState state, before;
      bool first = true;
      while (true) {
        const int split_end = min(end_tile, (tile / kSplitTiles + 1) * kSplitTiles);
        walk(u, tile, split_end, rows > 64, highest, o, state);
        if (!first) {
          const MergeWeights w = merge_rows(before, state, p_.scale_log2);
          state = before;
#pragma unroll
          for (int i = 0; i < kValues; ++i)
            o[i] = merge_value(__ldcg(total() + i * 128), o[i], w, (i >> 1) & 1);
        }
        tile = split_end;
        if (tile == end_tile) break;
        first = false;
        before = state;
#pragma unroll
        for (int i = 0; i < kValues; ++i) __stcg(total() + i * 128, o[i]);
      }
      if (u.partial < 0 || gather(u, o, state)) store(u, rows, o, state);
      ptx::fence_async_shared();
    } else {
      pass(tile, end_tile);
    }
    release(Barriers::kQEmpty + q_.stage);
    q_.advance();
  }

  // A warpgroup without rows keeps the rings turning.
  __device__ __forceinline__ void pass(int tile, int end_tile) {
    for (; tile < end_tile; ++tile) {
      ptx::mbarrier_wait(barrier(Barriers::kKFull + k_.stage), k_.parity);
      release(Barriers::kKEmpty + k_.stage);
      k_.advance();
      ptx::mbarrier_wait(barrier(Barriers::kVFull + v_.stage), v_.parity);
      release(Barriers::kVEmpty + v_.stage);
      v_.advance();
    }
  }

  // Tiles [tile, end_tile) of one split, from a fresh start.
  __device__ __forceinline__ void walk(const Unit& u, int tile, int end_tile, bool turns,
                                       const int (&highest)[2], float (&o)[kValues],
                                       RowState& state) {
    const int window_start = p_.window > 0 ? u.first_position + kPrefillTileRows - p_.window : 0;
    const auto masked = [&](int t) {
      return (t + 1) * kN > u.first_position + 1 || t * kN < window_start ||
             (t + 1) * kN > u.kv_end;
    };
    float s[kScores];
    uint32_t weights[kN / 16][4];
    float rescale[2];
#pragma unroll
    for (int i = 0; i < kValues; ++i) o[i] = 0.0f;
    state = {{-kInfinity, -kInfinity}, {0.0f, 0.0f}};

    ptx::mbarrier_wait(barrier(Barriers::kKFull + k_.stage), k_.parity);
    multiply_scores(s);
    ptx::wgmma_wait<0>();
    ptx::pin(s);
    release(Barriers::kKEmpty + k_.stage);
    k_.advance();
    soften(s, tile, masked(tile), highest, state, rescale);
    pack(s, weights);

    for (++tile; tile < end_tile; ++tile) {
      ptx::mbarrier_wait(barrier(Barriers::kKFull + k_.stage), k_.parity);
      if (turns) ptx::named_barrier_sync(turn_barrier(warpgroup_), 256);
      multiply_scores(s);
      wait_values(u, tile - 1);
      multiply_values(o, weights);
      if (turns) ptx::named_barrier_arrive(turn_barrier(warpgroup_ ^ 1), 256);
      ptx::wgmma_wait<1>();
      ptx::pin(s);
      release(Barriers::kKEmpty + k_.stage);
      k_.advance();
      soften(s, tile, masked(tile), highest, state, rescale);
      ptx::wgmma_wait<0>();
      ptx::pin(o);
      release(Barriers::kVEmpty + v_.stage);
      v_.advance();
#pragma unroll
      for (int i = 0; i < kValues; ++i) o[i] *= rescale[(i >> 1) & 1];
      pack(s, weights);
    }

    wait_values(u, tile - 1);
    multiply_values(o, weights);
    ptx::wgmma_wait<0>();
    ptx::pin(o);
    release(Barriers::kVEmpty + v_.stage);
    v_.advance();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      state.sum[r] += __shfl_xor_sync(0xffffffff, state.sum[r], 1);
      state.sum[r] += __shfl_xor_sync(0xffffffff, state.sum[r], 2);
    }
  }

  __device__ __forceinline__ void multiply_scores(float (&s)[kScores]) {
    const uint32_t q =
        base_ + Shape::kQOffset + q_.stage * Shape::kTileBytes + warpgroup_ * 64 * 128;
    const uint32_t k = base_ + Shape::kKOffset + k_.stage * Shape::kTileBytes;
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      const int at = step / 4 * Shape::kGroupBytes + step % 4 * 32;
      Mma::scores(s, ptx::swizzled_tile(q + at, 16), ptx::swizzled_tile(k + at, 16), step > 0);
    }
    ptx::wgmma_commit();
  }

  __device__ __forceinline__ void multiply_values(float (&o)[kValues],
                                                  uint32_t (&weights)[kN / 16][4]) {
    const uint32_t v = base_ + Shape::kVOffset + v_.stage * Shape::kTileBytes;
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < kN / 16; ++step)
      Mma::values(o, weights[step], ptx::swizzled_tile(v + step * 16 * 128, Shape::kGroupBytes));
    ptx::wgmma_commit();
  }

  __device__ __forceinline__ void wait_values(const Unit& u, int tile) {
    ptx::mbarrier_wait(barrier(Barriers::kVFull + v_.stage), v_.parity);
    const int begin = u.lowest - tile * kN, end = u.kv_end - tile * kN;
    if (begin > 0 || end < kN) clear_outside(max(begin, 0), min(end, kN));
  }

  // Zeroes the V rows of positions outside [begin, end), relative to the tile: what lies there is
  // nobody's, and may be NaN, which a weight of zero would not hide. Both warpgroups write the same
  // zeros, each before its own product.
  __device__ __forceinline__ void clear_outside(int begin, int end) {
    char* v = shared_ + Shape::kVOffset + v_.stage * Shape::kTileBytes;
#pragma unroll 1  // rare and in the middle of the loop: as short as can be
    for (int group = 0; group < Shape::kColumnGroups; ++group) {
      uint4* chunks = reinterpret_cast<uint4*>(v + group * Shape::kGroupBytes);
#pragma unroll 1
      for (int i = thread_; i < begin * 8; i += 128) chunks[i] = make_uint4(0, 0, 0, 0);
#pragma unroll 1
      for (int i = end * 8 + thread_; i < kN * 8; i += 128) chunks[i] = make_uint4(0, 0, 0, 0);
    }
    ptx::fence_async_shared();
    sync_warpgroup();
  }

  // Scores of a tile to weights, in place; `rescale` is what earlier results of the row are
  // multiplied with.
  __device__ __forceinline__ void soften(float (&s)[kScores], int tile, bool masked,
                                         const int (&highest)[2], RowState& state,
                                         float (&rescale)[2]) {
    if constexpr (kSoftCap) {
#pragma unroll
      for (int i = 0; i < kScores; ++i) s[i] = soft_capped(s[i], p_.soft_cap_inner, p_.soft_cap);
    }
    if (masked) {
      const int first = tile * kN + (lane_ & 3) * 2;
      const int window = p_.window > 0 ? p_.window : 0x7fffffff;
#pragma unroll
      for (int i = 0; i < kScores; ++i) {
        const int position = first + (i >> 2) * 8 + (i & 1);
        const int behind = highest[(i >> 1) & 1] - position;
        if (behind < 0 || behind >= window) s[i] = -kInfinity;
      }
    }
    // Two chains a row keep the adders busy.
    float most[2][2] = {{state.maximum[0], s[0]}, {state.maximum[1], s[2]}};
#pragma unroll
    for (int i = 0; i < kScores; i += 2) {
      float& chain = most[(i >> 1) & 1][(i >> 2) & 1];
      chain = fmaxf(chain, fmaxf(s[i], s[i + 1]));
    }
    float shift[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float now = fmaxf(most[r][0], most[r][1]);
      now = fmaxf(now, __shfl_xor_sync(0xffffffff, now, 1));
      now = fmaxf(now, __shfl_xor_sync(0xffffffff, now, 2));
      // Of the difference, so that a tile that shows this row nothing new rescales by exactly 1.
      const float finite = now == -kInfinity ? 0.0f : now;
      shift[r] = finite * p_.scale_log2;
      rescale[r] = ptx::exp2((state.maximum[r] - finite) * p_.scale_log2);
      state.maximum[r] = now;
    }
    float sum[2][2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      s[i] = ptx::exp2(s[i] * p_.scale_log2 - shift[(i >> 1) & 1]);
      sum[(i >> 1) & 1][(i >> 2) & 1] += s[i];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) state.sum[r] = state.sum[r] * rescale[r] + (sum[r][0] + sum[r][1]);
  }

  static __device__ __forceinline__ void pack(const float (&s)[kScores],
                                              uint32_t (&weights)[kN / 16][4]) {
#pragma unroll
    for (int i = 0; i < kN / 4; ++i) weights[i / 4][i % 4] = pack2<T>(s[2 * i], s[2 * i + 1]);
  }

  // What this thread has of the unit's earlier splits, 128 floats apart.
  __device__ __forceinline__ float* total() const {
    return p_.totals + (static_cast<int64_t>(blockIdx.x) * 2 + warpgroup_) * kValues * 128 +
           thread_;
  }

  // Leaves this split in the workspace. The last split to arrive merges all, in order of position,
  // and returns true.
  __device__ __forceinline__ bool gather(const Unit& u, float (&o)[kValues], RowState& state) {
    constexpr int kFloats = (kValues + 4) * 128;
    const int split = u.flags & 0xffff, splits = u.flags >> 16;
    const int64_t tile_index = static_cast<int64_t>(u.partial) * p_.num_kv_heads + u.kv_head;
    const auto place = [&](int i) {
      return p_.partials +
             ((tile_index + static_cast<int64_t>(i) * p_.num_kv_heads) * 2 + warpgroup_) * kFloats +
             thread_;
    };
    float* mine = place(split);
#pragma unroll
    for (int i = 0; i < kValues; ++i) __stcg(mine + i * 128, o[i]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      __stcg(mine + (kValues + r) * 128, state.maximum[r]);
      __stcg(mine + (kValues + 2 + r) * 128, state.sum[r]);
    }
    __threadfence();
    sync_warpgroup();
    // The warpgroup's rows of Q have been read for the last time: they carry the answer from one
    // thread to all.
    volatile int* answer = reinterpret_cast<volatile int*>(q_chunk(warpgroup_ * 64, 0));
    int32_t* arrived = p_.arrivals + tile_index * 2 + warpgroup_;
    if (thread_ == 0) {
      const int count = atomicAdd(arrived, 1) + 1;
      if (count == splits) *arrived = 0;
      __threadfence();
      *answer = count;
    }
    sync_warpgroup();
    const bool last = *answer == splits;
    sync_warpgroup();
    if (!last) return false;
    for (int i = 0; i < splits; ++i) {
      const float* other = place(i);
      RowState part;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        part.maximum[r] = __ldcg(other + (kValues + r) * 128);
        part.sum[r] = __ldcg(other + (kValues + 2 + r) * 128);
      }
      if (i == 0) {
        state = part;
#pragma unroll
        for (int j = 0; j < kValues; ++j) o[j] = __ldcg(other + j * 128);
      } else {
        const MergeWeights w = merge_rows(state, part, p_.scale_log2);
#pragma unroll
        for (int j = 0; j < kValues; ++j)
          o[j] = merge_value(o[j], __ldcg(other + j * 128), w, (j >> 1) & 1);
      }
    }
    return true;
  }

  // Through the warp's own rows of Q's memory, which it has read for the last time.
  __device__ __forceinline__ void store(const Unit& u, int rows, const float (&o)[kValues],
                                        const RowState& state) {
    float inverse[2];
#pragma unroll
    for (int r = 0; r < 2; ++r)
      inverse[r] = state.sum[r] > 0.0f ? p_.value_scale / state.sum[r] : 0.0f;
#pragma unroll
    for (int i = 0; i < kValues / 2; ++i) {
      const int r = i & 1;
      reinterpret_cast<uint32_t*>(q_chunk(tile_row(r), i >> 1))[lane_ & 3] =
          pack2<T>(o[2 * i] * inverse[r], o[2 * i + 1] * inverse[r]);
    }
    __syncwarp();
    T* out = static_cast<T*>(p_.out);
    const int group = static_cast<int>(p_.group.divisor), first = tile_row(0) - lane_ / 4;
#pragma unroll
    for (int i = 0; i < kChunks / 2; ++i) {
      const int index = lane_ + i * kWarp;
      const int row = first + index / kChunks, chunk = index % kChunks;
      if (row < rows) {
        const int token = p_.group.quotient(row);
        const int head = u.kv_head * group + row - token * group;
        *reinterpret_cast<uint4*>(out + (u.first_token + token) * p_.out_row_stride +
                                  head * kHeadDim + chunk * 8) =
            *reinterpret_cast<const uint4*>(q_chunk(row, chunk));
      }
    }
  }

  const Params& p_;
  char* shared_;
  uint32_t base_;
  int warpgroup_, thread_, lane_;
  RingPlace<Shape::kQStages> q_;
  RingPlace<Shape::kKStages> k_;
  RingPlace<Shape::kVStages> v_;
};

}  // namespace stoker::cuda::prefill
