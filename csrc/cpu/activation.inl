// silu(gate) * up and gelu(gate) * up. Included inside a per-ISA anonymous namespace.

template <typename T, Activation kind>
inline void activate_row(T* out, const T* gate, const T* up, int64_t size) {
  const auto f = [](Vec x) { return kind == Activation::silu ? silu(x) : gelu_tanh(x); };
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    store(out + i, mul(f(load(gate + i)), load(up + i)));
  }
  if (i < size) {
    float g[kLanes] = {}, u[kLanes] = {};
    for (int64_t j = i; j < size; ++j) {
      g[j - i] = to_float(gate[j]);
      u[j - i] = to_float(up[j]);
    }
    store(g, mul(f(load(g)), load(u)));
    for (int64_t j = i; j < size; ++j) from_float(g[j - i], out[j]);
  }
}

template <typename T>
void activate_rows(const ActivationParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* gate = static_cast<const T*>(p.x) + row * p.x_stride;
    T* out = static_cast<T*>(p.out) + row * p.out_stride;
    if (p.activation == Activation::silu) {
      activate_row<T, Activation::silu>(out, gate, gate + p.size, p.size);
    } else {
      activate_row<T, Activation::gelu_tanh>(out, gate, gate + p.size, p.size);
    }
  }
}

void activation_and_mul(const ActivationParams& p, int64_t begin, int64_t end) {
  switch (p.type) {
    case Type::bfloat16:
      return activate_rows<Bf16>(p, begin, end);
    case Type::float16:
      return activate_rows<F16>(p, begin, end);
    default:
      return activate_rows<float>(p, begin, end);
  }
}
