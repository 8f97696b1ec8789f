// The scripted executor's "model": a token is a hash of all tokens and positions that the row reads
// and of its seed. A pure function, written down a second time in Python
// (tests/property/reference_model.py), so that each req's whole output is known before anything
// runs.
#pragma once

#include <cstdint>
#include <span>

#include "base/ids.h"

namespace stoker::sim {

// splitmix64's finaliser.
inline constexpr uint64_t mix(uint64_t z) {
  z += 0x9E3779B97F4A7C15ULL;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  return z ^ (z >> 31);
}

inline constexpr uint64_t kEmptyContext = 0x5370616365546F6BULL;

// The hash of a context grown by one token.
inline constexpr uint64_t extend_context(uint64_t context, Token token, int32_t position) {
  const auto t = static_cast<uint64_t>(static_cast<uint32_t>(token));
  const auto p = static_cast<uint64_t>(static_cast<uint32_t>(position));
  return mix(context ^ ((t << 32) | p));
}

// What a sampled token is drawn from.
inline constexpr uint64_t draw(uint64_t context, uint64_t seed, int32_t position) {
  return mix(context ^ mix(seed + static_cast<uint64_t>(static_cast<uint32_t>(position))));
}

// What a scored token is said to have as its logprob: of the context before it.
inline constexpr float score(uint64_t context) {
  return -static_cast<float>(context % 1000) / 1000.0F;
}

struct SampleRule {
  int32_t vocab_size = 100;
  Token eos = -1;              // -1: none
  uint32_t eos_per_mille = 0;  // chance of eos, besides its share as an ordinary token
};

// Draws until the token is allowed: `stop` may not be sampled below min_position, nothing that the
// mask (empty: none) forbids.
inline Token sample(const SampleRule& rule, uint64_t context, uint64_t seed, int32_t position,
                    int32_t min_position, std::span<const Token> stop,
                    std::span<const int32_t> mask = {}) {
  uint64_t bits = draw(context, seed, position);
  const auto masked = [&](Token t) {
    return !mask.empty() && (mask[static_cast<size_t>(t) / 32] >> (t % 32) & 1) == 0;
  };
  for (int attempt = 0;; ++attempt) {
    Token token = static_cast<Token>(bits % static_cast<uint64_t>(rule.vocab_size));
    if (rule.eos >= 0 && (bits >> 32) % 1000 < rule.eos_per_mille) token = rule.eos;
    bool allowed = true;
    if (position < min_position) {
      for (Token s : stop) allowed = allowed && s != token;
    }
    if (!mask.empty() && attempt == 63) {  // the next one that is allowed, going round
      for (int32_t i = 0; i < rule.vocab_size && masked(token); ++i)
        token = (token + 1) % rule.vocab_size;
    }
    if ((allowed && !masked(token)) || attempt == 63) return token;
    bits = mix(bits);
  }
}

// Whether this row fails by itself (a NaN, say): as much a function of its context as the token is.
inline constexpr bool row_fails(uint64_t context, uint64_t seed, int32_t position,
                                uint32_t per_million) {
  return mix(draw(context, seed, position) ^ 0x4E614E526F77ULL) % 1000000 < per_million;
}

}  // namespace stoker::sim
