// What sampling a row is made of: reading logits as they are or adjusted, a histogram, and exact
// ranking of a few candidates.
#pragma once

#include "cuda/sample_group.cuh"

namespace stoker::cuda::sampling {

// The logits as they came. Every reader has each(f), over the block; range(begin, end, f), begin a
// multiple of 8, over the warp; one(token).
template <typename T, bool kVectors>
struct Raw {
  const T* logits;
  int vocab;
  int begin, end;  // of this block's segment

  // Eight logits as they lie in memory.
  struct Eight {
    Vec<T, 16 / sizeof(T)> at[sizeof(T) / 2];
  };
  __device__ __forceinline__ Eight load(int i, int end) const {
    Eight held;
    if (i + 8 <= end) {
#pragma unroll
      for (int v = 0; v < int(sizeof(T) / 2); ++v)
        held.at[v] = reinterpret_cast<const Vec<T, 16 / sizeof(T)>*>(logits + i)[v];
    }
    return held;
  }

  // f(values[8], first token, how many); three loads are in flight a thread.
  template <typename F>
  __device__ __forceinline__ void eights(int begin, int end, int thread, int threads,
                                         const F& f) const {
    const int step = threads * 8;
    int i = begin + thread * 8;
    Eight now{}, next{}, later{};
    if constexpr (kVectors) {
      now = load(i, end);
      next = load(i + step, end);
      later = load(i + 2 * step, end);
    }
#pragma unroll 1
    for (; i < end; i += step) {
      float x[8];
      const int count = min(8, end - i);
      if (kVectors && count == 8) {
        constexpr int wide = 16 / sizeof(T);
#pragma unroll
        for (int j = 0; j < 8; ++j) x[j] = to_float(now.at[j / wide].at[j % wide]);
      } else {
#pragma unroll
        for (int j = 0; j < 8; ++j) x[j] = j < count ? to_float(logits[i + j]) : -kInfinity;
      }
      if constexpr (kVectors) {
        now = next;
        next = later;
        later = load(i + 3 * step, end);
      }
      f(x, i, count);
    }
  }
  template <typename F>
  __device__ __forceinline__ void each(const F& f) const {
    eights(begin, end, threadIdx.x, kThreads, [&](const float (&x)[8], int first, int count) {
#pragma unroll
      for (int j = 0; j < 8; ++j)
        if (j < count) f(x[j], first + j);
    });
  }
};

// The logits after mask, bias, banned stop tokens and penalties, before the temperature.
template <typename T, bool kVectors>
struct Adjusted {
  Raw<T, kVectors> raw;
  const int32_t* mask;    // this row's words, or nullptr
  const int32_t* counts;  // this seat's, or nullptr where no penalty is asked for
  const int32_t* bias_ids;
  const float* bias_values;
  const int32_t* stop_ids;
  int num_bias, num_stop;           // 0 stop tokens once they are allowed
  int lowest_patch, highest_patch;  // of all bias and stop tokens
  float repetition, presence, frequency;

