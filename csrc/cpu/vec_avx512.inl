// The vector vocabulary of the kernels on AVX-512: 16 floats. Included inside a per-ISA anonymous
// namespace.

using Vec = __m512;
constexpr int64_t kLanes = 16;
// Rows of a register block; two vectors wide it takes 16 of the 32 registers for sums.
constexpr int64_t kBlockRows = 8;
// Rows of x and of weights in a register block of `linear`: 24 sums, 4 weights, one of x.
constexpr int64_t kLinearRows = 6, kLinearCols = 4;

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec set1(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
// The second where either is NaN.
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec round(Vec x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// x * 2^n for whole n in [-126, 127]
inline Vec scale_by_power(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }
// x where a >= b, else 0
inline Vec keep_if_not_below(Vec x, Vec a, Vec b) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ), x);
}
// x in lanes [begin, end), else `other`
inline Vec keep_lanes(Vec x, int64_t begin, int64_t end, Vec other) {
  const uint32_t below_end = end >= 16 ? 0xffffu : end <= 0 ? 0u : (1u << end) - 1;
  const uint32_t below_begin = begin >= 16 ? 0xffffu : begin <= 0 ? 0u : (1u << begin) - 1;
  return _mm512_mask_mov_ps(other, __mmask16(below_end & ~below_begin), x);
}
inline float sum(Vec x) {
  const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}
// out[c] = sum(x[c])
inline void store_sums(float* out, const Vec (&x)[1]) { *out = sum(x[0]); }
inline void store_sums(float* out, const Vec (&x)[4]) {
  // Quarters of two vectors side by side, then of four; the additions are those of sum().
  const auto halve = [](Vec a, Vec b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
  };
  const Vec a = halve(x[0], x[1]), b = halve(x[2], x[3]);
  Vec s = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  s = _mm512_add_ps(s, _mm512_permute_ps(s, 0x4e));
  s = _mm512_add_ps(s, _mm512_permute_ps(s, 0xb1));
  const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, s)));
}
inline float maximum(Vec x) { return _mm512_reduce_max_ps(x); }
inline bool any_nan(Vec x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q) != 0; }
// Bit i: a[i] >= b[i]
inline uint32_t lanes_not_below(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }

inline Vec load(const Bf16* p) {
  const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}
inline Vec load(const F16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vec widen_f8(__m128i raw) {
  const __m512i wide = _mm512_cvtepu8_epi32(raw);
  const __m512i rest = _mm512_and_si512(wide, _mm512_set1_epi32(0x7f));
  const __m512i sign = _mm512_slli_epi32(_mm512_xor_si512(wide, rest), 24);
  const __m512i normal =
      _mm512_add_epi32(_mm512_slli_epi32(rest, 20), _mm512_set1_epi32(0x3c000000));
  const __m512 denormal = _mm512_mul_ps(_mm512_cvtepi32_ps(rest), _mm512_set1_ps(0x1p-9f));
  __m512i bits = _mm512_mask_mov_epi32(normal, _mm512_cmplt_epi32_mask(rest, _mm512_set1_epi32(8)),
                                       _mm512_castps_si512(denormal));
  bits = _mm512_mask_mov_epi32(bits, _mm512_cmpeq_epi32_mask(rest, _mm512_set1_epi32(0x7f)),
                               _mm512_set1_epi32(0x7fc00000));
  return _mm512_castsi512_ps(_mm512_or_si512(bits, sign));
}
inline Vec load(const F8* p) {
  return widen_f8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
// Of 32 bfloat16 the even ones, then the odd ones: an instruction each.
inline Vec load_first(const Bf16* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
inline Vec load_second(const Bf16* p) {
  return _mm512_castsi512_ps(
      _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(int32_t(0xffff0000))));
}
inline void store(Bf16* p, Vec x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  const __m512i high = _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(high));
}
inline void store(F16* p, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// A 16 x 16 transpose of 32-bit elements: x[i] lane j becomes x[j] lane i.
inline void transpose(__m512i (&x)[16]) {
  __m512i y[16];
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
    y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
    y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
    y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
    x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd);
  }
}

inline __m512i load_some(const float* p, __mmask16 lanes) {
  return _mm512_maskz_loadu_epi32(lanes, p);
}
inline __m512i load_some(const F8* p, __mmask16 lanes) {
  return _mm512_castps_si512(widen_f8(_mm_maskz_loadu_epi8(lanes, p)));
}

