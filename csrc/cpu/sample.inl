// One row of logits to one token: mask, bias and penalties, the draw, and its logprobs. Included
// inside a per-ISA anonymous namespace.

// As vLLM: a temperature below this is greedy.
constexpr float kGreedyBelow = 1e-5f;

inline uint32_t high_product(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }

// Philox4x32-10 (Salmon et al., SC 2011): the first word's upper 24 bits as a float in [0, 1).
inline float philox_uniform(uint32_t key0, uint32_t key1, uint32_t position) {
  uint32_t c0 = position, c1 = 0, c2 = 0, c3 = 0;
  for (int round_ = 0; round_ < 10; ++round_) {
    const uint32_t high0 = high_product(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const uint32_t high1 = high_product(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ key0;
    c1 = low1;
    c2 = high0 ^ c3 ^ key1;
    c3 = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return float(c0 >> 8) * 0x1p-24f;
}

// x widened into `out`, padded with -inf to whole vectors; the maximum, or NaN if any is NaN.
template <typename T>
inline float widen_row(float* out, const T* x, int64_t size) {
  Vec best = set1(kMinusInfinity), bad = zero();
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    const Vec v = load(x + i);
    store(out + i, v);
    best = max(v, best);
    bad = add(bad, sub(v, v));  // 0, or NaN for NaN and infinities: looked at closer below
  }
  if (i < size) {
    for (int64_t j = i; j < i + kLanes; ++j) out[j] = j < size ? to_float(x[j]) : kMinusInfinity;
    const Vec v = load(out + i);
    best = max(v, best);
    bad = add(bad, sub(v, v));
  }
  if (any_nan(bad)) {
    for (int64_t j = 0; j < size; ++j) {
      if (out[j] != out[j]) return __builtin_nanf("");
    }
  }
  return maximum(best);
}

inline float row_maximum(const float* x, int64_t size) {
  Vec best = set1(kMinusInfinity);
  for (int64_t i = 0; i < size; i += kLanes) best = max(load(x + i), best);
  return maximum(best);
}

inline int32_t first_equal(const float* x, int64_t size, float value) {
  const Vec wanted = set1(value);
  for (int64_t i = 0; i < size; i += kLanes) {
    const uint32_t lanes = lanes_not_below(load(x + i), wanted);
    if (lanes) return int32_t(i + __builtin_ctz(lanes));
  }
  return -1;
}

// Grammar mask, logit bias, stop tokens banned early, penalties: whether anything may have changed.
[[gnu::noinline]] bool adjust(const SampleParams& p, int64_t row, const SeatRecord& seat,
                              float* x) {
  bool changed = false;
  const int32_t mask_row = p.mask ? p.mask_row[row] : -1;
  if (mask_row >= 0) {
    changed = true;
    const int32_t* words = p.mask + mask_row * p.mask_stride;
    for (int64_t base = 0; base < p.vocab; base += 32) {
      const uint32_t allowed = uint32_t(words[base / 32]);
      if (allowed == 0xffffffffu) continue;
      const int64_t count = p.vocab - base < 32 ? p.vocab - base : 32;
      for (int64_t i = 0; i < count; ++i) {
        if (!(allowed >> i & 1)) x[base + i] = kMinusInfinity;
      }
    }
  }
  const int64_t s = p.row_seat[row];
  const int64_t num_bias = seat.num_bias < p.bias_width ? seat.num_bias : p.bias_width;
  for (int64_t i = 0; i < num_bias; ++i) {
    const int32_t id = p.bias_ids[s * p.bias_width + i];
    if (id < 0 || id >= p.vocab) continue;
    x[id] += p.bias_values[s * p.bias_width + i];
    changed = true;
  }
  if (p.row_position[row] < seat.min_position) {
    const int64_t num_stop = seat.num_stop < p.stop_width ? seat.num_stop : p.stop_width;
    for (int64_t i = 0; i < num_stop; ++i) {
      const int32_t id = p.stop_ids[s * p.stop_width + i];
      if (id < 0 || id >= p.vocab) continue;
      x[id] = kMinusInfinity;
      changed = true;
    }
  }
  const bool penalties = seat.repetition_penalty != 1.0f || seat.presence_penalty != 0.0f ||
                         seat.frequency_penalty != 0.0f;
  if (!p.penalty_counts || !penalties) return changed;
  const int32_t* counts = p.penalty_counts + s * p.vocab;
  for (int64_t base = 0; base < p.vocab; base += 16) {
    const int64_t count = p.vocab - base < 16 ? p.vocab - base : 16;
    int32_t any = 0;
    for (int64_t i = 0; i < count; ++i) any |= counts[base + i];
    if (!any) continue;
    for (int64_t i = base; i < base + count; ++i) {
      if (!counts[i]) continue;
      float v = x[i];
      v = v > 0 ? v / seat.repetition_penalty : v * seat.repetition_penalty;
      const float seen = float(counts[i] & (kPromptBit - 1));
      v = v - seat.frequency_penalty * seen;
      x[i] = v - seat.presence_penalty * (seen > 0 ? 1.0f : 0.0f);
    }
  }
  return true;
}

// The same over all tokens with y >= floor_, without a list of candidates. y is made from x on the
// way.
[[gnu::noinline]] int32_t draw_from_all(float* x, int64_t size, float inverse_temperature,
                                        float top, float cut, float u, double* block_weights) {
  const Vec factor = set1(inverse_temperature), shift = set1(top), floor_ = set1(-cut);
  double whole = 0;
  int64_t block = 0;
  for (int64_t base = 0; base < size; base += kSumBlock) {
    const int64_t end = base + kSumBlock < size ? base + kSumBlock : size;
    Vec total = zero();
    for (int64_t i = base; i < end; i += kLanes) {
      const Vec y = sub(mul(load(x + i), factor), shift);
      const Vec weight = keep_if_not_below(exp(y), y, floor_);
      store(x + i, weight);
      total = add(total, weight);
    }
    block_weights[block] = double(sum(total));
    whole += block_weights[block++];
  }
  const double target = double(u) * whole;
  double cumulative = 0;
  int64_t b = 0;
  while (b + 1 < block && cumulative + block_weights[b] <= target) cumulative += block_weights[b++];
  int32_t last = -1;
  for (int64_t i = b * kSumBlock; i < size; ++i) {
    if (x[i] <= 0.0f) continue;
    last = int32_t(i);
    cumulative += double(x[i]);
    if (cumulative > target) return last;
  }
  if (last >= 0) return last;
  for (int64_t i = size - 1; i >= 0; --i) {
    if (x[i] > 0.0f) return int32_t(i);
  }
  return -1;
}

// log_softmax of the raw row x (its maximum: top), the sampled token's rank and the best tokens.
[[gnu::noinline]] void write_logprobs(const SampleParams& p, int64_t row, int32_t token,
                                      int64_t best, const float* x, float top) {
  const Vec shift = set1(top);
  const float sampled = x[token];
  double whole = 0;
  int64_t rank = 1;
  for (int64_t base = 0; base < p.vocab; base += kSumBlock) {
    const int64_t end = base + kSumBlock < p.vocab ? base + kSumBlock : p.vocab;
    Vec total = zero();
    for (int64_t i = base; i < end; i += kLanes) total = add(total, exp(sub(load(x + i), shift)));
    whole += double(sum(total));
  }
  const Vec mine = set1(sampled);
  for (int64_t i = 0; i < p.vocab; i += kLanes) {
    const Vec v = load(x + i);
    rank += __builtin_popcount(lanes_not_below(v, mine)) -
            __builtin_popcount(lanes_not_below(v, mine) & lanes_not_below(mine, v));
  }
  const double log_whole = __builtin_log(whole) + double(top);
  p.logprob[row] = float(double(sampled) - log_whole);
  p.rank[row] = int32_t(rank);
  if (best > p.top_width) best = p.top_width;
  if (best > p.vocab) best = p.vocab;
  if (best <= 0) return;
  int32_t* ids = p.top_ids + row * p.top_width;
  float* values = p.top_logprobs + row * p.top_width;
  int64_t held = 0;
  for (int64_t i = 0; i < p.vocab; i += kLanes) {
    uint32_t lanes =
        lanes_not_below(load(x + i), set1(held < best ? kMinusInfinity : values[best - 1]));
    for (; lanes; lanes &= lanes - 1) {
      const int64_t id = i + __builtin_ctz(lanes);
      const float v = x[id];
      if (id >= p.vocab || (held == best && v <= values[best - 1])) continue;
      int64_t j = held < best ? held++ : best - 1;
      for (; j > 0 && values[j - 1] < v; --j) {
        values[j] = values[j - 1];
        ids[j] = ids[j - 1];
      }
      values[j] = v;
      ids[j] = int32_t(id);
    }
  }
  for (int64_t i = 0; i < held; ++i) values[i] = float(double(values[i]) - log_whole);
}

struct SampleScratch {
  float* x;
  float* weights;
  Candidate* candidates;
  Candidate* spare;
  int32_t* buckets;
  double* bucket_weights;
  double* block_weights;
};

// Matches sample_scratch_bytes.
inline SampleScratch lay_out_sample(void* memory, int64_t vocab) {
  const int64_t size = (vocab + 63) / 64 * 64;
  char* at = static_cast<char*>(memory);
  const auto take = [&](int64_t bytes) {
    char* start = at;
    at += (bytes + 63) / 64 * 64;
    return start;
  };
  SampleScratch s;
  s.x = reinterpret_cast<float*>(take(size * 4));
  s.weights = reinterpret_cast<float*>(take(size * 4));
  s.candidates = reinterpret_cast<Candidate*>(take(size * 8));
  s.spare = reinterpret_cast<Candidate*>(take(size * 16));
  s.buckets = reinterpret_cast<int32_t*>(take(kBuckets * 4));
  s.bucket_weights = reinterpret_cast<double*>(take(kBuckets * 8));
  s.block_weights = reinterpret_cast<double*>(take((size / kSumBlock + 1) * 8));
  return s;
}

[[gnu::noinline]] int32_t sample_adjusted(const SampleParams& p, int64_t row,
                                          const SeatRecord& seat, float best,
                                          const SampleScratch& s) {
  if (best == kMinusInfinity || best != best) return -1;
  if (seat.temperature < kGreedyBelow || best > kLargest) return first_equal(s.x, p.vocab, best);
  const float inverse_temperature = 1.0f / seat.temperature;
  const float top = best * inverse_temperature;
  const float u = philox_uniform(seat.seed_low, seat.seed_high, uint32_t(p.row_position[row]));
  const float min_p_cut = seat.min_p > 0 ? -float(__builtin_log(double(seat.min_p))) : kLargest;
  const bool limited = seat.top_k > 0 && seat.top_k < p.vocab;
  const bool shared = seat.top_p < 1.0f;
  if (!limited && !shared) {
    return draw_from_all(s.x, p.vocab, inverse_temperature, top, min_p_cut, u, s.block_weights);
  }
  Ladder ladder = {{1.0f, 2.0f, 4.0f, 6.0f, 9.0f, 14.0f, 24.0f, kLargest}, {}, {}};
  for (float& cut : ladder.cut) cut = cut < min_p_cut ? cut : min_p_cut;
  int64_t rung = 0;
  if (limited) {
    climb<false>(s.x, p.vocab, inverse_temperature, top, ladder);
    while (rung + 1 < kCuts && ladder.count[rung] < seat.top_k) ++rung;
  } else {
    climb<true>(s.x, p.vocab, inverse_temperature, top, ladder);
    // The margin covers the rounding of the sums, so that the border lies among the candidates for
    // certain.
    const double wanted = double(seat.top_p) * ladder.weight[kCuts - 1];
    while (rung + 1 < kCuts && ladder.weight[rung] * (1 - 1e-4) < wanted) ++rung;
  }
  const float cut = ladder.cut[rung];
  const int64_t count = gather(s.x, p.vocab, cut, s.candidates);
  weigh(s.candidates, count, s.weights);
  Border border{-kLargest, int32_t(p.vocab)};
  if (limited && count > seat.top_k) {
    border = find_border(s.candidates, s.weights, count, seat.top_k, 1.0f, 0, cut, s.spare,
                         s.buckets, s.bucket_weights);
  }
  if (!shared) return draw(s.candidates, s.weights, count, border, u);
  // top-p looks at what top-k left.
  int64_t kept = 0;
  double whole = limited ? 0 : ladder.weight[kCuts - 1];
  for (int64_t i = 0; i < count; ++i) {
    const Candidate c = s.candidates[i];
    if (c.y < border.y || (c.y == border.y && c.id > border.id)) continue;
    s.candidates[kept] = c;
    s.weights[kept++] = s.weights[i];
    if (limited) whole += double(s.weights[i]);
  }
  border = find_border(s.candidates, s.weights, kept, kept, seat.top_p, whole, cut, s.spare,
                       s.buckets, s.bucket_weights);
  return draw(s.candidates, s.weights, kept, border, u);
}

template <typename T>
void sample_row(const SampleParams& p, int64_t row, void* memory) {
  const T* raw = static_cast<const T*>(p.logits) + row * p.logits_stride;
  const SeatRecord& seat = p.seats[p.row_seat[row]];
  const SampleScratch s = lay_out_sample(memory, p.vocab);
  float best = widen_row(s.x, raw, p.vocab);
  int32_t token = -1;
  if (best == best) {
    if (adjust(p, row, seat, s.x)) {
      best = row_maximum(s.x, p.vocab);
    }
    token = sample_adjusted(p, row, seat, best, s);
  }
  p.out_tokens[row] = token;
  if (p.logprob && seat.num_logprobs >= 0 && token >= 0) {
    const float top = widen_row(s.x, raw, p.vocab);  // once more: the row was changed
    write_logprobs(p, row, token, seat.num_logprobs, s.x, top);
  }
}

void sample(const SampleParams& p, int64_t row, void* memory) {
  switch (p.type) {
    case Type::bfloat16:
      return sample_row<Bf16>(p, row, memory);
    case Type::float16:
      return sample_row<F16>(p, row, memory);
    default:
      return sample_row<float>(p, row, memory);
  }
}
