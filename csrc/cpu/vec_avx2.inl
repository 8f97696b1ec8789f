// The vector vocabulary of the kernels on AVX2 with FMA and F16C: 8 floats. Included inside a
// per-ISA anonymous namespace.

using Vec = __m256;
constexpr int64_t kLanes = 8;
// Rows of a register block; two vectors wide it takes 12 of the 16 registers for sums.
constexpr int64_t kBlockRows = 6;
// Rows of x and of weights in a register block of `linear`: 12 sums, 2 weights, one of x.
constexpr int64_t kLinearRows = 6, kLinearCols = 2;

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec set1(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
// The second where either is NaN.
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec round(Vec x) {
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// x * 2^n for whole n in [-126, 127]
inline Vec scale_by_power(Vec x, Vec n) {
  const __m256i exponent =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(x, _mm256_castsi256_ps(exponent));
}
// x where a >= b, else 0
inline Vec keep_if_not_below(Vec x, Vec a, Vec b) {
  return _mm256_and_ps(x, _mm256_cmp_ps(a, b, _CMP_NLT_UQ));
}
// x in lanes [begin, end), else `other`
inline Vec keep_lanes(Vec x, int64_t begin, int64_t end, Vec other) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const int32_t first = begin < 0 ? 0 : begin > 8 ? 8 : int32_t(begin);
  const int32_t last = end < 0 ? 0 : end > 8 ? 8 : int32_t(end);
  const __m256i inside = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(first), lane),
                                             _mm256_cmpgt_epi32(_mm256_set1_epi32(last), lane));
  return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(inside));
}
inline float sum(Vec x) {
  __m128 b = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  b = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}
// out[c] = sum(x[c])
template <int64_t kCols>
inline void store_sums(float* out, const Vec (&x)[kCols]) {
  for (int64_t c = 0; c < kCols; ++c) out[c] = sum(x[c]);
}
inline float maximum(Vec x) {
  __m128 b = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  b = _mm_max_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_max_ss(b, _mm_shuffle_ps(b, b, 1)));
}
inline bool any_nan(Vec x) { return _mm256_movemask_ps(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)) != 0; }
// Bit i: a[i] >= b[i]
inline uint32_t lanes_not_below(Vec a, Vec b) {
  return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)));
}

inline Vec load(const Bf16* p) {
  const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}
inline Vec load(const F16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Vec load(const F8* p) {
  const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m256i rest = _mm256_and_si256(wide, _mm256_set1_epi32(0x7f));
  const __m256i sign = _mm256_slli_epi32(_mm256_xor_si256(wide, rest), 24);
  const __m256i normal =
      _mm256_add_epi32(_mm256_slli_epi32(rest, 20), _mm256_set1_epi32(0x3c000000));
  const __m256 denormal = _mm256_mul_ps(_mm256_cvtepi32_ps(rest), _mm256_set1_ps(0x1p-9f));
  __m256i bits = _mm256_blendv_epi8(normal, _mm256_castps_si256(denormal),
                                    _mm256_cmpgt_epi32(_mm256_set1_epi32(8), rest));
  bits = _mm256_blendv_epi8(bits, _mm256_set1_epi32(0x7fc00000),
                            _mm256_cmpeq_epi32(rest, _mm256_set1_epi32(0x7f)));
  return _mm256_castsi256_ps(_mm256_or_si256(bits, sign));
}
// Of 16 bfloat16 the even ones, then the odd ones: an instruction each.
inline Vec load_first(const Bf16* p) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), 16));
}
inline Vec load_second(const Bf16* p) {
  return _mm256_castsi256_ps(
      _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
                       _mm256_set1_epi32(int32_t(0xffff0000))));
}
inline void store(Bf16* p, Vec x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
inline void store(F16* p, Vec x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// An 8 x 8 transpose of 32-bit elements: x[i] lane j becomes x[j] lane i.
inline void transpose(__m256i (&x)[8]) {
  __m256i y[8];
  for (int i = 0; i < 8; i += 2) {
    y[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    x[i] = _mm256_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm256_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm256_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm256_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    y[i] = _mm256_permute2x128_si256(x[i], x[i + 4], 0x20);
    y[i + 4] = _mm256_permute2x128_si256(x[i], x[i + 4], 0x31);
  }
  for (int i = 0; i < 8; ++i) x[i] = y[i];
}

// keys[i][0, head_dim) for i in [0, kLanes) -> out[d * out_stride + i]. head_dim is a multiple
// of 8.
template <typename T>
inline void pack_elements(const T* const* keys, int64_t head_dim, float* out, int64_t out_stride) {
  for (int64_t d = 0; d < head_dim; d += 8) {
    __m256i x[8];
    for (int i = 0; i < 8; ++i) {
      x[i] = _mm256_castps_si256(load(keys[i] + d));
    }
    transpose(x);
    for (int i = 0; i < 8; ++i) store(out + (d + i) * out_stride, _mm256_castsi256_ps(x[i]));
  }
}

inline void pack_keys(const float* const* keys, int64_t head_dim, float* out, int64_t out_stride) {
  pack_elements(keys, head_dim, out, out_stride);
}
inline void pack_keys(const F8* const* keys, int64_t head_dim, float* out, int64_t out_stride) {
  pack_elements(keys, head_dim, out, out_stride);
}

// 16-bit types travel through the transpose as pairs.
inline void widen_pair(const Bf16*, __m256i pair, Vec& even, Vec& odd) {
  even = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
  odd = _mm256_castsi256_ps(_mm256_and_si256(pair, _mm256_set1_epi32(int32_t(0xffff0000))));
}
inline void widen_pair(const F16*, __m256i pair, Vec& even, Vec& odd) {
  const __m256i low = _mm256_and_si256(pair, _mm256_set1_epi32(0xffff));
  const __m256i both =
      _mm256_permute4x64_epi64(_mm256_packus_epi32(low, _mm256_srli_epi32(pair, 16)), 0xd8);
  even = _mm256_cvtph_ps(_mm256_castsi256_si128(both));
  odd = _mm256_cvtph_ps(_mm256_extracti128_si256(both, 1));
}
template <typename T>
inline void pack_keys(const T* const* keys, int64_t head_dim, float* out, int64_t out_stride) {
  for (int64_t d = 0; d < head_dim; d += 16) {
    const int64_t pairs = head_dim - d < 16 ? (head_dim - d) / 2 : 8;  // 4 or 8
    __m256i x[8];
    for (int i = 0; i < 8; ++i) {
      x[i] = pairs == 8 ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(keys[i] + d))
                        : _mm256_zextsi128_si256(
                              _mm_loadu_si128(reinterpret_cast<const __m128i*>(keys[i] + d)));
    }
    transpose(x);
    for (int64_t i = 0; i < pairs; ++i) {
      Vec even, odd;
      widen_pair(static_cast<const T*>(nullptr), x[i], even, odd);
      store(out + (d + 2 * i) * out_stride, even);
      store(out + (d + 2 * i + 1) * out_stride, odd);
    }
  }
}

// No instruction multiplies pairs of bfloat16 here.
constexpr bool kDotPairs = false;
