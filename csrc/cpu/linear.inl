// out = x @ weight^T + bias: weights are read once, at the memory's speed where rows are few, and
// widened in registers. Included inside a per-ISA anonymous namespace.
//
// The inner dimension is walked in steps of two vectors, in the order that the weights' type widens
// best; x is laid out in that order once a call. An output is one vector of sums, each a chain of
// fused multiply-adds over the steps, added up at the end: which rows share a register block
// changes nothing of any result.

constexpr int64_t kStep = 2 * kLanes;

// Whether x and weights stay bfloat16 and are multiplied as pairs: one vector holds a step.
template <typename T>
constexpr bool kPairProducts = false;
template <>
constexpr bool kPairProducts<Bf16> = kDotPairs;

// The first and the second vector of a step, widened. Any order will do that x follows too; where
// another is quicker for bfloat16 the vocabulary has it.
template <typename T>
inline Vec load_first(const T* p) {
  return load(p);
}
template <typename T>
inline Vec load_second(const T* p) {
  return load(p + kLanes);
}

// Floats of `x` that a step takes once it is laid out.
template <typename T>
constexpr int64_t kStepFloats = kPairProducts<T> ? kLanes : kStep;

// `count` elements from p on, and zeros up to a whole step.
template <typename T>
inline void copy_padded(T* step, const T* p, int64_t count) {
  for (int64_t i = 0; i < kStep; ++i) step[i] = i < count ? p[i] : T{};
}

template <typename T>
inline void lay_out_step(float* out, const T* p) {
  if constexpr (kPairProducts<T>) {
    __builtin_memcpy(out, p, kStep * sizeof(T));
  } else {
    store(out, load_first(p));
    store(out + kLanes, load_second(p));
  }
}

// x as the steps take it: widened, or kept as pairs.
template <typename T>
inline void lay_out_row(float* out, const T* p, int64_t inner) {
  int64_t i = 0;
  for (; i + kStep <= inner; i += kStep, out += kStepFloats<T>) lay_out_step(out, p + i);
  if (i < inner) {
    T last[kStep];
    copy_padded(last, p + i, inner - i);
    lay_out_step(out, last);
  }
}

// sums[r][c] += x[r] * w[c] over `steps` steps. kAhead: what comes next, kCols rows of weights on,
// is fetched on the way.
template <typename T, int64_t kRows, int64_t kCols, bool kAhead>
inline void multiply_steps(const float* x, int64_t x_stride, const T* w, int64_t w_stride,
                           int64_t steps, Vec (&sums)[kRows][kCols]) {
  for (int64_t s = 0; s < steps; ++s) {
    const float* xs = x + s * kStepFloats<T>;
    const T* ws = w + s * kStep;
    if constexpr (kAhead) {
      for (int64_t c = 0; c < kCols; ++c) {
        const char* next = reinterpret_cast<const char*>(ws + (kCols + c) * w_stride);
        for (int64_t b = 0; b < int64_t(kStep * sizeof(T)); b += 64) {
          __builtin_prefetch(next + b, 0, 2);
        }
      }
    }
    Vec v[kCols];
    if constexpr (kPairProducts<T>) {
      for (int64_t c = 0; c < kCols; ++c) {
        v[c] = load(reinterpret_cast<const float*>(ws + c * w_stride));
      }
      for (int64_t r = 0; r < kRows; ++r) {
        const Vec row = load(xs + r * x_stride);
        for (int64_t c = 0; c < kCols; ++c) sums[r][c] = dot_pairs(row, v[c], sums[r][c]);
      }
    } else {
      for (int64_t c = 0; c < kCols; ++c) v[c] = load_first(ws + c * w_stride);
      for (int64_t r = 0; r < kRows; ++r) {
        const Vec row = load(xs + r * x_stride);
        for (int64_t c = 0; c < kCols; ++c) sums[r][c] = fma(row, v[c], sums[r][c]);
      }
      for (int64_t c = 0; c < kCols; ++c) v[c] = load_second(ws + c * w_stride);
      for (int64_t r = 0; r < kRows; ++r) {
        const Vec row = load(xs + r * x_stride + kLanes);
        for (int64_t c = 0; c < kCols; ++c) sums[r][c] = fma(row, v[c], sums[r][c]);
      }
    }
  }
}