  __device__ __forceinline__ float adjust(float x, int token) const {
    if (mask && !(uint32_t(mask[token >> 5]) >> (token & 31) & 1)) x = -kInfinity;
    if (token >= lowest_patch && token <= highest_patch) {
      for (int i = 0; i < num_bias; ++i)
        if (bias_ids[i] == token) x += bias_values[i];
      for (int i = 0; i < num_stop; ++i)
        if (stop_ids[i] == token) x = -kInfinity;
    }
    if (counts) {
      const int32_t count = counts[token];
      const int32_t output = count & (kPromptBit - 1);
      if (count != 0 && repetition != 1.0f) x = x > 0.0f ? x / repetition : x * repetition;
      x = __fsub_rn(x, __fmul_rn(frequency, float(output)));
      x = __fsub_rn(x, output > 0 ? presence : 0.0f);
    }
    return x;
  }
  // Most rows ask for none of it and are read eight logits at a time.
  __device__ __forceinline__ bool plain() const { return !mask && !counts && highest_patch < 0; }
  __device__ __forceinline__ float at(int token) const {
    return adjust(to_float(raw.logits[token]), token);
  }
  template <typename F>
  __device__ __forceinline__ void each_both(const F& f) const {
    if (plain()) {
      raw.each([&](float x, int token) { f(x, x, token); });
    } else {
#pragma unroll 1
      for (int t = raw.begin + int(threadIdx.x); t < raw.end; t += kThreads)
        f(to_float(raw.logits[t]), at(t), t);
    }
  }
  template <typename F>
  __device__ __forceinline__ void each(const F& f) const {
    each_both([&](float, float x, int token) { f(x, token); });
  }
  template <typename F>
  __device__ __forceinline__ void range(int begin, int end, const F& f) const {
    if (plain()) {
      raw.eights(begin, end, threadIdx.x % kWarp, kWarp,
                 [&](const float (&x)[8], int first, int count) {
#pragma unroll
                   for (int j = 0; j < 8; ++j)
                     if (j < count) f(x[j], first + j);
                 });
      return;
    }
#pragma unroll 1
    for (int t = begin + int(threadIdx.x % kWarp); t < end; t += kWarp) f(at(t), t);
  }
  __device__ __forceinline__ float one(int token) const {
    return adjust(to_float(raw.logits[token]), token);
  }
};

// Divided by the temperature.
template <typename Read>
struct Tempered {
  const Read& read;
  float temperature;
  int vocab;

  template <typename F>
  __device__ __forceinline__ void each(const F& f) const {
    read.each([&](float x, int token) { f(x / temperature, token); });
  }
  template <typename F>
  __device__ __forceinline__ void range(int begin, int end, const F& f) const {
    read.range(begin, end, [&](float x, int token) { f(x / temperature, token); });
  }
  __device__ __forceinline__ float one(int token) const { return read.one(token) / temperature; }
};

template <typename T, bool kVectors>
__device__ Adjusted<T, kVectors> make_adjusted(const SampleParams& p, const Raw<T, kVectors>& raw,
                                               const SeatRecord& record, int64_t row, int seat,
                                               int position) {
  Adjusted<T, kVectors> a;
  a.raw = raw;
  a.mask = p.mask && p.mask_row && p.mask_row[row] >= 0 ? p.mask + p.mask_row[row] * p.mask_stride
                                                        : nullptr;
  const bool neutral = record.repetition_penalty == 1.0f && record.presence_penalty == 0.0f &&
                       record.frequency_penalty == 0.0f;
  a.counts = p.penalty_counts && !neutral ? p.penalty_counts + seat * p.counts_stride : nullptr;
  a.bias_ids = p.bias_ids + seat * p.bias_stride;
  a.bias_values = p.bias_values + seat * p.bias_value_stride;
  a.stop_ids = p.stop_ids + seat * p.stop_stride;
  a.num_bias = record.num_bias;
  a.num_stop = position < record.min_position ? record.num_stop : 0;
  a.repetition = record.repetition_penalty;
  a.presence = record.presence_penalty;
  a.frequency = record.frequency_penalty;
  a.lowest_patch = 0x7fffffff;
  a.highest_patch = -1;
  for (int i = 0; i < a.num_bias; ++i) {
    a.lowest_patch = min(a.lowest_patch, a.bias_ids[i]);
    a.highest_patch = max(a.highest_patch, a.bias_ids[i]);
  }
  for (int i = 0; i < a.num_stop; ++i) {
    a.lowest_patch = min(a.lowest_patch, a.stop_ids[i]);
    a.highest_patch = max(a.highest_patch, a.stop_ids[i]);
  }
  return a;
}

__device__ __forceinline__ void clear_histogram(Shared& s) {
  for (int i = threadIdx.x; i < kBins; i += kThreads) s.histogram[i] = 0;
  __syncthreads();
}

struct BinPlace {
  int bin;  // -1: the whole histogram stays below the limit
  uint64_t ahead;
};
// The bin in [begin, begin + count) at which the running sum, which begins with `ahead`, first
// reaches `limit`, and the sum before it. One block.
__device__ __forceinline__ BinPlace find_bin(Shared& s, int begin, int count, uint64_t ahead,
                                             uint64_t limit) {
  const int each = (count + kThreads - 1) / kThreads;
  const int first = begin + min(count, int(threadIdx.x) * each);
  const int last = begin + min(count, (int(threadIdx.x) + 1) * each);
  uint64_t mine = 0;
  for (int i = first; i < last; ++i) mine += s.histogram[i];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  uint64_t sum = mine;
#pragma unroll
  for (int offset = 1; offset < kWarp; offset <<= 1) {
    const uint64_t other = __shfl_up_sync(0xffffffffu, sum, offset);
    if (lane >= offset) sum += other;
  }
  if (threadIdx.x == 0) s.bin = -1;
  if (lane == kWarp - 1) s.parts[warp] = sum;
  __syncthreads();
  ahead += sum - mine;
  for (int w = 0; w < warp; ++w) ahead += s.parts[w];
  for (int i = first; i < last; ++i) {
    const uint64_t here = s.histogram[i];
    if (ahead < limit && ahead + here >= limit) {
      s.bin = i;
      s.total = ahead;
    }
    ahead += here;
  }
  __syncthreads();
  const BinPlace place{s.bin, s.total};
  __syncthreads();
  return place;
}
// The same over the sum of all blocks' histograms, which are used up: each block adds up a part of
// the bins.
__device__ __forceinline__ BinPlace find_bin(Group& group, uint64_t limit) {
  Shared& s = group.s;
  if (group.blocks == 1) return find_bin(s, 0, kBins, 0, limit);
  ptx::cluster_sync();
  const int count = kBins / group.blocks, begin = group.rank * count;
  uint64_t total = 0;
  for (int i = begin + int(threadIdx.x); i < begin + count; i += kThreads) {
    uint64_t bin = 0;
    for (int b = 0; b < group.blocks; ++b) bin += ptx::cluster_pointer(s.histogram, b)[i];
    total += bin;
    s.histogram[i] = bin;  // nobody else reads these bins of this block
  }
  total = block_sum64(total, s);
  const Words* all = group.exchange({{total, 0, 0}});
  uint64_t ahead = 0;
  for (int b = 0; b < group.rank; ++b) ahead += all[b].at[0];
  Words mine{};
  if (ahead < limit && ahead + total >= limit) {
    const BinPlace place = find_bin(s, begin, count, ahead, limit);
    mine = {{uint64_t(place.bin) + 1, place.ahead, 0}};
  }
  all = group.exchange(mine);
  for (int b = 0; b < group.blocks; ++b)
    if (all[b].at[0] != 0) return {int(all[b].at[0]) - 1, all[b].at[1]};
  return {-1, 0};
}

// candidates[0, count) to sorted, best first.
__device__ __forceinline__ void rank_candidates(Shared& s, int count) {
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const uint64_t mine = s.candidates[i];
    int rank = 0;
    for (int j = 0; j < count; ++j) rank += s.candidates[j] > mine;
    s.sorted[rank] = mine;
  }
  __syncthreads();
}

