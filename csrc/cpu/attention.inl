// Paged attention: one walk over the KV of one seat and KV head for up to kMaxRows (token, head)
// rows, with the online softmax of Milakov & Gimelshein (2018) and FlashAttention (Dao et al.,
// 2022), in base 2.
//
// What a row computes depends on its own query, on the positions it sees and on nothing else: tiles
// and splits lie at absolute positions, a row skips the tiles it does not see, and each split
// starts fresh and is merged in order. Included inside a per-ISA anonymous namespace.

constexpr float kMinusInfinity = -__builtin_inff();

// Values widened to float in scratch, shared by many rows.
struct WideValues {
  const float* base;
  int64_t stride;
  const float* row(int64_t j) const { return base + j * stride; }
  void fetch_ahead(int64_t) const {}
};
// Values read where they lie in the cache. While they are, the next tile's keys are on their way.
template <typename T>
struct CachedValues {
  const T* const* rows;
  const T* const* next_keys;
  int64_t row_bytes;
  const T* row(int64_t j) const { return rows[j]; }
  void fetch_ahead(int64_t j) const {
    const char* line = reinterpret_cast<const char*>(next_keys[j]);
    for (int64_t b = 0; b < row_bytes; b += 64) __builtin_prefetch(line + b, 0, 2);
  }
};

// Scratch of one walk. Rows are (token, head) pairs, the heads of a token side by side.
struct Walk {
  int64_t rows = 0, heads = 0, head_dim = 0;
  int64_t width = 0;  // head_dim rounded up to whole vectors
  float *q, *keys, *values, *scores;
  float *out, *max, *sum;                    // of the split under way
  float *total_out, *total_max, *total_sum;  // of the splits before it
  float *decay, *ones;
  float* zero_row;
  int32_t token[kMaxRows];                // of each row, counted from the walk's first
  int32_t low[kMaxRows], high[kMaxRows];  // which positions of the tile each row sees
};

inline int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

inline Walk lay_out(float* scratch, int64_t rows, int64_t heads, int64_t head_dim) {
  Walk w;
  w.rows = rows;
  w.heads = heads;
  w.head_dim = head_dim;
  w.width = padded(head_dim);
  const auto take = [&](int64_t count) {
    float* start = scratch;
    scratch += padded(count);
    return start;
  };
  w.q = take(kMaxRows * w.width);
  w.keys = take(kTile * w.width);
  w.values = take(kTile * w.width);
  w.scores = take(kMaxRows * kTile);
  w.out = take(kMaxRows * w.width);
  w.total_out = take(kMaxRows * w.width);
  w.max = take(kMaxRows);
  w.sum = take(kMaxRows);
  w.total_max = take(kMaxRows);
  w.total_sum = take(kMaxRows);
  w.decay = take(kMaxRows);
  w.ones = take(kMaxRows);
  w.zero_row = take(w.width);
  for (int64_t i = 0; i < kMaxRows; ++i) w.ones[i] = 1.0f;
  for (int64_t r = 0; r < rows; ++r) w.token[r] = int32_t(r / heads);
  for (int64_t i = 0; i < w.width; ++i) w.zero_row[i] = 0.0f;
  return w;
}

inline float exp2_scalar(float x) {
  alignas(64) float lanes[kLanes];
  store(lanes, exp2(set1(x)));
  return lanes[0];
}

// Starts a split: nothing seen yet.
inline void start_split(Walk& w) {
  for (int64_t r = 0; r < w.rows; ++r) {
    w.max[r] = kMinusInfinity;
    w.sum[r] = 0.0f;
  }
  for (int64_t i = 0; i < w.rows * w.width; ++i) w.out[i] = 0.0f;
}

// Adds one partial of one row to its total. A row that saw nothing of the split is left as it is.
[[gnu::noinline]] void merge_row(float* total_out, float& total_max, float& total_sum,
                                 const float* out, float max_, float sum_, int64_t width) {
  if (sum_ == 0.0f) return;
  if (total_sum == 0.0f) {
    total_max = max_;
    total_sum = sum_;
    for (int64_t i = 0; i < width; ++i) total_out[i] = out[i];
    return;
  }
  const float top = total_max > max_ ? total_max : max_;
  const float a = exp2_scalar(total_max - top), b = exp2_scalar(max_ - top);
  total_max = top;
  total_sum = __builtin_fmaf(total_sum, a, sum_ * b);
  const Vec va = set1(a), vb = set1(b);
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    store(total_out + i, fma(load(total_out + i), va, mul(load(out + i), vb)));
  }
}

