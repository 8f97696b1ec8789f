// Sampling, a block a row. The vocabulary is never sorted: the border of top-k and top-p is found
// with one histogram over the distance from the best logit, and an exact ranking of the few tokens
// in the bin that holds the border. Sums of probabilities are kept in fixed point, so that they do
// not depend on the order of addition.
#include "cuda/common.cuh"
#include "cuda/sample.h"
#include "cuda/sample_row.cuh"

namespace stoker::cuda {
namespace {

using namespace sampling;

// The token, in id order, at which the running weight of the survivors exceeds `target`.
template <typename Read>
__device__ int draw(const Read& read, float best, const Border& border, uint32_t u24, Shared& s) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  auto weight = [&](float x, int token) {
    return border.keeps(x, token) ? weight_of(x - best) : 0ull;
  };
  int begin = 0, end = read.vocab;
  uint64_t before = 0, target = 0;
  bool have_target = false;
  // Each turn the warps take equal parts of what is left and keep the one where the sum crosses.
  while (true) {
    const int part = ((end - begin + kWarps - 1) / kWarps + 7) / 8 * 8;
    const int from = min(end, begin + warp * part), to = min(end, from + part);
    uint64_t sum = 0;
    read.range(from, to, [&](float x, int token) { sum += weight(x, token); });
    sum = warp_sum64(sum);
    if (lane == 0) s.parts[warp] = sum;
    __syncthreads();
    if (!have_target) {
      uint64_t total = 0;
      for (int w = 0; w < kWarps; ++w) total += s.parts[w];
      target = __umul64hi(uint64_t(u24) << 40, total);  // floor(u * total)
      have_target = true;
    }
    int chosen = -1;
    uint64_t at = before;
    int last_with_weight = -1;
    uint64_t before_last = before;
    for (int w = 0; w < kWarps; ++w) {
      const uint64_t here = s.parts[w];
      if (here > 0) last_with_weight = w, before_last = at;
      if (chosen < 0 && at + here > target) {
        chosen = w;
        before = at;
      }
      at += here;
    }
    if (chosen < 0) {  // cannot be, but for a total of 0
      if (last_with_weight < 0) return -1;
      chosen = last_with_weight;
      before = before_last;
    }
    const int new_begin = min(end, begin + chosen * part);
    end = min(end, new_begin + part);
    begin = new_begin;
    __syncthreads();
    if (end - begin <= kWarp) break;
  }
  // Few tokens are left: the first warp scans them.
  if (warp == 0) {
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
  const int token = s.token;
  __syncthreads();
  return token;
}

template <typename T, bool kVectors>
__global__ void __launch_bounds__(kThreads) sample_kernel(const __grid_constant__ SampleParams p) {
  extern __shared__ __align__(16) char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  const int64_t row = blockIdx.x;
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  const int seat = p.row_seat[row];
  const int position = p.row_position[row];
  const SeatRecord record = p.seats[seat];
  const Raw<T, kVectors> raw{static_cast<const T*>(p.logits) + row * p.logits_stride, p.vocab};
  const Adjusted<T, kVectors> adjusted = make_adjusted(p, raw, record, row, seat, position, s);

  // The best adjusted and the best raw value, and NaN anywhere.
  uint64_t best_key = 0, raw_key = 0;
  bool bad = false;
  adjusted.each_both([&](float before, float x, int token) {
    bad |= before != before || x != x;
    best_key = max(best_key, key_of(x, token));
    raw_key = max(raw_key, key_of(before, token));
  });
  bad = __syncthreads_or(bad);
  best_key = block_max64(best_key, s);
  raw_key = block_max64(raw_key, s);
  const float best = value_of(best_key);
  int token;
  if (bad || best == -kInfinity) {
    token = -1;
  } else if (record.temperature == 0.0f || best == kInfinity) {
    token = token_of(best_key);
  } else {
    const Tempered<Adjusted<T, kVectors>> read{adjusted, record.temperature, p.vocab};
    const float top = best / record.temperature;
    Border border;
    if (record.min_p > 0.0f) {
      // p / p_best >= min_p, said in logits
      border = min_p_border(top, float(log(double(record.min_p))));
    }
    if (record.top_k > 0 && record.top_k < p.vocab)
      border = find_border<false>(read, top, border, uint64_t(record.top_k), s);
    if (record.top_p < 1.0f) {
      uint64_t sum = 0;
      read.each([&](float x, int t) {
        if (border.keeps(x, t)) sum += weight_of(x - top);
      });
      const double wanted = double(record.top_p) * double(block_sum64(sum, s));
      // A token stays while what is ahead of it is below the limit: the last one kept reaches it.
      const uint64_t limit = wanted < 1.0 ? 1 : uint64_t(ceil(wanted));
      border = find_border<true>(read, top, border, limit, s);
    }
    const uint32_t u24 = philox(record.seed_low, record.seed_high, uint32_t(position)) >> 8;
    token = draw(read, top, border, u24, s);
  }
  if (threadIdx.x == 0) p.out_tokens[row] = token;
  if (p.sampled_logprob && record.num_logprobs >= 0 && token >= 0)
    write_logprobs(p, raw, row, token, record.num_logprobs, value_of(raw_key), s);
}

template <typename T>
cudaError_t launch_sample(const SampleParams& p, const LaunchOptions& how) {
  constexpr int wide = 16 / sizeof(T);
  const bool vectors =
      p.logits_stride % wide == 0 && reinterpret_cast<uintptr_t>(p.logits) % 16 == 0;
  const Launch where{.grid = dim3(unsigned(p.rows)),
                     .block = dim3(kThreads),
                     .shared_bytes = sizeof(Shared),
                     .stream = how.stream,
                     .overlap = how.overlap};
  const auto kernel = vectors ? sample_kernel<T, true> : sample_kernel<T, false>;
  // More than 48 KB wants asking for; a few hundred nanoseconds beside a kernel of many
  // microseconds.
  const cudaError_t status = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(sizeof(Shared)));
  if (status != cudaSuccess) return status;
  return launch(kernel, where, p);
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
