// The two register blocks of attention: scores of some rows against packed keys, and weights times
// values.
//
// Every sum is one chain of fused multiply-adds in a fixed order (over the head's dimensions; over
// positions), so how many rows or columns share a block changes nothing of any result. Included
// inside a per-ISA anonymous namespace.

// Chosen only where kDotPairs is true, and then the instruction set has its own.
template <typename V>
V dot_pairs(V, V, V) = delete;

// scores[r][c] = sum over i of q[r][i] * keys[i][c] for kRows rows and kVecs vectors of positions.
// i counts dimensions, or pairs of bfloat16 dimensions.
template <bool kPairs, int64_t kRows, int64_t kVecs>
inline void score_block(const float* q, int64_t q_stride, const float* keys, int64_t steps,
                        float* scores) {
  Vec sums[kRows][kVecs];
  for (auto& row : sums) {
    for (Vec& x : row) x = zero();
  }
  for (int64_t i = 0; i < steps; ++i) {
    Vec k[kVecs];
    for (int64_t c = 0; c < kVecs; ++c) k[c] = load(keys + i * kTile + c * kLanes);
    for (int64_t r = 0; r < kRows; ++r) {
      const Vec x = set1(q[r * q_stride + i]);
      for (int64_t c = 0; c < kVecs; ++c) {
        if constexpr (kPairs) {
          sums[r][c] = dot_pairs(x, k[c], sums[r][c]);
        } else {
          sums[r][c] = fma(x, k[c], sums[r][c]);
        }
      }
    }
  }
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t c = 0; c < kVecs; ++c) store(scores + r * kTile + c * kLanes, sums[r][c]);
  }
}

// out[r][c] = out[r][c] * decay[r] + sum over j in [begin, end) of weights[r][j] * value(j)[c],
// kVecs vectors of columns. value(j) points to the row of V at position j of the tile.
template <int64_t kRows, int64_t kVecs, typename Values>
inline void value_block(float* out, int64_t out_stride, const float* decay, const float* weights,
                        int64_t begin, int64_t end, const Values& values, int64_t column) {
  Vec sums[kRows][kVecs];
  for (int64_t r = 0; r < kRows; ++r) {
    const Vec factor = set1(decay[r]);
    for (int64_t c = 0; c < kVecs; ++c) {
      sums[r][c] = mul(load(out + r * out_stride + column + c * kLanes), factor);
    }
  }
  for (int64_t j = begin; j < end; ++j) {
    if (column == 0) values.fetch_ahead(j);
    Vec v[kVecs];
    for (int64_t c = 0; c < kVecs; ++c) v[c] = load(values.row(j) + column + c * kLanes);
    for (int64_t r = 0; r < kRows; ++r) {
      const Vec w = set1(weights[r * kTile + j]);
      for (int64_t c = 0; c < kVecs; ++c) sums[r][c] = fma(w, v[c], sums[r][c]);
    }
  }
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t c = 0; c < kVecs; ++c) {
      store(out + r * out_stride + column + c * kLanes, sums[r][c]);
    }
  }
}

// Few rows take wide blocks, so that there are chains enough to hide the latency of the fused
// multiply-add.
template <int64_t kRows>
constexpr int64_t vecs_for_rows() {
  constexpr int64_t most = kBlockRows * 2;
  return most / kRows >= 8 ? 8 : most / kRows >= 4 ? 4 : 2;
}

template <bool kPairs, int64_t kRows>
[[gnu::noinline]] void score_rows(const float* q, int64_t q_stride, const float* keys,
                                  int64_t steps, int64_t positions, float* scores) {
  constexpr int64_t tile_vecs = kTile / kLanes;
  constexpr int64_t wanted = vecs_for_rows<kRows>();
  constexpr int64_t vecs = wanted < tile_vecs ? wanted : tile_vecs;
  for (int64_t c = 0; c < positions; c += vecs * kLanes) {
    score_block<kPairs, kRows, vecs>(q, q_stride, keys + c, steps, scores + c);
  }
}

template <int64_t kRows, typename Values>
[[gnu::noinline]] void value_rows(float* out, int64_t out_stride, const float* decay,
                                  const float* weights, int64_t begin, int64_t end,
                                  const Values& values, int64_t columns) {
  constexpr int64_t vecs = vecs_for_rows<kRows>();
  int64_t c = 0;
  for (; c + vecs * kLanes <= columns; c += vecs * kLanes) {
    value_block<kRows, vecs>(out, out_stride, decay, weights, begin, end, values, c);
  }
  if constexpr (vecs > 2) {
    for (; c + 2 * kLanes <= columns; c += 2 * kLanes) {
      value_block<kRows, 2>(out, out_stride, decay, weights, begin, end, values, c);
    }
  }
  for (; c < columns; c += kLanes) {
    value_block<kRows, 1>(out, out_stride, decay, weights, begin, end, values, c);
  }
}

// Calls body(std::integral_constant-like tag) for `rows` in [1, kMost].
template <int64_t kValue>
struct Constant {
  static constexpr int64_t value = kValue;
};
template <int64_t kMost = kBlockRows, typename Body>
inline void with_rows(int64_t rows, const Body& body) {
  switch (rows) {
    case 1:
      return body(Constant<1>{});
    case 2:
      return body(Constant<2>{});
    case 3:
      return body(Constant<3>{});
    case 4:
      return body(Constant<4>{});
    default:
      break;
  }
  if constexpr (kMost >= 6) {
    if (rows == 5) return body(Constant<5>{});
    if (rows == 6) return body(Constant<6>{});
  }
  if constexpr (kMost >= 8) {
    if (rows == 7) return body(Constant<7>{});
    return body(Constant<8>{});
  }
}