// The rows' softmax weights of one tile, in place of the scores, and how much what came before
// decays. Row r sees positions [low, high) of the tile.
[[gnu::noinline]] void weigh_row(const AttentionParams& p, Walk& w, int64_t r, int64_t low,
                                 int64_t high) {
  float* scores = w.scores + r * kTile;
  const Vec nothing = set1(kMinusInfinity);
  const Vec scale = set1(p.soft_cap > 0 ? p.score_scale / p.soft_cap : p.score_scale * kLog2e);
  const Vec cap = set1(p.soft_cap * kLog2e);
  Vec top = nothing;
  bool bad = false;
  constexpr int64_t vecs = kTile / kLanes;
  Vec x[vecs];
  for (int64_t c = 0; c < vecs; ++c) {
    x[c] = nothing;
    if (c * kLanes >= high || (c + 1) * kLanes <= low) continue;
    x[c] = mul(load(scores + c * kLanes), scale);
    if (p.soft_cap > 0) x[c] = mul(tanh(x[c]), cap);
    x[c] = keep_lanes(x[c], low - c * kLanes, high - c * kLanes, nothing);
    bad |= any_nan(x[c]);
    top = max(x[c], top);
  }
  const float before = w.max[r];
  float now = maximum(top);
  now = now > before ? now : before;
  if (bad) now = __builtin_nanf("");
  w.max[r] = now;
  // Without this a row whose scores are all -inf would be NaN already here; it becomes NaN at its
  // end, as softmax says.
  const Vec shift = set1(now);
  Vec total = zero();
  for (int64_t c = 0; c < vecs; ++c) {
    if (c * kLanes >= high || (c + 1) * kLanes <= low) continue;
    const Vec weight =
        keep_lanes(exp2(sub(x[c], shift)), low - c * kLanes, high - c * kLanes, zero());
    store(scores + c * kLanes, weight);
    total = add(total, weight);
  }
  const float decay = before == kMinusInfinity ? 0.0f : exp2_scalar(before - now);
  w.decay[r] = decay;
  w.sum[r] = __builtin_fmaf(w.sum[r], decay, sum(total));
}

// weights x values for rows [begin, end); row r sees [w.low[r], w.high[r]) of the tile. Rows of a
// block that see different ends are walked one by one where they differ and together where they do
// not: each row's order is the same.
template <typename Values>
[[gnu::noinline]] void add_values(Walk& w, int64_t begin, int64_t end, const Values& values) {
  const auto add_one = [&](int64_t row, const float* decay, int64_t from, int64_t to) {
    value_rows<1>(w.out + row * w.width, w.width, decay, w.scores + row * kTile, from, to, values,
                  w.width);
  };
  for (int64_t r = begin; r < end; r += kBlockRows) {
    const int64_t rows = end - r < kBlockRows ? end - r : kBlockRows;
    int64_t from = 0, to = kTile;
    for (int64_t i = r; i < r + rows; ++i) {
      if (w.low[i] > from) from = w.low[i];
      if (w.high[i] < to) to = w.high[i];
    }
    if (from >= to) {
      for (int64_t i = r; i < r + rows; ++i) add_one(i, w.decay + i, w.low[i], w.high[i]);
      continue;
    }
    const float* decay = w.decay + r;
    if (w.low[r] < from) {  // earlier tokens see more at the beginning
      for (int64_t i = r; i < r + rows; ++i) add_one(i, w.decay + i, w.low[i], from);
      decay = w.ones;
    }
    with_rows(rows, [&](auto count) {
      value_rows<count.value>(w.out + r * w.width, w.width, decay, w.scores + r * kTile, from, to,
                              values, w.width);
    });
    for (int64_t i = r; i < r + rows; ++i) {
      if (w.high[i] > to) add_one(i, w.ones, to, w.high[i]);
    }
  }
}

template <bool kPairs>
[[gnu::noinline]] void score_all(Walk& w, int64_t begin, int64_t end, int64_t positions) {
  const int64_t steps = kPairs ? w.head_dim / 2 : w.head_dim;
  for (int64_t r = begin; r < end; r += kBlockRows) {
    const int64_t rows = end - r < kBlockRows ? end - r : kBlockRows;
    with_rows(rows, [&](auto count) {
      score_rows<kPairs, count.value>(w.q + r * w.width, w.width, w.keys, steps, positions,
                                      w.scores + r * kTile);
    });
  }
}

// Queries and keys as pairs: where the instruction is, and both are bfloat16.
template <typename K>
constexpr bool kPairKeys = false;
template <>
constexpr bool kPairKeys<Bf16> = kDotPairs;

