// Sampling, a block a row, or a cluster of blocks where rows are few. The vocabulary is never
// sorted: the border of top-k and top-p is found with one histogram over the distance from the best
// logit, and an exact ranking of the few tokens in the bin that holds the border. Sums of
// probabilities are kept in fixed point, so that they do not depend on the order of addition.
#include "cuda/common.cuh"
#include "cuda/sample.h"
#include "cuda/sample_row.cuh"

namespace stoker::cuda {
namespace {

using namespace sampling;

constexpr float kGreedyBelow = 1e-5f;  // of temperatures; as vLLM

// Which of `count` consecutive parts holds the place at which the running weight, `before` ahead of
// the first, exceeds `target`; `before` becomes the weight ahead of that part. The last with any
// weight if none does, -1 if there is no weight.
template <typename At>
__device__ __forceinline__ int crossing(int count, const At& at, uint64_t target,
                                        uint64_t& before) {
  int chosen = -1;
  uint64_t ahead = before, before_chosen = before;
  for (int i = 0; i < count; ++i) {
    const uint64_t here = at(i);
    if (here > 0) {
      chosen = i;
      before_chosen = ahead;
      if (ahead + here > target) break;
    }
    ahead += here;
  }
  before = before_chosen;
  return chosen;
}

// The token, in id order, at which the running weight of the survivors exceeds `target`.
template <typename Read>
__device__ int draw(const Read& read, float best, const Border& border, uint32_t u24, int begin,
                    int end, Group& group) {
  Shared& s = group.s;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  auto weight = [&](float x, int token) {
    return border.keeps(x, token) ? weight_of(x - best) : 0ull;
  };
  auto of_warp = [&](int w) { return s.parts[w]; };
  uint64_t before = 0, target = 0;
  bool first = true, here = true;
  // Each turn the warps take equal parts of what is left and keep the one where the sum crosses;
  // after the first turn only the block that has it goes on.
  while (true) {
    const int part = ((end - begin + kWarps - 1) / kWarps + 7) / 8 * 8;
    const int from = min(end, begin + warp * part), to = min(end, from + part);
    uint64_t sum = 0;
    read.range(from, to, [&](float x, int token) { sum += weight(x, token); });
    sum = warp_sum64(sum);
    if (lane == 0) s.parts[warp] = sum;
    __syncthreads();
    if (first) {
      first = false;
      uint64_t total = 0;
      for (int w = 0; w < kWarps; ++w) total += s.parts[w];
      const Words* all = group.exchange({{total, 0, 0}});
      total = 0;
      for (int b = 0; b < group.blocks; ++b) total += all[b].at[0];
      target = __umul64hi(uint64_t(u24) << 40, total);  // floor(u * total)
      auto of_block = [&](int b) { return all[b].at[0]; };
      here = crossing(group.blocks, of_block, target, before) == group.rank;
    }
    const int chosen = here ? crossing(kWarps, of_warp, target, before) : -1;
    if (chosen < 0) {
      here = false;
      break;
    }
    const int new_begin = min(end, begin + chosen * part);
    end = min(end, new_begin + part);
    begin = new_begin;
    __syncthreads();
    if (end - begin <= kWarp) break;
  }
  // Few tokens are left: the first warp scans them.
  if (here && warp == 0) {
    const int token = begin + lane;
    const float x = token < end ? read.one(token) : -kInfinity;
    const uint64_t mine = token < end ? weight(x, token) : 0;
    uint64_t sum = mine;
#pragma unroll
    for (int offset = 1; offset < kWarp; offset <<= 1) {
      const uint64_t other = __shfl_up_sync(0xffffffffu, sum, offset);
      if (lane >= offset) sum += other;
    }
    const unsigned over = __ballot_sync(0xffffffffu, mine > 0 && before + sum > target);
    const unsigned any = __ballot_sync(0xffffffffu, mine > 0);
    if (lane == 0)
      s.token = over ? begin + __ffs(int(over)) - 1 : any ? begin + 31 - __clz(int(any)) : -1;
  }
  __syncthreads();
  const Words* all = group.exchange({{here ? uint64_t(s.token + 1) : 0, 0, 0}});
  int token = -1;
  for (int b = 0; b < group.blocks; ++b)
    if (all[b].at[0] != 0) token = int(all[b].at[0]) - 1;
  return token;
}

template <typename T, bool kVectors>
__global__ void __launch_bounds__(kThreads)
    sample_kernel(const __grid_constant__ SampleParams p, int blocks) {
  extern __shared__ __align__(16) char memory[];
  Group group{*reinterpret_cast<Shared*>(memory), blocks, int(blockIdx.x) % blocks};
  const int64_t row = int(blockIdx.x) / blocks;
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  if (blocks > 1) ptx::cluster_sync();  // all are there before one writes to another
  const int seat = p.row_seat[row];
  const int position = p.row_position[row];
  const SeatRecord record = p.seats[seat];
  const int segment = ((p.vocab + blocks - 1) / blocks + 7) / 8 * 8;
  const int begin = min(p.vocab, group.rank * segment), end = min(p.vocab, begin + segment);
  const Raw<T, kVectors> raw{static_cast<const T*>(p.logits) + row * p.logits_stride, p.vocab,
                             begin, end};
  const Adjusted<T, kVectors> adjusted = make_adjusted(p, raw, record, row, seat, position);

  // The best adjusted and the best raw value, and NaN anywhere. A thread's tokens ascend: the first
  // of equals stays.
  float best = -kInfinity, best_raw = -kInfinity;
  int best_token = 0;
  bool bad = false;
  adjusted.each_both([&](float before, float x, int token) {
    bad |= before != before || x != x;
    best_raw = fmaxf(best_raw, before);
    if (x > best) {
      best = x;
      best_token = token;
    }
  });
  Words found{{block_max64(best > -kInfinity ? key_of(best, best_token) : 0, group.s),
               block_max64(key_of(best_raw, 0), group.s), uint64_t(__syncthreads_or(bad) != 0)}};
  if (blocks > 1) {
    const Words* all = group.exchange(found);
    for (int b = 0; b < blocks; ++b)
      for (int i = 0; i < 3; ++i) found.at[i] = max(found.at[i], all[b].at[i]);
  }
  const uint64_t best_key = found.at[0];
  int token;
  if (found.at[2] != 0 || best_key == 0) {
    token = -1;
  } else if (record.temperature < kGreedyBelow || value_of(best_key) == kInfinity) {
    token = token_of(best_key);
  } else {
    const Tempered<Adjusted<T, kVectors>> read{adjusted, record.temperature, p.vocab};
    const float top = value_of(best_key) / record.temperature;
    Border border;
    if (record.min_p > 0.0f) {
      // p / p_best >= min_p, said in logits
      border = min_p_border(top, float(log(double(record.min_p))));
    }
    if (record.top_k > 0 && record.top_k < p.vocab)
      border = find_border<false>(read, top, border, uint64_t(record.top_k), group);
    if (record.top_p < 1.0f) {
      uint64_t sum = 0;
      read.each([&](float x, int t) {
        if (border.keeps(x, t)) sum += weight_of(x - top);
      });
      const double wanted = double(record.top_p) * double(group.sum64(sum));
      // A token stays while what is ahead of it is below the limit: the last one kept reaches it.
      const uint64_t limit = wanted < 1.0 ? 1 : uint64_t(ceil(wanted));
      border = find_border<true>(read, top, border, limit, group);
    }
    const uint32_t u24 = philox(record.seed_low, record.seed_high, uint32_t(position)) >> 8;
    token = draw(read, top, border, u24, begin, end, group);
  }
  if (threadIdx.x == 0 && group.rank == 0) p.out_tokens[row] = token;
  if (p.sampled_logprob && record.num_logprobs >= 0 && token >= 0)
    write_logprobs(p, raw, row, token, record.num_logprobs, value_of(found.at[1]), group);
  if (blocks > 1) ptx::cluster_sync();  // nobody leaves while its shared memory is read
}

// Blocks of a row: enough for half the device, as far as clusters go; two pay up to 64 rows.
int blocks_of_row(int64_t rows) {
  return rows <= 4 ? 16 : rows <= 8 ? 8 : rows <= 16 ? 4 : rows <= 64 ? 2 : 1;
}

template <typename T>
cudaError_t launch_sample(const SampleParams& p, const LaunchOptions& how) {
  constexpr int wide = 16 / sizeof(T);
  const bool vectors =
      p.logits_stride % wide == 0 && reinterpret_cast<uintptr_t>(p.logits) % 16 == 0;
  const auto kernel = vectors ? sample_kernel<T, true> : sample_kernel<T, false>;
  // Asked for once a thread and device: more than 48 KB, more than 8 blocks a cluster.
  static thread_local int asked[2] = {-1, -1};
  static thread_local bool has_clusters[2] = {};
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  if (asked[vectors] != device) {
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  int(sizeof(Shared)));
    if (status == cudaSuccess) status = compiled_for_clusters(kernel, &has_clusters[vectors]);
    if (status == cudaSuccess && has_clusters[vectors])
      status = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (status != cudaSuccess) return status;
    asked[vectors] = device;
  }
  const int blocks = has_clusters[vectors] ? blocks_of_row(p.rows) : 1;
  const Launch where{.grid = dim3(unsigned(p.rows * blocks)),
                     .block = dim3(kThreads),
                     .shared_bytes = sizeof(Shared),
                     .stream = how.stream,
                     .overlap = how.overlap,
                     .cluster = unsigned(blocks)};
  return launch(kernel, where, p, blocks);
}

}  // namespace

cudaError_t sample(const SampleParams& p, const LaunchOptions& how) {
  if (p.rows == 0) return cudaSuccess;
  switch (p.type) {
    case Type::float32:
      return launch_sample<float>(p, how);
    case Type::float16:
      return launch_sample<__half>(p, how);
    case Type::bfloat16:
      return launch_sample<__nv_bfloat16>(p, how);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace stoker::cuda