// kRows rows of x times kCols rows of weights -> out[r * kLinearBlock + c].
template <typename T, int64_t kRows, int64_t kCols, bool kAhead>
inline void multiply_block(const float* x, int64_t x_stride, const T* w, int64_t w_stride,
                           int64_t inner, float* out) {
  Vec sums[kRows][kCols];
  for (auto& row : sums) {
    for (Vec& v : row) v = zero();
  }
  const int64_t whole = inner / kStep;
  multiply_steps<T, kRows, kCols, kAhead>(x, x_stride, w, w_stride, whole, sums);
  if (whole * kStep < inner) {
    alignas(64) T last[kCols][kStep];
    for (int64_t c = 0; c < kCols; ++c) {
      copy_padded(last[c], w + c * w_stride + whole * kStep, inner - whole * kStep);
    }
    multiply_steps<T, kRows, kCols, false>(x + whole * kStepFloats<T>, x_stride, last[0], kStep, 1,
                                           sums);
  }
  for (int64_t r = 0; r < kRows; ++r) store_sums(out + r * kLinearBlock, sums[r]);
}

// kRows rows of x times `features` rows of weights, at most kLinearBlock.
template <typename T, int64_t kRows, bool kAhead>
[[gnu::noinline]] void multiply_rows(const float* x, int64_t x_stride, const T* w, int64_t w_stride,
                                     int64_t inner, int64_t features, float* out) {
  int64_t f = 0;
  for (; f + kLinearCols <= features; f += kLinearCols) {
    multiply_block<T, kRows, kLinearCols, kAhead>(x, x_stride, w + f * w_stride, w_stride, inner,
                                                  out + f);
  }
  for (; f < features; ++f) {
    multiply_block<T, kRows, 1, false>(x, x_stride, w + f * w_stride, w_stride, inner, out + f);
  }
}

template <typename T>
inline void write_sums(T* out, const float* sums, const T* bias, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Vec v = load(sums + i);
    store(out + i, bias ? add(v, load(bias + i)) : v);
  }
  for (; i < count; ++i) from_float(bias ? sums[i] + to_float(bias[i]) : sums[i], out[i]);
}

template <typename T>
inline void linear_features(const LinearParams& p, int64_t begin, int64_t end) {
  const int64_t count = end - begin;
  const T* w = static_cast<const T*>(p.weight) + begin * p.weight_stride;
  alignas(64) float sums[kLinearRows * kLinearBlock];
  // Blocks as even as may be: 8 rows are 4 and 4, not 6 and 2.
  const int64_t blocks = (p.rows + kLinearRows - 1) / kLinearRows;
  const T* bias = p.bias ? static_cast<const T*>(p.bias) + begin : nullptr;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t row = p.rows * b / blocks, rows = p.rows * (b + 1) / blocks - row;
    const float* x = p.laid_out + row * p.laid_out_stride;
    // From the second block on the weights are at hand.
    with_rows<kLinearRows>(rows, [&](auto n) {
      if (b == 0) {
        multiply_rows<T, n.value, true>(x, p.laid_out_stride, w, p.weight_stride, p.inner, count,
                                        sums);
      } else {
        multiply_rows<T, n.value, false>(x, p.laid_out_stride, w, p.weight_stride, p.inner, count,
                                         sums);
      }
    });
    for (int64_t r = 0; r < rows; ++r) {
      write_sums(static_cast<T*>(p.out) + (row + r) * p.out_stride + begin, sums + r * kLinearBlock,
                 bias, count);
    }
  }
}

template <typename T>
inline void lay_out_rows(const LinearParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    lay_out_row(p.laid_out + row * p.laid_out_stride, static_cast<const T*>(p.x) + row * p.x_stride,
                p.inner);
  }
}

void linear_lay_out(const LinearParams& p, int64_t begin, int64_t end) {
  switch (p.type) {
    case Type::bfloat16:
      return lay_out_rows<Bf16>(p, begin, end);
    case Type::float16:
      return lay_out_rows<F16>(p, begin, end);
    default:
      return lay_out_rows<float>(p, begin, end);
  }
}

void linear(const LinearParams& p, int64_t begin, int64_t end) {
  switch (p.type) {
    case Type::bfloat16:
      return linear_features<Bf16>(p, begin, end);
    case Type::float16:
      return linear_features<F16>(p, begin, end);
    default:
      return linear_features<float>(p, begin, end);
  }
}
