// The vector vocabulary of the kernels in the compiler's own vectors: 4 floats, any processor that
// gcc or clang know. Included inside a per-ISA anonymous namespace.

typedef float Vec __attribute__((vector_size(16)));
typedef int32_t IntVec __attribute__((vector_size(16)));
constexpr int64_t kLanes = 4;
constexpr int64_t kBlockRows = 4;
constexpr int64_t kLinearRows = 4, kLinearCols = 2;

inline Vec zero() { return Vec{}; }
inline Vec set1(float x) { return Vec{x, x, x, x}; }
inline Vec load(const float* p) {
  Vec x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
inline void store(float* p, Vec x) { __builtin_memcpy(p, &x, sizeof x); }
inline Vec add(Vec a, Vec b) { return a + b; }
inline Vec sub(Vec a, Vec b) { return a - b; }
inline Vec mul(Vec a, Vec b) { return a * b; }
inline Vec div(Vec a, Vec b) { return a / b; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec select(IntVec mask, Vec a, Vec b) {
  return (Vec)((mask & (IntVec)a) | (~mask & (IntVec)b));
}
// The second where either is NaN.
inline Vec max(Vec a, Vec b) { return select(a > b, a, b); }
inline Vec min(Vec a, Vec b) { return select(a < b, a, b); }
inline Vec round(Vec x) {
  // Adding and taking away 1.5 * 2^23 rounds to nearest; |x| stays far below it here.
  const Vec big = set1(12582912.0f);
  return (x + big) - big;
}
// x * 2^n for whole n in [-126, 127]
inline Vec scale_by_power(Vec x, Vec n) {
  const IntVec exponent = (__builtin_convertvector(n, IntVec) + 127) << 23;
  return x * (Vec)exponent;
}
// x where a >= b (or either is NaN), else 0
inline Vec keep_if_not_below(Vec x, Vec a, Vec b) { return (Vec)(~(a < b) & (IntVec)x); }
// x in lanes [begin, end), else `other`
inline Vec keep_lanes(Vec x, int64_t begin, int64_t end, Vec other) {
  for (int64_t i = 0; i < kLanes; ++i) {
    if (i < begin || i >= end) x[i] = other[i];
  }
  return x;
}
inline float sum(Vec x) { return (x[0] + x[2]) + (x[1] + x[3]); }
// out[c] = sum(x[c])
template <int64_t kCols>
inline void store_sums(float* out, const Vec (&x)[kCols]) {
  for (int64_t c = 0; c < kCols; ++c) out[c] = sum(x[c]);
}
inline float maximum(Vec x) {
  const float a = x[0] > x[1] ? x[0] : x[1], b = x[2] > x[3] ? x[2] : x[3];
  return a > b ? a : b;
}
inline bool any_nan(Vec x) {
  const IntVec nan = x != x;
  return (nan[0] | nan[1] | nan[2] | nan[3]) != 0;
}
// Bit i: a[i] >= b[i]
inline uint32_t lanes_not_below(Vec a, Vec b) {
  const IntVec ge = a >= b;
  return uint32_t((ge[0] & 1) | (ge[1] & 2) | (ge[2] & 4) | (ge[3] & 8));
}

template <typename T>
inline Vec load_scalars(const T* p) {
  return Vec{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])};
}
inline Vec load(const Bf16* p) { return load_scalars(p); }
inline Vec load(const F16* p) { return load_scalars(p); }
inline Vec load(const F8* p) { return load_scalars(p); }
template <typename T>
inline void store_scalars(T* p, Vec x) {
  for (int i = 0; i < 4; ++i) from_float(x[i], p[i]);
}
inline void store(Bf16* p, Vec x) { store_scalars(p, x); }
inline void store(F16* p, Vec x) { store_scalars(p, x); }

// keys[i][0, head_dim) for i in [0, kLanes) -> out[d * out_stride + i].
template <typename T>
inline void pack_keys(const T* const* keys, int64_t head_dim, float* out, int64_t out_stride) {
  for (int64_t i = 0; i < kLanes; ++i) {
    for (int64_t d = 0; d < head_dim; ++d) out[d * out_stride + i] = to_float(keys[i][d]);
  }
}

// No instruction multiplies pairs of bfloat16 here.
constexpr bool kDotPairs = false;
