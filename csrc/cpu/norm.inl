// RMSNorm, and RMSNorm with the residual added. Included inside a per-ISA anonymous namespace.

// Sum of squares of x[0, size) in an order that depends on size alone.
template <typename T>
inline float sum_of_squares(const T* x, int64_t size) {
  Vec a = zero(), b = zero();
  int64_t i = 0;
  for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
    const Vec p = load(x + i), q = load(x + i + kLanes);
    a = fma(p, p, a);
    b = fma(q, q, b);
  }
  float tail = 0;
  for (; i < size; ++i) tail += to_float(x[i]) * to_float(x[i]);
  return sum(add(a, b)) + tail;
}

inline float inverse_rms(float squares, int64_t size, float eps) {
  return 1.0f / __builtin_sqrtf(squares / float(size) + eps);
}

template <typename T>
inline void scale_and_store(T* out, const T* x, const T* weight, int64_t size, float factor) {
  const Vec f = set1(factor);
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    store(out + i, mul(mul(load(x + i), f), load(weight + i)));
  }
  for (; i < size; ++i) from_float(to_float(x[i]) * factor * to_float(weight[i]), out[i]);
}

template <typename T>
void rms_norm_rows(const NormParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t token = row / p.heads, head = row % p.heads;
    const T* x = static_cast<const T*>(p.x) + token * p.x_stride + head * p.x_head_stride;
    T* out = static_cast<T*>(p.out) + token * p.out_stride + head * p.out_head_stride;
    const float factor = inverse_rms(sum_of_squares(x, p.size), p.size, p.eps);
    scale_and_store(out, x, static_cast<const T*>(p.weight), p.size, factor);
  }
}

template <typename T>
void add_rms_norm_rows(const NormParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
    T* residual = static_cast<T*>(p.residual) + row * p.residual_stride;
    T* out = static_cast<T*>(p.out) + row * p.out_stride;
    int64_t i = 0;
    for (; i + kLanes <= p.size; i += kLanes) {
      store(residual + i, add(load(residual + i), load(x + i)));
    }
    for (; i < p.size; ++i) from_float(to_float(residual[i]) + to_float(x[i]), residual[i]);
    const float factor = inverse_rms(sum_of_squares(residual, p.size), p.size, p.eps);
    scale_and_store(out, residual, static_cast<const T*>(p.weight), p.size, factor);
  }
}

void rms_norm(const NormParams& p, int64_t begin, int64_t end) {
  switch (p.type) {
    case Type::bfloat16:
      return rms_norm_rows<Bf16>(p, begin, end);
    case Type::float16:
      return rms_norm_rows<F16>(p, begin, end);
    default:
      return rms_norm_rows<float>(p, begin, end);
  }
}

void add_rms_norm(const NormParams& p, int64_t begin, int64_t end) {
  switch (p.type) {
    case Type::bfloat16:
      return add_rms_norm_rows<Bf16>(p, begin, end);
    case Type::float16:
      return add_rms_norm_rows<F16>(p, begin, end);
    default:
      return add_rms_norm_rows<float>(p, begin, end);
  }
}