// Who survives: values above `value`, and those equal to it up to token `last`. Never -infinity.
struct Border {
  float value = -kInfinity;
  int last = -1;
  __device__ __forceinline__ bool keeps(float x, int token) const {
    return x > value || (x == value && token <= last);
  }
};

// min-p: what is within `threshold` (<= 0) of the best stays, ties at the border too.
__device__ __forceinline__ Border min_p_border(float best, float threshold) {
  // The largest value that does not: monotone in x, so a few steps from where exact arithmetic puts
  // it.
  float x = best + threshold;
  while (x - best >= threshold) x = nextafterf(x, -kInfinity);
  while (nextafterf(x, kInfinity) - best < threshold) x = nextafterf(x, kInfinity);
  return Border{x, -1};
}

// Sorted best first, lower token first on a tie: the border is the first token at which the count
// (or the weight) of itself and all ahead of it reaches `limit`; `among` where it never does.
template <bool kByWeight, typename Read>
__device__ Border find_border(const Read& read, float best, const Border& among, uint64_t limit,
                              Group& group) {
  Shared& s = group.s;
  auto amount = [&](float x) { return kByWeight ? weight_of(x - best) : 1ull; };
  clear_histogram(s);
  read.each([&](float x, int token) {
    if (among.keeps(x, token)) atomicAdd(&s.histogram[bin_of(best - x)], amount(x));
  });
  __syncthreads();
  const BinPlace place = find_bin(group, limit);
  if (place.bin < 0) return among;
  const uint64_t wanted = limit - place.ahead;  // within the bin
  auto in_bin = [&](float x, int token) {
    return among.keeps(x, token) && bin_of(best - x) == place.bin;
  };
  if (threadIdx.x == 0) s.num_candidates = 0;
  __syncthreads();
  uint64_t top_key = 0, low_key = ~0ull;
  read.each([&](float x, int token) {
    if (!in_bin(x, token)) return;
    const uint64_t key = key_of(x, token);
    top_key = max(top_key, key);
    low_key = min(low_key, key);
    const int at = atomicAdd(&s.num_candidates, 1);
    if (at < kMaxCandidates) s.candidates[at] = key;
  });
  const int found = group.gather_candidates();
  if (found <= kMaxCandidates) {
    uint64_t key = 0;
    if (group.rank == 0) {
      clear_histogram(s);
      rank_candidates(s, found);
      for (int i = threadIdx.x; i < found; i += kThreads)
        s.histogram[i] = amount(value_of(s.sorted[i]));
      __syncthreads();
      const int at = find_bin(s, 0, kMaxCandidates, 0, wanted).bin;
      key = s.sorted[at < 0 ? found - 1 : at];
    }
    key = group.exchange({{key, 0, 0}})[0].at[0];
    return Border{value_of(key), token_of(key)};
  }
  // Crowded, as with equal or nearly equal logits: bisection for the largest key at which the sum
  // reaches `wanted`.
  uint64_t low = ~group.max64(~low_key), high = group.max64(top_key) + 1;
  while (high - low > 1) {
    const uint64_t middle = low + (high - low) / 2;
    uint64_t sum = 0;
    read.each([&](float x, int token) {
      if (in_bin(x, token) && key_of(x, token) >= middle) sum += amount(x);
    });
    sum = group.sum64(sum);
    (sum >= wanted ? low : high) = middle;
  }
  return Border{value_of(low), token_of(low)};
}

