// Element types and their conversion one at a time, for row tails and the portable kernels.
// Included inside a per-ISA anonymous namespace: the include guards of headers must not let one
// instruction set's copy serve another.

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
struct F8 {  // float8_e4m3fn
  uint8_t bits;
};

inline float float_of_bits(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}
inline uint32_t bits_of(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float to_float(float x) { return x; }
inline float to_float(Bf16 x) { return float_of_bits(uint32_t(x.bits) << 16); }
inline float to_float(F16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16;
  const uint32_t rest = x.bits & 0x7fff;
  if (rest >= 0x7c00) return float_of_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // Scaling by 2^112 turns a half's exponent into a float's and a denormal into a normal.
  return float_of_bits(sign | bits_of(float_of_bits(rest << 13) * 0x1p112f));
}
inline float to_float(F8 x) {
  const uint32_t sign = uint32_t(x.bits & 0x80) << 24;
  const uint32_t rest = x.bits & 0x7f;
  if (rest == 0x7f) return float_of_bits(sign | 0x7fc00000);
  return float_of_bits(sign | bits_of(float_of_bits(rest << 20) * 0x1p120f));
}

inline void from_float(float x, float& out) { out = x; }
inline void from_float(float x, Bf16& out) {
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = x != x ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
  out.bits = uint16_t(rounded >> 16);
}
inline void from_float(float x, F16& out) {
  const uint32_t bits = bits_of(x);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  const uint32_t rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) {
    out.bits = uint16_t(sign | 0x7e00 | (rest >> 13 & 0x1ff));
  } else if (rest >= 0x477ff000) {  // rounds to infinity
    out.bits = uint16_t(sign | 0x7c00);
  } else if (rest < 0x38800000) {  // a denormal half: let the float adder round
    out.bits = uint16_t(sign | (bits_of(float_of_bits(rest) + 0.5f) - 0x3f000000));
  } else {
    out.bits = uint16_t(sign | ((rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13));
  }
}
// Saturates at 448; NaN stays NaN.
inline void from_float(float x, F8& out) {
  const uint32_t bits = bits_of(x);
  const uint8_t sign = uint8_t(bits >> 24 & 0x80);
  const uint32_t rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) {
    out.bits = uint8_t(sign | 0x7f);
  } else if (rest >= 0x43e00000) {  // 448 and above
    out.bits = uint8_t(sign | 0x7e);
  } else if (rest < 0x3c800000) {  // below 2^-6: denormal, let the float adder round to 2^-9
    out.bits = uint8_t(sign | (bits_of(float_of_bits(rest) + 0x1p14f) - 0x46800000));
  } else {
    out.bits = uint8_t(sign | ((rest - 0x3c000000 + 0x7ffff + (rest >> 20 & 1)) >> 20));
  }
}