// Where the keys and values of positions [begin, end) lie; the rest of the tile points to zeros.
template <typename K>
inline void locate(const AttentionParams& p, const AttentionItem& item, const Walk& w,
                   int64_t start, int64_t begin, int64_t end, const K** keys, const K** values) {
  for (int64_t j = 0; j < kTile; ++j) keys[j] = values[j] = reinterpret_cast<const K*>(w.zero_row);
  if (begin >= end) return;
  const int32_t* block =
      p.block_table + item.seat * p.table_stride + (start + begin) / p.block_size;
  int64_t offset = (start + begin) % p.block_size;
  const int64_t head = item.kv_head * p.block_size * p.head_dim;
  for (int64_t j = begin; j < end; ++block, offset = 0) {
    const K* k = static_cast<const K*>(p.k_cache) + *block * p.k_block_stride + head;
    const K* v = static_cast<const K*>(p.v_cache) + *block * p.v_block_stride + head;
    for (; j < end && offset < p.block_size; ++j, ++offset) {
      keys[j] = k + offset * p.head_dim;
      values[j] = v + offset * p.head_dim;
    }
  }
}

// One tile for rows that see any of it.
template <typename K>
inline void walk_tile(const AttentionParams& p, const AttentionItem& item, Walk& w, int64_t tile) {
  const int64_t start = tile * kTile;
  // Row r sees [low, high) of the tile.
  const auto high_of = [&](int64_t r) {
    const int64_t seen = item.first_kv_len + w.token[r] - start;
    return seen < kTile ? seen : kTile;
  };
  const auto low_of = [&](int64_t r) {
    const int64_t left = p.window > 0 ? item.first_kv_len + w.token[r] - p.window - start : 0;
    return left > 0 ? left : 0;
  };
  // Later tokens see more at the end and less at the beginning, so the rows that see something are
  // one run.
  int64_t begin = 0, end = w.rows;
  while (begin < end && high_of(begin) <= 0) begin += w.heads;
  while (begin < end && low_of(end - 1) >= kTile) end -= w.heads;
  if (begin >= end) return;
  const int64_t first = low_of(begin), last = high_of(end - 1);

  // What no row sees is not read.
  const K *keys[kTile], *values[kTile], *next_keys[kTile], *next_values[kTile];
  locate(p, item, w, start, first, last, keys, values);
  const int64_t row_bytes = p.head_dim * int64_t(sizeof(K));
  for (int64_t j = first / kLanes * kLanes; j < last; j += kLanes) {
    for (int64_t i = j; i < j + kLanes; ++i) {
      const char* line = reinterpret_cast<const char*>(values[i]);
      for (int64_t b = 0; b < row_bytes; b += 64) __builtin_prefetch(line + b, 0, 2);
    }
    if constexpr (kPairKeys<K>) {
      pack_key_pairs(keys + j, p.head_dim, w.keys + j, kTile);
    } else {
      pack_keys(keys + j, p.head_dim, w.keys + j, kTile);
    }
  }

  score_all<kPairKeys<K>>(w, begin, end, last);
  for (int64_t r = begin; r < end; ++r) {
    w.low[r] = int32_t(low_of(r));
    w.high[r] = int32_t(high_of(r));
    weigh_row(p, w, r, w.low[r], w.high[r]);
  }

  if (end - begin > kBlockRows || p.head_dim != w.width) {
    for (int64_t j = first; j < last; ++j) {
      float* wide = w.values + j * w.width;
      int64_t d = 0;
      for (; d + kLanes <= p.head_dim; d += kLanes) store(wide + d, load(values[j] + d));
      for (; d < p.head_dim; ++d) wide[d] = to_float(values[j][d]);
      for (; d < w.width; ++d) wide[d] = 0.0f;
    }
    add_values(w, begin, end, WideValues{w.values, w.width});
  } else {
    const int64_t left =
        high_of(end - 1) < kTile ? 0 : item.first_kv_len + w.token[end - 1] - (start + kTile);
    locate(p, item, w, start + kTile, 0, left < kTile ? left : kTile, next_keys, next_values);
    add_values(w, begin, end, CachedValues<K>{values, next_keys, row_bytes});
  }
}