// Logprobs of the raw logits: of the sampled token, its rank, and the best `count` tokens.
template <typename T, bool kVectors>
__device__ void write_logprobs(const SampleParams& p, const Raw<T, kVectors>& raw, int64_t row,
                               int token, int count, float best, Group& group) {
  Shared& s = group.s;
  count = min(min(count, p.max_top), p.vocab);
  const float mine = to_float(raw.logits[token]);
  uint64_t sum = 0;
  int ahead = 0;
  raw.each([&](float x, int) {
    sum += weight_of(x - best);
    ahead += x > mine;
  });
  const float log_sum = best + float(log(double(group.sum64(sum)) * 0x1p-44));
  const int rank = 1 + int(group.sum64(uint64_t(ahead)));
  if (threadIdx.x == 0 && group.rank == 0) {
    p.sampled_logprob[row] = mine - log_sum;
    p.rank[row] = rank;
  }
  // As many at a time as there is room to rank: those that this border keeps and the last did not.
  Border before{kInfinity, -1};  // keeps nothing
  for (int begin = 0; begin < count; begin += kMaxCandidates) {
    const int end = min(count, begin + kMaxCandidates);
    const Border border = find_border<false>(raw, best, Border{}, uint64_t(end), group);
    if (threadIdx.x == 0) s.num_candidates = 0;
    __syncthreads();
    raw.each([&](float x, int t) {
      if (!border.keeps(x, t) || before.keeps(x, t)) return;
      const int at = atomicAdd(&s.num_candidates, 1);
      if (at < kMaxCandidates) s.candidates[at] = key_of(x, t);
    });
    const int found = min(group.gather_candidates(), kMaxCandidates);
    if (group.rank == 0) {
      rank_candidates(s, found);
      for (int i = threadIdx.x; i < min(found, end - begin); i += kThreads) {
        const int64_t at = row * p.top_stride + begin + i;
        p.top_ids[at] = token_of(s.sorted[i]);
        p.top_logprobs[at] = value_of(s.sorted[i]) - log_sum;
      }
    }
    before = border;
  }
}

}  // namespace stoker::cuda::sampling
