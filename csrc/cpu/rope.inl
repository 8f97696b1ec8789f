// q/k norm, rotary and the write of K and V to their slots, a head at a time. Included inside a
// per-ISA anonymous namespace.

constexpr int64_t kMaxHeadDim = 512;

// head (widened, maybe normed) -> buffer
template <typename T>
inline void widen_head(float* buffer, const T* head, const T* norm, int64_t size, float eps) {
  int64_t i = 0;
  if (norm) {
    const float factor = inverse_rms(sum_of_squares(head, size), size, eps);
    const Vec f = set1(factor);
    for (; i + kLanes <= size; i += kLanes) {
      store(buffer + i, mul(mul(load(head + i), f), load(norm + i)));
    }
    for (; i < size; ++i) buffer[i] = to_float(head[i]) * factor * to_float(norm[i]);
  } else {
    for (; i + kLanes <= size; i += kLanes) store(buffer + i, load(head + i));
    for (; i < size; ++i) buffer[i] = to_float(head[i]);
  }
}

// The halves form: x1' = x1 cos - x2 sin, x2' = x2 cos + x1 sin
inline void rotate(float* x, const float* cos_sin, int64_t rotary_dim) {
  const int64_t half = rotary_dim / 2;
  const float *cosine = cos_sin, *sine = cos_sin + half;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vec x1 = load(x + i), x2 = load(x + half + i), c = load(cosine + i), s = load(sine + i);
    store(x + i, sub(mul(x1, c), mul(x2, s)));
    store(x + half + i, add(mul(x2, c), mul(x1, s)));
  }
  for (; i < half; ++i) {
    const float x1 = x[i], x2 = x[half + i];
    x[i] = x1 * cosine[i] - x2 * sine[i];
    x[half + i] = x2 * cosine[i] + x1 * sine[i];
  }
}

template <typename T>
inline void store_head(T* out, const float* x, int64_t size) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) store(out + i, load(x + i));
  for (; i < size; ++i) from_float(x[i], out[i]);
}

// To the cache: as it is, or rounded to the model's dtype and then to fp8.
template <typename T>
inline void cache_head(void* cache, int64_t offset, float* x, int64_t size, float inverse_scale,
                       Type cache_type) {
  if (cache_type != Type::float8_e4m3fn) {
    store_head(static_cast<T*>(cache) + offset, x, size);
    return;
  }
  F8* out = static_cast<F8*>(cache) + offset;
  for (int64_t i = 0; i < size; ++i) {
    T rounded;
    from_float(x[i], rounded);
    from_float(to_float(rounded) * inverse_scale, out[i]);
  }
}

template <typename T>
void rope_tokens(const RopeParams& p, int64_t begin, int64_t end) {
  alignas(64) float buffer[kMaxHeadDim];
  for (int64_t token = begin; token < end; ++token) {
    const int64_t slot = p.slots[token];
    if (slot < 0) continue;
    const float* table = p.cos_sin + p.positions[token] * p.rotary_dim;
    for (int64_t head = 0; head < p.q_heads; ++head) {
      T* q = static_cast<T*>(p.q) + token * p.q_stride + head * p.q_head_stride;
      widen_head(buffer, q, static_cast<const T*>(p.q_norm), p.head_dim, p.eps);
      rotate(buffer, table, p.rotary_dim);
      store_head(q, buffer, p.head_dim);
    }
    const int64_t block = slot / p.block_size, offset = slot % p.block_size;
    for (int64_t head = 0; head < p.kv_heads; ++head) {
      const int64_t place = (head * p.block_size + offset) * p.head_dim;
      const T* k = static_cast<const T*>(p.k) + token * p.k_stride + head * p.k_head_stride;
      widen_head(buffer, k, static_cast<const T*>(p.k_norm), p.head_dim, p.eps);
      rotate(buffer, table, p.rotary_dim);
      cache_head<T>(p.k_cache, block * p.k_block_stride + place, buffer, p.head_dim,
                    p.k_inverse_scale, p.cache_type);
      const T* v = static_cast<const T*>(p.v) + token * p.v_stride + head * p.v_head_stride;
      widen_head<T>(buffer, v, nullptr, p.head_dim, p.eps);
      cache_head<T>(p.v_cache, block * p.v_block_stride + place, buffer, p.head_dim,
                    p.v_inverse_scale, p.cache_type);
    }
  }
}

void rope_and_cache(const RopeParams& p, int64_t begin, int64_t end) {
  switch (p.type) {
    case Type::bfloat16:
      return rope_tokens<Bf16>(p, begin, end);
    case Type::float16:
      return rope_tokens<F16>(p, begin, end);
    default:
      return rope_tokens<float>(p, begin, end);
  }
}