template <typename T>
inline void load_queries(const AttentionParams& p, const AttentionItem& item, Walk& w) {
  for (int64_t r = 0; r < w.rows; ++r) {
    const int64_t head = item.kv_head * p.group + item.head_begin + r % w.heads;
    const T* q = static_cast<const T*>(p.q) + (item.token_begin + r / w.heads) * p.q_stride +
                 head * p.q_head_stride;
    // A bfloat16 cache comes with bfloat16 queries (checked at the border).
    if (kPairKeys<T> && p.cache_type == Type::bfloat16) {
      __builtin_memcpy(w.q + r * w.width, q, uint64_t(p.head_dim) * sizeof(T));
    } else {
      widen_head<T>(w.q + r * w.width, q, nullptr, p.head_dim, 0.0f);
    }
  }
}

template <typename T>
inline void write_row(const AttentionParams& p, const AttentionItem& item, int64_t heads, int64_t r,
                      float* values, float sum_) {
  const int64_t head = item.kv_head * p.group + item.head_begin + r % heads;
  T* out = static_cast<T*>(p.out) + (item.token_begin + r / heads) * p.out_stride +
           head * p.out_head_stride;
  const float factor = p.v_scale / sum_;
  const Vec f = set1(factor);
  int64_t d = 0;
  for (; d + kLanes <= p.head_dim; d += kLanes) store(out + d, mul(load(values + d), f));
  for (; d < p.head_dim; ++d) from_float(values[d] * factor, out[d]);
}

inline void write_out(const AttentionParams& p, const AttentionItem& item, int64_t heads, int64_t r,
                      float* values, float sum_) {
  switch (p.type) {
    case Type::bfloat16:
      return write_row<Bf16>(p, item, heads, r, values, sum_);
    case Type::float16:
      return write_row<F16>(p, item, heads, r, values, sum_);
    default:
      return write_row<float>(p, item, heads, r, values, sum_);
  }
}

template <typename K>
void walk(const AttentionParams& p, const AttentionItem& item, Walk& w) {
  const int64_t longest = item.first_kv_len + item.num_tokens - 1;
  const int64_t left = p.window > 0 ? item.first_kv_len - p.window : 0;
  const int64_t first_tile = left > 0 ? left / kTile : 0;
  constexpr int64_t tiles_a_split = kSplit / kTile;
  for (int64_t r = 0; r < w.rows; ++r) w.total_sum[r] = 0.0f;
  for (int64_t split = item.split_begin; split < item.split_end; ++split) {
    start_split(w);
    for (int64_t i = 0; i < tiles_a_split; ++i) {
      const int64_t tile = split * tiles_a_split + i;
      if (tile >= first_tile && tile * kTile < longest) walk_tile<K>(p, item, w, tile);
    }
    for (int64_t r = 0; r < w.rows; ++r) {
      const float* out = w.out + r * w.width;
      if (item.partials) {
        float* partial = item.partials + ((split - item.split_begin) * w.rows + r) * (w.width + 2);
        partial[0] = w.max[r];
        partial[1] = w.sum[r];
        for (int64_t i = 0; i < w.width; ++i) partial[2 + i] = out[i];
      } else {
        merge_row(w.total_out + r * w.width, w.total_max[r], w.total_sum[r], out, w.max[r],
                  w.sum[r], w.width);
      }
    }
  }
}

void attention(const AttentionParams& p, const AttentionItem& item, float* scratch) {
  Walk w = lay_out(scratch, item.num_tokens * item.num_heads, item.num_heads, p.head_dim);
  switch (p.type) {
    case Type::bfloat16:
      load_queries<Bf16>(p, item, w);
      break;
    case Type::float16:
      load_queries<F16>(p, item, w);
      break;
    default:
      load_queries<float>(p, item, w);
  }
  switch (p.cache_type) {
    case Type::bfloat16:
      walk<Bf16>(p, item, w);
      break;
    case Type::float16:
      walk<F16>(p, item, w);
      break;
    case Type::float8_e4m3fn:
      walk<F8>(p, item, w);
      break;
    default:
      walk<float>(p, item, w);
  }
  if (item.partials) return;
  for (int64_t r = 0; r < w.rows; ++r) {
    write_out(p, item, w.heads, r, w.total_out + r * w.width, w.total_sum[r]);
  }
}

void attention_merge(const AttentionParams& p, const AttentionItem& item, int64_t num_splits,
                     float* scratch) {
  const int64_t rows = item.num_tokens * item.num_heads;
  const int64_t width = padded(p.head_dim);
  for (int64_t r = 0; r < rows; ++r) {
    float max_ = kMinusInfinity, sum_ = 0.0f;
    for (int64_t split = 0; split < num_splits; ++split) {
      const float* partial = item.partials + (split * rows + r) * (width + 2);
      merge_row(scratch, max_, sum_, partial + 2, partial[0], partial[1], width);
    }
    write_out(p, item, item.num_heads, r, scratch, sum_);
  }
}