// keys[i][0, head_dim) for i in [0, kLanes) -> out[d * out_stride + i].
template <typename T>
inline void pack_elements(const T* const* keys, int64_t head_dim, float* out, int64_t out_stride) {
  for (int64_t d = 0; d < head_dim; d += 16) {
    const int64_t count = head_dim - d < 16 ? head_dim - d : 16;
    const __mmask16 mask = __mmask16((1u << count) - 1);
    __m512i x[16];
    for (int i = 0; i < 16; ++i) x[i] = load_some(keys[i] + d, mask);
    transpose(x);
    for (int64_t i = 0; i < count; ++i) _mm512_storeu_si512(out + (d + i) * out_stride, x[i]);
  }
}

inline void pack_keys(const float* const* keys, int64_t head_dim, float* out, int64_t out_stride) {
  pack_elements(keys, head_dim, out, out_stride);
}
inline void pack_keys(const F8* const* keys, int64_t head_dim, float* out, int64_t out_stride) {
  pack_elements(keys, head_dim, out, out_stride);
}

// Whether queries and keys in bfloat16 are multiplied as pairs, two dimensions at once. The
// emulation is for testing the layout where the instruction is missing; it is slower than widening.
#if defined(__AVX512BF16__)
constexpr bool kDotPairs = true;
inline Vec dot_pairs(Vec a, Vec b, Vec sums) {
  return _mm512_dpbf16_ps(sums, __m512bh(_mm512_castps_si512(a)), __m512bh(_mm512_castps_si512(b)));
}
#elif defined(STOKER_EMULATE_BF16_DOTS)
constexpr bool kDotPairs = true;
inline Vec dot_pairs(Vec a, Vec b, Vec sums) {
  const auto odd = [](Vec x) {
    return _mm512_castsi512_ps(
        _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(int32_t(0xffff0000))));
  };
  const auto even = [](Vec x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 16));
  };
  return fma(even(a), even(b), fma(odd(a), odd(b), sums));
}
#else
constexpr bool kDotPairs = false;
#endif

// As pack_keys, but dimensions 2i and 2i + 1 stay together: -> out[i * out_stride + position].
inline void pack_key_pairs(const Bf16* const* keys, int64_t head_dim, float* out,
                           int64_t out_stride) {
  for (int64_t d = 0; d < head_dim; d += 32) {
    const int64_t pairs = head_dim - d < 32 ? (head_dim - d) / 2 : 16;
    const __mmask16 mask = __mmask16((1u << pairs) - 1);
    __m512i x[16];
    for (int i = 0; i < 16; ++i) x[i] = _mm512_maskz_loadu_epi32(mask, keys[i] + d);
    transpose(x);
    for (int64_t i = 0; i < pairs; ++i) _mm512_storeu_si512(out + (d / 2 + i) * out_stride, x[i]);
  }
}

// 16-bit types travel through the transpose as pairs.
inline void widen_pair(const Bf16*, __m512i pair, Vec& even, Vec& odd) {
  even = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
  odd = _mm512_castsi512_ps(_mm512_and_si512(pair, _mm512_set1_epi32(int32_t(0xffff0000))));
}
inline void widen_pair(const F16*, __m512i pair, Vec& even, Vec& odd) {
  even = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(pair));
  odd = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(pair, 16)));
}
template <typename T>
inline void pack_keys(const T* const* keys, int64_t head_dim, float* out, int64_t out_stride) {
  for (int64_t d = 0; d < head_dim; d += 32) {
    const int64_t pairs = head_dim - d < 32 ? (head_dim - d) / 2 : 16;
    const __mmask16 mask = __mmask16((1u << pairs) - 1);
    __m512i x[16];
    for (int i = 0; i < 16; ++i) x[i] = _mm512_maskz_loadu_epi32(mask, keys[i] + d);
    transpose(x);
    for (int64_t i = 0; i < pairs; ++i) {
      Vec even, odd;
      widen_pair(static_cast<const T*>(nullptr), x[i], even, odd);
      store(out + (d + 2 * i) * out_stride, even);
      store(out + (d + 2 * i + 1) * out_stride, odd);
    }
  }
}
